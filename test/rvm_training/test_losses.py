"""The losses on cases small enough to be worked out by hand."""

import math

import pytest
import torch

from rvm_core.heads import PointOutput, Pose
from rvm_training.losses import PointLossConfig, box_loss, class_loss, depth_loss, point_loss, pose_loss


def output(positions: list[list[float]], visible: float = 0.0, certain: float = 0.0) -> PointOutput:
    """One clip of one frame."""
    places = torch.tensor(positions)[None, None].requires_grad_()
    logits = torch.ones(1, 1, len(positions), 1)
    return PointOutput(places, visible * logits, certain * logits)


def cross_entropy(logit: float, target: bool) -> float:
    return math.log1p(math.exp(-logit if target else logit))


def test_point_loss_adds_up() -> None:
    """One point 0.1 off in x, one exact, one hidden whose position does not count."""
    said = output([[0.6, 0.5], [0.2, 0.2], [0.9, 0.9]], visible=2.0, certain=1.0)
    truth = torch.tensor([[0.5, 0.5], [0.2, 0.2], [math.nan, math.nan]])[None, None]
    loss = point_loss(said, truth, torch.tensor([[[True, True, False]]]))
    huber = 0.5 * 0.1**2 / 2
    of_visible = (2 * cross_entropy(2, True) + cross_entropy(2, False)) / 3
    of_certainty = (cross_entropy(1, False) + cross_entropy(1, True)) / 2
    assert loss.item() == pytest.approx(100 * huber + 0.1 * of_visible + 0.1 * of_certainty, rel=1e-5)
    loss.backward()
    grad = said.positions.grad
    assert grad is not None and grad.isfinite().all()
    assert grad[0, 0].tolist() == [[pytest.approx(100 * 0.1 / 2, rel=1e-4), 0], [0, 0], [0, 0]]


def test_point_loss_passes_over_what_is_not_valid() -> None:
    said = output([[0.6, 0.5], [0.2, 0.2]])
    truth, visible = torch.tensor([[0.5, 0.5], [0.7, 0.7]])[None, None], torch.tensor([[[True, True]]])
    valid = torch.tensor([[[True, False]]])
    alone = point_loss(output([[0.6, 0.5]]), truth[:, :, :1], visible[:, :, :1])
    assert point_loss(said, truth, visible, valid=valid).item() == pytest.approx(alone.item())
    assert point_loss(said, truth, visible, valid=~visible).item() == 0


def test_point_loss_is_straight_beyond_delta() -> None:
    said = output([[0.6, 0.5]])
    config = PointLossConfig(visible=0, certainty=0, huber_delta=0.02)
    loss = point_loss(said, torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[True]]]), config=config)
    assert loss.item() == pytest.approx(100 * 0.02 * (0.1 - 0.01), rel=1e-4)


def test_box_loss() -> None:
    boxes = torch.tensor([[[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]]], requires_grad=True)
    truth = torch.tensor([[[[0.1, 0.2, 0.5, 0.7], [math.nan] * 4]]])
    loss = box_loss(boxes, truth, valid=torch.tensor([[[True, False]]]))
    assert loss.item() == pytest.approx((0.01 + 0.04) / 4)
    loss.backward()
    assert boxes.grad is not None and boxes.grad.isfinite().all()
    assert box_loss(boxes[:, :, :1], truth[:, :, :1]).item() == pytest.approx(loss.item())


def test_depth_loss_counts_measured_pixels() -> None:
    depth = torch.tensor([1.0, math.e, 0.0, 11.0, math.nan, math.inf]).reshape(1, 1, 2, 3, 1)
    log_depth = torch.tensor([0.5, 1.0, 9.0, 9.0, 9.0, 9.0]).reshape(1, 1, 2, 3, 1).requires_grad_()
    loss = depth_loss(log_depth, depth)
    assert loss.item() == pytest.approx(0.25 / 2)
    loss.backward()
    assert log_depth.grad is not None
    assert log_depth.grad.flatten().tolist() == [0.5, 0, 0, 0, 0, 0]


def test_class_loss() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert class_loss(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_pose_loss() -> None:
    pose = Pose(torch.eye(3)[None], torch.tensor([[1.0, 2.0, 3.0]]))
    assert pose_loss(pose, torch.eye(3)[None], torch.tensor([[1.0, 2.0, 3.0]])).item() == 0
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))[None]
    assert pose_loss(pose, half_turn, torch.tensor([[1.0, 2.0, 1.0]])).item() == pytest.approx((4 + 4 + 4) / 12)


def test_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="PointLossConfig.visible must not be negative, got -1"):
        PointLossConfig(visible=-1)
    with pytest.raises(ValueError, match="huber_delta must be positive, got 0"):
        PointLossConfig(huber_delta=0)

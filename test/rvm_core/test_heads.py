"""The heads: those of the release against its outputs, the others by their shapes and by what they must obey."""

from typing import Any

import numpy as np
import pytest
import torch

from readout_data import TOLERANCE, load_reference
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PointHeadConfig,
    PoseHead,
    PoseHeadConfig,
)
from rvm_core.rotation import project_to_rotation

EXACT = 1e-5
"""Between two ways of ours to the same float32 result."""

SMALL: dict[str, Any] = {"features": 12, "channels": 16, "num_heads": 2}
LEARNED = [
    (DepthHead(DepthHeadConfig(frames=4, image_size=(24, 40), **SMALL)), 4, (2, 4, 24, 40, 1)),
    (ClassHead(ClassHeadConfig(frames=3, classes=7, **SMALL)), 3, (2, 7)),
]


def test_points_match_release() -> None:
    params, tensors = load_reference("tracking_head_points")
    with torch.no_grad():
        output = PointHead.from_release(params)(tensors["inputs"], tensors["queries"])
    assert (output.positions - tensors["values"]).abs().max() < TOLERANCE
    assert (output.logits_visible - tensors["logits_visible"]).abs().max() < TOLERANCE
    assert (output.logits_certainty - tensors["logits_certainty"]).abs().max() < TOLERANCE
    assert torch.equal(output.visible, tensors["visible"].bool())
    assert 0 < tensors["visible"].mean() < 1


def test_boxes_match_release() -> None:
    params, tensors = load_reference("tracking_head_boxes")
    with torch.no_grad():
        boxes = BoxHead.from_release(params)(tensors["inputs"], tensors["queries"])
    assert boxes.shape == tensors["values"].shape
    assert (boxes - tensors["values"]).abs().max() < TOLERANCE


def test_sizes_are_inferred() -> None:
    sizes: dict[str, Any] = {"features": 40, "channels": 64, "num_heads": 4, "query_hidden": 48, "query_width": 48}
    assert PointHead.from_release(load_reference("tracking_head_points").params).config == PointHeadConfig(**sizes)
    assert BoxHead.from_release(load_reference("tracking_head_boxes").params).config == BoxHeadConfig(**sizes)


@pytest.mark.parametrize("frame", range(16))
def test_one_frame_of_a_window_is_that_of_all(frame: int) -> None:
    for name, cls in (("tracking_head_points", PointHead), ("tracking_head_boxes", BoxHead)):
        params, tensors = load_reference(name)
        head = cls.from_release(params)
        with torch.no_grad():
            window = head.readout.place([head.readout.project(frame) for frame in tensors["inputs"].unbind(1)])
            output = head.read(window, tensors["queries"], frame)
        positions = output if isinstance(output, torch.Tensor) else output.positions
        assert (positions - tensors["values"][:, frame]).abs().max() < TOLERANCE
        if not isinstance(output, torch.Tensor):
            assert (output.logits_visible - tensors["logits_visible"][:, frame]).abs().max() < TOLERANCE
            assert (output.logits_certainty - tensors["logits_certainty"][:, frame]).abs().max() < TOLERANCE


def test_defaults_are_the_protocols() -> None:
    points, boxes = PointHead(PointHeadConfig(features=8)), BoxHead(BoxHeadConfig(features=8))
    assert points.readout.query_embedding.weight.shape == (1024, 512)
    assert points.queries.dense_in.weight.shape == (512, 2 * 16 * 2)
    assert points.readout.output.weight.shape == (2 * 4, 1024)
    assert points.copy_embedding.shape == (1, 1, 8, 512)
    assert points.readout.config.num_heads == 8
    assert boxes.readout.output.weight.shape == (16 * 4, 1024)
    assert boxes.readout.config.num_heads == 4
    depth = DepthHead(DepthHeadConfig(features=8)).readout.config
    assert (depth.num_queries, depth.outputs, depth.channels, depth.num_heads) == (8 * 32 * 32, 128, 1024, 16)
    classes = ClassHeadConfig(features=8)
    assert (classes.classes, classes.channels, classes.num_heads, classes.frames) == (174, 768, 12, 16)
    kinetics = ClassHeadConfig.kinetics(features=8)
    assert (kinetics.classes, kinetics.channels, kinetics.num_heads, kinetics.frames) == (700, 1024, 16, 16)


@pytest.mark.parametrize(("head", "frames", "shape"), LEARNED, ids=["depth", "classes"])
def test_output_of_learned_queries(head: torch.nn.Module, frames: int, shape: tuple[int, ...]) -> None:
    features = torch.rand(2, frames, 10, 12)
    output = head(features)
    assert output.shape == shape
    assert not torch.allclose(output, head(features.flip(1)), atol=EXACT), "the order of frames must matter"
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_pose_reads_first_and_last_frame() -> None:
    head = PoseHead(PoseHeadConfig(**SMALL))
    features = torch.rand(2, 5, 10, 12)
    pose = head(features)
    assert pose.rotation.shape == (2, 3, 3)
    assert pose.translation.shape == (2, 3)
    assert torch.allclose(head(features[:, [0, 4]]).translation, pose.translation, atol=EXACT)
    assert not torch.allclose(head(features[:, :4]).translation, pose.translation, atol=EXACT)
    assert torch.allclose(torch.linalg.det(pose.rotation), torch.ones(2), atol=EXACT)


def test_rotations_are_proper_and_nearest() -> None:
    """No rotation of many random ones is nearer to a matrix than its projection, though half would be reflections."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(200, 3, 3, generator=generator, dtype=torch.float64)
    assert 50 < (torch.linalg.det(matrices) < 0).sum() < 150
    rotations = project_to_rotation(matrices)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(200, dtype=torch.float64))
    others, _ = torch.linalg.qr(torch.randn(5000, 3, 3, generator=generator, dtype=torch.float64))
    others = others * torch.linalg.det(others)[:, None, None]
    distances = (matrices[:, None] - others[None]).flatten(2).norm(dim=-1)
    assert ((matrices - rotations).flatten(1).norm(dim=-1)[:, None] <= distances + EXACT).all()


def test_rotations_stay_and_scale_is_ignored() -> None:
    angle = torch.tensor(0.7)
    rotation = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    assert torch.allclose(project_to_rotation(rotation[None])[0], rotation, atol=EXACT)
    assert torch.allclose(project_to_rotation(3 * rotation[None])[0], rotation, atol=EXACT)


def test_export_traces_a_head_for_any_number_of_tracks() -> None:
    params, tensors = load_reference("tracking_head_points")
    head = PointHead.from_release(params)
    inputs = (tensors["inputs"], tensors["queries"])
    shapes: tuple[dict[int, Any], ...] = ({}, {1: torch.export.Dim("tracks", min=1, max=64)})
    program = torch.export.export(head, inputs, dynamic_shapes=shapes)
    with torch.no_grad():
        output = program.module()(inputs[0], inputs[1][:, :3])
    assert torch.allclose(output[0], tensors["values"][:, :, :3], atol=TOLERANCE)


def test_export_traces_the_others() -> None:
    pose = PoseHead(PoseHeadConfig(**SMALL))
    for head, frames in [*((head, frames) for head, frames, _ in LEARNED), (pose, 2)]:
        features = torch.rand(2, frames, 10, 12)
        with torch.no_grad():
            output, expected = torch.export.export(head, (features,)).module()(features), head(features)
        for got, wanted in zip(output, expected, strict=True):
            assert torch.allclose(got, wanted, atol=EXACT)


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        (PointHeadConfig, {"copies": 3}, "copies must divide frames, got 3 and 16"),
        (PointHeadConfig, {"frames": 0}, "PointHeadConfig.frames must be positive, got 0"),
        (BoxHeadConfig, {"channels": -1}, "BoxHeadConfig.channels must be positive, got -1"),
        (ClassHeadConfig, {"classes": 0}, "ClassHeadConfig.classes must be positive, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: Any, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(features=8, **sizes)


def test_depth_of_broken_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="whole patches"):
        DepthHead(DepthHeadConfig(features=8, image_size=(250, 256)))


def test_parameters_of_another_head_are_refused() -> None:
    params = load_reference("tracking_head_boxes").params
    with pytest.raises(ValueError, match="missing: temporal_tile_posenc/embeddings"):
        PointHead.from_release(params)
    points = load_reference("tracking_head_points").params
    points["attention_readout/Dense_2/kernel"] = np.zeros((64, 12), np.float32)
    points["attention_readout/Dense_2/bias"] = np.zeros(12, np.float32)
    with pytest.raises(ValueError, match="not 4 numbers for each of 16 frames"):
        PointHead.from_release(points)

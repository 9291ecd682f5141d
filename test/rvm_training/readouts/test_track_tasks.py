"""Queries at random frames, losses that count what they should, and readouts that are unrolled as the tracker does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from readout_clips import FRAMES, GRID, WIDTH, CellEncoder, DotClips
from rvm_core.heads import BoxHead, BoxHeadConfig, PointHead, PointHeadConfig, PointOutput
from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig, TrackKind
from rvm_core.tracking.recurrent_tracker import RecurrentTracker
from rvm_training.evaluators.overlap import box_iou
from rvm_training.feature_cache import Examples, make_live, plan_cache
from rvm_training.readouts.measure import follow
from rvm_training.readouts.tasks import own_truth
from rvm_training.readouts.track_tasks import (
    TrackLossConfig,
    box_overlaps,
    draw_queries,
    draw_window,
    recurrent_loss,
    track_box_loss,
    unroll,
    window_box_loss,
    window_point_loss,
)

SAME = 1e-5
"""Between batched and single computations in float32."""


@pytest.fixture
def examples() -> Examples:
    live = make_live(plan_cache(DotClips(8), CellEncoder(), keep=slice(None)))
    return own_truth(live.batch(list(range(8))), "points")


def readout(kind: TrackKind = "points") -> RecurrentReadout:
    return RecurrentReadout(RecurrentReadoutConfig(features=WIDTH, kind=kind, channels=16, num_heads=2)).eval()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_queries_begin_where_they_may_and_never_in_the_last_frame(examples: Examples) -> None:
    seen = set()
    for seed in range(30):
        targets = draw_queries(examples.truth, rng(seed))
        for b, q in np.ndindex(*targets.starts.shape):
            start = int(targets.starts[b, q])
            seen.add((q, start))
            assert examples.truth["startable"][b, start, q]
            assert torch.equal(targets.queries[b, q], examples.truth["positions"][b, start, q])
            assert not targets.valid[b, : start + 1, q].any() and targets.valid[b, start + 1 :, q].all()
    assert seen == {(0, t) for t in range(FRAMES - 1)} | {(1, t) for t in (0, 1, 4)}


def test_a_track_that_may_begin_nowhere_counts_nowhere(examples: Examples) -> None:
    examples.truth["startable"][:, :, 1] = False
    examples.truth["startable"][:, :-1, 0] = False
    targets = draw_queries(examples.truth, rng())
    assert (targets.starts == FRAMES).all() and not targets.valid.any() and not targets.queries.any()
    loss = recurrent_loss(readout(), examples, rng(), grid=GRID)
    assert float(loss.detach()) == 0.0


def test_what_is_unrolled_is_what_the_tracker_does(examples: Examples) -> None:
    model = readout()
    targets = draw_queries(examples.truth, rng(3))
    with torch.no_grad():
        output = unroll(model, examples.features, targets, GRID, None)
    tracker = RecurrentTracker(grid=GRID, points=model)
    for b in range(3):
        starts = targets.starts[b].numpy()
        positions = examples.truth["positions"][b].double().numpy()
        found, said = follow(tracker, examples.features[b], starts, positions)
        after = targets.valid[b].numpy()
        assert np.abs(found - output.positions[b].numpy())[after].max() < SAME
        assert np.array_equal(said[after], output.visible[b, ..., 0].numpy()[after])


def test_gradients_go_back_as_far_as_they_may(examples: Examples) -> None:
    def reaches(truncate: int | None) -> list[bool]:
        features = examples.features.clone().requires_grad_()
        drawn = draw_queries(examples.truth, rng())
        queries = examples.truth["positions"][:, 0]
        targets = replace(drawn, starts=torch.zeros_like(drawn.starts), queries=queries)
        unroll(readout(), features, targets, GRID, truncate).logits_visible[:, -1].sum().backward()
        assert features.grad is not None
        return [bool(features.grad[:, t].any()) for t in range(FRAMES)]

    assert reaches(None) == [True] * FRAMES
    assert reaches(2) == [False] * 4 + [True] * 2


def perfect(boxes: Tensor, visible: Tensor) -> PointOutput:
    sure = 20.0 * torch.where(visible, 1.0, -1.0).unsqueeze(-1)
    return PointOutput(boxes, sure, sure)


def test_the_loss_of_boxes_is_zero_where_all_is_right_and_counts_only_what_counts() -> None:
    boxes = torch.tensor([[[[0.2, 0.3, 0.5, 0.6], [0.1, 0.1, 0.3, 0.4]]]]).expand(2, 3, -1, -1)
    visible = torch.tensor([True, False]).expand(2, 3, 2)
    valid = torch.ones(2, 3, 2, dtype=torch.bool)
    config = TrackLossConfig()
    right = perfect(boxes, visible)
    assert float(track_box_loss(right, boxes, visible, valid=valid, config=config)) < 1e-6
    hidden_elsewhere = boxes.clone()
    hidden_elsewhere[..., 1, :] = torch.nan
    assert float(track_box_loss(right, hidden_elsewhere, visible, valid=valid, config=config)) < 1e-6
    wrong = perfect(boxes + 0.2, visible)
    assert float(track_box_loss(wrong, boxes, visible, valid=valid, config=config)) > 1
    assert float(track_box_loss(wrong, boxes, visible, valid=~valid, config=config)) == 0


def test_overlaps_are_those_of_the_evaluator_and_fall_with_the_distance() -> None:
    corners = np.sort(rng().uniform(0, 1, (2, 200, 2, 2)), axis=2).reshape(2, 200, 4)
    first, second = torch.from_numpy(corners)
    iou, generalised = box_overlaps(first, second)
    assert np.allclose(iou.numpy(), box_iou(*corners))
    assert bool((generalised <= iou + SAME).all()) and bool((generalised >= -1 - SAME).all())
    box = torch.tensor([0.0, 0.0, 0.1, 0.1])
    apart = [float(box_overlaps(box, box + offset)[1]) for offset in (0.0, 0.05, 0.2, 0.5)]
    assert apart[0] == pytest.approx(1) and apart == sorted(apart, reverse=True)


def test_windows_are_of_all_places(examples: Examples) -> None:
    starts = {float(draw_window(examples, rng(seed), 4).features[0, 0, 1, 0]) for seed in range(20)}
    expected = {float(examples.features[0, t, 1, 0]) for t in range(FRAMES - 3)}
    assert starts <= expected and len(draw_window(examples, rng(), 4).truth["visible"][0]) == 4


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_heads_over_windows_learn(kind: TrackKind) -> None:
    live = make_live(plan_cache(DotClips(8), CellEncoder(), keep=slice(None)))
    batch = own_truth(live.batch(list(range(8))), kind)
    sizes = {"features": WIDTH, "frames": 4, "channels": 32, "num_heads": 2, "query_hidden": 16, "query_width": 16}
    head = PointHead(PointHeadConfig(copies=2, **sizes)) if kind == "points" else BoxHead(BoxHeadConfig(**sizes))
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        if isinstance(head, PointHead):
            loss = window_point_loss(head, batch, rng(step), frames=4)
        else:
            loss = window_box_loss(head, batch, rng(step), frames=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_heads_of_boxes_are_trained_on_corners_as_the_tracker_reads_them() -> None:
    live = make_live(plan_cache(DotClips(2), CellEncoder(), keep=slice(None)))
    batch = own_truth(live.batch([0, 1]), "boxes")

    class Says(torch.nn.Module):
        def forward(self, features: Tensor, queries: Tensor) -> Tensor:
            self.queries = queries
            return batch.truth["positions"][..., [1, 0, 3, 2]]

    head = Says()
    loss = window_box_loss(head, batch, rng(), frames=FRAMES)  # type: ignore[arg-type]
    assert float(loss) == 0
    assert torch.equal(head.queries, batch.truth["positions"][:, 0][..., [1, 0, 3, 2]])

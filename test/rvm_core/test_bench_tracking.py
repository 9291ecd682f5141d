"""The measurement of tracking, on a tiny model, and the check that both ways of label propagation agree."""

from __future__ import annotations

import pytest
import torch

from rvm_core import bench_tracking
from rvm_core.bench_tracking import (
    NODE_CONTEXT,
    STARTS,
    TOLERANCE,
    Propagation,
    SizeMeasurement,
    TrackingOptions,
    _compare,
    _label_stripes,
    _Straightforward,
    _Streaming,
    count_turns,
    measure_size,
)
from rvm_core.engines import Engine, create_engine
from rvm_core.model import RVM
from rvm_core.tracking import FeatureTracker, TrackingConfig

SIZE = (64, 96)
GRID = (4, 6)
OPTIONS = TrackingOptions(context=3, points=5, boxes=3, steps=4)


@pytest.fixture(scope="module")
def engine(tiny_model: RVM) -> Engine:
    return create_engine(tiny_model, backend="torch", precision="fp32", image_size=SIZE, device="cpu", checked=False)


def measure(engine: Engine, options: TrackingOptions) -> tuple[SizeMeasurement, int]:
    measurement, turns = SizeMeasurement(image_size=SIZE), 0

    def count(text: str, steps: int = 0) -> None:
        nonlocal turns
        turns += steps

    measure_size(measurement, engine, options, count)
    return measurement, turns


@pytest.mark.parametrize("random_features", [False, True])
def test_everything_is_measured_in_every_round(engine: Engine, tiny_model: RVM, random_features: bool) -> None:
    options = TrackingOptions(context=3, points=5, boxes=3, steps=4, random_features=random_features)
    found, turns = measure(engine, options)
    rounds = list(range(4))
    propagation = found.propagation
    assert list(propagation.straightforward) == list(propagation.streaming) == list(found.engine_times) == rounds
    assert [(t.context, t.starts) for t in found.trackers] == [(c, s) for c in (3, NODE_CONTEXT) for s in STARTS]
    assert all(list(tracker.times) == rounds for tracker in found.trackers)
    assert propagation.identical and propagation.compared_cells == 4 * GRID[0] * GRID[1]
    assert (found.engine, found.width) == ("torch:fp32", tiny_model.config.width)
    assert turns == count_turns(1, options)


def test_both_ways_go_on_from_the_same_queue() -> None:
    """Of frames that differ, with the given labels in the first frame only."""
    config = TrackingConfig(n_context=3)
    tokens = torch.randn(9, GRID[0] * GRID[1], 16, generator=torch.Generator().manual_seed(1))
    streaming = _Streaming(tokens[0], _label_stripes(GRID), config, GRID)
    for features in tokens[1:5]:
        streaming.step(features)
    straightforward = _Straightforward(streaming)
    for features in tokens[5:]:
        found, right = streaming.step(features), straightforward.step(features)
        straightforward.remember(right)
        torch.testing.assert_close(found, right, rtol=0, atol=TOLERANCE)
        assert found.std() > 0.05


def test_labels_cover_the_grid_once() -> None:
    labels = _label_stripes((3, 16))
    assert labels.shape == (48, 8)
    assert (labels.sum(1) == 1).all() and (labels.sum(0) == 6).all()


def test_wrong_labels_are_noticed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_tracking.propagate_frame
    monkeypatch.setattr(
        bench_tracking, "propagate_frame", lambda *args, **options: right(*args, **options).roll(1, dims=1)
    )
    found, _ = measure(engine, OPTIONS)
    assert not found.propagation.identical
    assert found.propagation.other_labels > 0 and found.propagation.max_abs_difference > 0.1


def test_rounding_and_ties_are_no_difference() -> None:
    assert Propagation(max_abs_difference=1e-6, tied_cells=3).identical
    assert not Propagation(different_cells=1).identical
    assert not Propagation(other_labels=1).identical


def test_cells_with_two_equal_matches_are_ties() -> None:
    """Cell 0 has k + 1 equally good matches, cell 1 has k that are better than all others."""
    config = TrackingConfig(n_context=3, top_k=2)
    tokens = torch.zeros(5, 2, 4)
    tokens[:, 0, 0] = tokens[:, 1, 1] = 1
    tokens[1:3, 1, 2] = 0.5
    streaming = _Streaming(tokens[0], torch.eye(2), config, (1, 2))
    for features in tokens[1:4]:
        streaming.step(features)
    straightforward = _Straightforward(streaming)
    right = straightforward.step(tokens[4])
    assert (straightforward.margin(torch.tensor([0, 1])) > 1e-3).tolist() == [False, True]
    for cell, ties, differences in ((0, 1, 0), (1, 0, 1)):
        wrong, found = right.clone(), Propagation()
        wrong[cell] = wrong[cell].flip(0)
        _compare([right, wrong], straightforward, found)
        assert (found.tied_cells, found.different_cells, found.other_labels) == (ties, differences, differences)


def test_trackers_follow_all_queries_from_the_frames_they_should(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: dict[FeatureTracker, list[int]] = {}
    step = FeatureTracker.step

    def watch(self: FeatureTracker, tokens, state):  # type: ignore[no-untyped-def]
        tracks, state = step(self, tokens, state)
        tracked.setdefault(self, []).append(len(tracks.points.ids) + len(tracks.boxes.ids))
        return tracks, state

    monkeypatch.setattr(FeatureTracker, "step", watch)
    measure(engine, TrackingOptions(context=3, points=16, boxes=8, steps=2))
    of_one, of_eight = list(tracked.values())[:2]
    assert of_one[:3] == [0, 24, 24]
    assert of_eight[:9] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert {numbers[-1] for numbers in tracked.values()} == {24}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "1 or more for steps, got 0"),
        ({"context": 0}, "1 or more for context"),
        ({"points": -1}, "something to track"),
        ({"points": 0, "boxes": 0}, "something to track"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingOptions(**wrong)  # type: ignore[arg-type]


def test_boxes_alone_can_be_measured(engine: Engine) -> None:
    found, _ = measure(engine, TrackingOptions(context=1, points=0, boxes=2, steps=1))
    assert all(len(tracker.times) == 1 for tracker in found.trackers)

"""The training-free tracker: scenes that are followed, and the contract of trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, Query, QueryError, Status, Tracker, Tracks
from rvm_core.tracking.feature_tracker import FeatureState, FeatureTracker
from rvm_core.tracking.propagation import TrackingConfig, propagate_labels
from rvm_core.tracking.segments import box_coverage

EXACT = 1e-4
"""Between two float32 ways to the same position, in cells, or to the same label."""
NEAR = 0.5
"""Of the edges of a box, in cells, where new matches blur the labels."""

GRID = ROWS, COLUMNS = 10, 14
WIDTH = 512
CELLS = ROWS * COLUMNS
TOP, BOTTOM, SIZE = 3, 7, 4
"""First row of the object in the scenes, the row after its last one, and its columns."""
SCREEN = 10
"""First column of what it can be behind."""

POINTS = (PointQuery(id=5, x=4.5, y=3.5), PointQuery(id=2**64 - 1, x=9.2, y=6.6))
BOX = BoxQuery(id=9, x_min=2, y_min=3, x_max=6, y_max=7)
MASK = MaskQuery(id=3, mask=box_coverage((7, 1, 12, 4), GRID))
ALL: tuple[Query, ...] = (*POINTS, BOX, MASK)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=Generator().manual_seed(seed))


def scene(x: int) -> Tensor:
    """Tokens of an object with its left side at column `x`, between wallpaper and a screen."""
    grid = noise(3, 3).repeat(4, 5, 1)[:ROWS, :COLUMNS]
    grid[TOP:BOTTOM, x : x + SIZE] = noise(BOTTOM - TOP, SIZE, seed=1)[:, : COLUMNS - x]
    grid[:, SCREEN:] = noise(ROWS, COLUMNS - SCREEN, seed=2)
    return torch.cat([noise(1, seed=3), grid.flatten(0, 1)])


def object_at(x: float) -> tuple[BoxQuery, MaskQuery, PointQuery]:
    """The object of a scene as a box, as a mask and as a point in it."""
    box = (x, TOP, x + SIZE, BOTTOM)
    mask = MaskQuery(id=2, mask=box_coverage(box, GRID))
    return (
        BoxQuery(id=1, x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]),
        mask,
        PointQuery(id=3, x=x + 1.5, y=4.5),
    )


@pytest.fixture(scope="module")
def tracker() -> FeatureTracker:
    contract: Tracker[FeatureState]
    contract = tracker = FeatureTracker(GRID, TrackingConfig(n_context=6))
    assert contract.name == "label_propagation"
    assert contract.grid == GRID
    return tracker


@pytest.fixture(scope="module")
def video() -> Tensor:
    """30 frames of features that change so much that many places are more like others, (T, N+1, D)."""
    return 0.3 * noise(CELLS + 1) + noise(30, CELLS + 1, seed=4)


def seen(tracker: FeatureTracker, frames: Iterable[Tensor], queries: Sequence[Query] = ()) -> FeatureState:
    """The state after these frames, of which the queries were given in the last."""
    state = tracker.init_state()
    for frame in frames:
        _, state = tracker.step(frame, state)
    return tracker.add(queries, state)


def run(tracker: FeatureTracker, state: FeatureState, frames: Iterable[Tensor]) -> tuple[list[Tracks], FeatureState]:
    tracks = []
    for frame in frames:
        said, state = tracker.step(frame, state)
        tracks.append(said)
    return tracks, state


def assert_equal(tracks: Tracks, others: Tracks, atol: float = 0) -> None:
    for kind in dataclasses.fields(Tracks):
        one, other = getattr(tracks, kind.name), getattr(others, kind.name)
        for name, value in vars(one).items():
            np.testing.assert_allclose(value, getattr(other, name), atol=atol, rtol=0, err_msg=f"{kind.name}.{name}")


# Scenes.


def test_moving_object_is_followed(tracker: FeatureTracker) -> None:
    """As a box, as a mask and as a point, each told in the frame after the one it was given in."""
    state = seen(tracker, [scene(1)], object_at(1))
    for x in (1, 2, 3, 4, 5, 6, 6, 5):
        tracks, state = tracker.step(scene(x), state)
        np.testing.assert_allclose(tracks.boxes.xyxy, [[x, TOP, x + SIZE, BOTTOM]], atol=0.1)
        np.testing.assert_allclose(tracks.points.xy, [[x + 1.5, 4.5]], atol=0.1)
        np.testing.assert_array_equal(tracks.masks.soft[0] > 0.5, box_coverage((x, TOP, x + SIZE, BOTTOM), GRID) > 0)
        for said in (tracks.boxes, tracks.points, tracks.masks):
            assert said.status.tolist() == [Status.VISIBLE]
            assert (said.confidence > 0.5).all()


def test_partly_hidden_object_is_seen(tracker: FeatureTracker) -> None:
    """The box is around what is seen of it, less surely so, and as large as before when all of it is back."""
    tracks, _ = run(tracker, seen(tracker, [scene(5)], object_at(5)), map(scene, (6, 7, 8, 9, 9, 8, 7, 6, 5)))
    for x, said in zip((6, 7, 8, 9, 9, 8, 7, 6, 5), tracks, strict=True):
        assert said.boxes.status.tolist() == said.masks.status.tolist() == [Status.VISIBLE]
        np.testing.assert_allclose(said.boxes.xyxy, [[x, TOP, min(x + SIZE, SCREEN), BOTTOM]], atol=NEAR)
    confidence = [float(said.boxes.confidence[0]) for said in tracks]
    assert confidence[0] > confidence[1] > confidence[2] > confidence[3]
    assert confidence[-1] > 0.5


@pytest.mark.parametrize("frames", [1, 4, 15])
def test_object_that_disappears_is_found_again(tracker: FeatureTracker, frames: int) -> None:
    """Also elsewhere, and when the frames that are remembered show nothing of it."""
    gone, state = run(tracker, seen(tracker, [scene(6)], object_at(6)), [scene(6), *[scene(SCREEN)] * frames])
    for said in gone[1:]:
        for kind in (said.boxes, said.masks, said.points):
            assert kind.status.tolist() == [Status.OCCLUDED]
            assert (kind.confidence < 0.5).all()
        np.testing.assert_allclose(said.boxes.xyxy, [[6, TOP, SCREEN, BOTTOM]], atol=0.1)
    back, _ = run(tracker, state, [scene(4)] * 3)
    assert back[-1].boxes.status.tolist() == back[-1].masks.status.tolist() == [Status.VISIBLE]
    np.testing.assert_allclose(back[-1].boxes.xyxy, [[4, TOP, 4 + SIZE, BOTTOM]], atol=NEAR)
    assert back[-1].points.status.tolist() == [Status.VISIBLE]
    np.testing.assert_allclose(back[-1].points.xy, [[5.5, 4.5]], atol=0.1)


@pytest.mark.parametrize("radius", [None, 3.0])
def test_soft_masks_are_propagated_labels(video: Tensor, radius: float | None) -> None:
    """Of features without their mean; each mask by itself, whatever else is followed."""
    config = TrackingConfig(n_context=7, top_k=5, radius=radius)
    tracker, random = FeatureTracker(GRID, config), np.random.default_rng(0)
    masks = random.uniform(size=(3, ROWS, COLUMNS)).astype(np.float32)
    state = seen(tracker, video[:1], [*POINTS, *(MaskQuery(id=i, mask=mask) for i, mask in enumerate(masks))])
    tracks, _ = run(tracker, state, video[1:14])
    cells = video[:14, 1:] - video[:14, 1:].mean(1, keepdim=True)
    expected = propagate_labels(
        cells.unflatten(1, GRID),
        torch.from_numpy(masks).permute(1, 2, 0),
        n_context=7,
        top_k=5,
        radius=radius,
    )
    for said, labels in zip(tracks, expected[1:], strict=True):
        np.testing.assert_allclose(said.masks.soft, labels.permute(2, 0, 1), atol=EXACT)


# The contract.


def test_types_are_those_of_the_contract(tracker: FeatureTracker, video: Tensor) -> None:
    for queries in (ALL, (), (BOX,), (MASK,), POINTS):
        (tracks, *_), _ = run(tracker, seen(tracker, video[:1], queries), video[1:2])
        places = {"points": tracks.points.xy, "boxes": tracks.boxes.xyxy, "masks": tracks.masks.soft}
        shapes = {"points": (2,), "boxes": (4,), "masks": GRID}
        kinds = {"points": PointQuery, "boxes": BoxQuery, "masks": MaskQuery}
        for name, place in places.items():
            said = getattr(tracks, name)
            assert said.ids.tolist() == [query.id for query in queries if isinstance(query, kinds[name])]
            assert (said.ids.dtype, said.status.dtype, said.confidence.dtype) == (np.uint64, np.uint8, np.float32)
            assert place.dtype == np.float32 and place.shape == (len(said.ids), *shapes[name])
            assert ((said.confidence >= 0) & (said.confidence <= 1)).all()


def test_new_state_says_nothing(tracker: FeatureTracker, video: Tensor) -> None:
    state = tracker.init_state()
    assert tracker.remembered(state) == 0
    with pytest.raises(QueryError, match="not remembered, only the newest 0 are"):
        tracker.add(POINTS, state)
    tracks, state = tracker.step(video[0], state)
    assert_equal(tracks, dataclasses.replace(Tracks(), masks=tracks.masks))
    assert len(tracks.masks.ids) == 0
    assert tracker.remembered(state) == 1


@pytest.mark.parametrize("age", range(6))
def test_late_query_is_as_one_in_time(tracker: FeatureTracker, video: Tensor, age: int) -> None:
    """Whether its frames fill the memory or not, and whatever is followed already."""
    for newest in (6, 20):
        _, late = run(tracker, seen(tracker, video[:3], [BoxQuery(id=1, x_min=0, y_min=0, x_max=5, y_max=5)]), ())
        _, late = run(tracker, late, video[3:newest])
        late = tracker.add(ALL, late, age=age)
        _, in_time = run(tracker, seen(tracker, video[: newest - age], ALL), video[newest - age : newest])
        assert {int(i) for i in late.ids} == {1, *in_time.ids}
        lates, _ = run(tracker, tracker.remove([1], late), video[newest : newest + 8])
        in_times, _ = run(tracker, in_time, video[newest : newest + 8])
        for one, other in zip(lates, in_times, strict=True):
            assert_equal(one, other, atol=EXACT)


def test_queries_that_come_one_by_one_are_as_together(tracker: FeatureTracker, video: Tensor) -> None:
    together, one_by_one = seen(tracker, video[:4], ALL), seen(tracker, video[:4])
    for query in ALL:
        one_by_one = tracker.add([query], one_by_one)
    for one, other in zip(
        run(tracker, together, video[4:10])[0], run(tracker, one_by_one, video[4:10])[0], strict=True
    ):
        assert_equal(one, other, atol=EXACT)


def test_state_is_a_value(tracker: FeatureTracker, video: Tensor) -> None:
    """Whatever is done with a state, it stays as it is, and says the same when it is stepped again."""
    state = seen(tracker, video[:5], ALL)
    expected, after = run(tracker, state, video[5:8])
    more = tracker.add([PointQuery(id=77, x=1, y=1), dataclasses.replace(BOX, id=78)], state, age=2)
    fewer = tracker.remove([5, 9, 3, 12345], more)
    with pytest.raises(QueryError):
        tracker.add(ALL, state)
    with pytest.raises(ValueError):
        tracker.step(video[5, 1:], state)
    with pytest.raises(RuntimeError):
        tracker.step(video[5, :, 1:], state)
    run(tracker, fewer, video[9:20])
    assert state.ids == {5, 2**64 - 1, 9, 3}
    assert more.ids == {*state.ids, 77, 78}
    assert fewer.ids == {2**64 - 1, 77, 78}
    for one, other in zip(run(tracker, state, video[5:8])[0], expected, strict=True):
        assert_equal(one, other)
    assert_equal(run(tracker, after, video[8:9])[0][0], run(tracker, after, video[8:9])[0][0])


def test_tracks_do_not_depend_on_others(tracker: FeatureTracker, video: Tensor) -> None:
    state = seen(tracker, video[:5], ALL)
    expected, _ = run(tracker, state, video[5:12])
    kept, _ = run(tracker, tracker.remove([9], state), video[5:12])
    for one, other in zip(kept, expected, strict=True):
        assert_equal(one, dataclasses.replace(other, boxes=one.boxes), atol=EXACT)
    others: list[Query] = [
        PointQuery(id=70, x=1, y=1),
        dataclasses.replace(BOX, id=71),
        dataclasses.replace(MASK, id=72),
    ]
    _, crowded = run(tracker, tracker.add(others, state, age=3), video[5:8])
    tracks, _ = run(tracker, tracker.remove([70, 71, 72], crowded), video[8:12])
    for one, other in zip(tracks, expected[3:], strict=True):
        assert_equal(one, other, atol=EXACT)


def test_removed_tracks_end(tracker: FeatureTracker, video: Tensor) -> None:
    state = seen(tracker, video[:2], [*ALL, dataclasses.replace(BOX, id=10), dataclasses.replace(MASK, id=11)])
    state = tracker.remove([9, 5, 404, -1, 2**70], state)
    (tracks,), state = run(tracker, state, video[2:3])
    assert tracks.points.ids.tolist() == [2**64 - 1]
    assert tracks.boxes.ids.tolist() == [10]
    assert tracks.masks.ids.tolist() == [3, 11]
    empty = tracker.remove(state.ids, state)
    assert empty.ids == set() and empty.groups == ()
    (tracks,), empty = run(tracker, empty, video[3:4])
    assert len(tracks.points.ids) == len(tracks.boxes.ids) == len(tracks.masks.ids) == 0
    # Who gives the ids decides whether one is used again.
    assert tracker.add(ALL, empty).ids == {5, 2**64 - 1, 9, 3}


def tensors_of(value: object, found: dict[int, int]) -> dict[int, int]:
    """Bytes of every array and tensor that is held by this value, by their address."""
    if isinstance(value, Tensor):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        found[value.__array_interface__["data"][0]] = value.nbytes
    elif dataclasses.is_dataclass(value):
        for part in vars(value).values():
            tensors_of(part, found)
    elif isinstance(value, tuple):
        for part in value:
            tensors_of(part, found)
    else:
        assert isinstance(value, (int, float, bool, type(None))), f"{type(value)} in the state"
    return found


def test_memory_is_bounded(tracker: FeatureTracker, video: Tensor) -> None:
    """From the frame on in which the memory is full; then each first frame costs as much as one in the memory."""
    state = seen(tracker, video[:2], ALL)
    sizes = []
    for index in range(100):
        _, state = tracker.step(video[index % 30], state)
        assert tracker.remembered(state) == len(state.memory) <= 6
        found = tensors_of(state, {})
        sizes.append((len(found), sum(found.values())))
    assert sizes[99] == sizes[9]
    assert len(set(sizes[9:])) == 1
    frame = CELLS * WIDTH * 4 * (1 if state.memory[0].coarse is None else 1.6)
    assert sizes[-1][1] < 8 * frame
    emptied = tracker.remove(state.ids, state)
    assert sum(tensors_of(emptied, {}).values()) < 7 * frame


@pytest.mark.parametrize(
    ("queries", "age", "reason"),
    [
        (ALL, 6, "the frame 6 frames ago is not remembered, only the newest 6 are"),
        (ALL, -1, "the frame -1 frames ago is not remembered"),
        ([PointQuery(id=50, x=1, y=1)], 0, "id 50 is in use"),
        ([PointQuery(id=1, x=1, y=1), BoxQuery(id=1, x_min=0, y_min=0, x_max=1, y_max=1)], 0, "id 1 is in use"),
        ([BOX, PointQuery(id=1, x=15, y=1)], 0, r"point \(15, 1\) is outside of the grid of 14x10 cells"),
        ([PointQuery(id=1, x=1, y=float("nan"))], 0, "is not finite"),
        ([dataclasses.replace(BOX, x_max=2)], 0, "is empty"),
        ([MaskQuery(id=1, mask=np.zeros(GRID, np.float32))], 0, "mask is empty"),
        ([MaskQuery(id=1, mask=np.ones((COLUMNS, ROWS), np.float32))], 0, "expected a mask of 14x10 cells"),
        ([PointQuery(id=-1, x=1, y=1)], 0, "id -1 is not a number of 64 bits"),
    ],
)
def test_queries_that_are_refused(
    tracker: FeatureTracker, video: Tensor, queries: Sequence[Query], age: int, reason: str
) -> None:
    state = seen(tracker, video[:8], [PointQuery(id=50, x=2, y=2)])
    with pytest.raises(QueryError, match=reason):
        tracker.add(queries, state, age=age)
    assert state.ids == {50}


def test_tokens_of_another_grid_are_refused(tracker: FeatureTracker) -> None:
    for shape in [(CELLS, 8), (CELLS + 2, 8), (1, CELLS + 1, 8), (CELLS + 1,)]:
        with pytest.raises(ValueError, match=r"expected tokens \(141, D\) for a grid \(10, 14\), got"):
            tracker.step(torch.zeros(shape), tracker.init_state())


def test_defaults_are_those_of_the_release() -> None:
    tracker = FeatureTracker((1, 1))
    state = tracker.init_state()
    for _ in range(25):
        _, state = tracker.step(torch.zeros(2, 4), state)
    assert tracker.remembered(state) == TrackingConfig().n_context == 20


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_without_structure_do_no_harm(tracker: FeatureTracker, value: float) -> None:
    flat = torch.full((CELLS + 1, WIDTH), value)
    tracks, state = run(tracker, seen(tracker, [scene(4)], ALL), [flat] * 3)
    for said in tracks:
        for kind in (said.points, said.boxes, said.masks):
            assert all(np.isfinite(array).all() for array in vars(kind).values())
    tracks, _ = run(tracker, seen(tracker, [flat], ALL), [flat] * 2)
    assert np.isfinite(tracks[-1].boxes.xyxy).all() and np.isfinite(tracks[-1].points.xy).all()


def test_no_gradient_is_kept(tracker: FeatureTracker, video: Tensor) -> None:
    frame = video[0].clone().requires_grad_()
    _, state = tracker.step(frame, tracker.init_state())
    _, state = tracker.step(frame, tracker.add(ALL, state))
    assert not state.memory[0].exact.requires_grad
    assert not state.points.xy.requires_grad and not state.groups[0].track.newest.requires_grad

"""Label propagation: equal to the release, and frame by frame equal to the whole clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from rvm_core.tracking import matching
from rvm_core.tracking.labels import labels_to_joints, labels_to_mask
from rvm_core.tracking.matching import FrameKeys
from rvm_core.tracking.propagation import LabelPropagator, LabelTrack, TrackingConfig, near_cells, propagate_labels

LABELS = 1e-5
"""Between soft labels in float32: of the release, of the whole clip, and frame by frame."""
PIXELS = 1e-3
"""Between joints of the release and ours, in pixels of a few hundred."""

GRID = (6, 7)
CELLS = GRID[0] * GRID[1]

Golden = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def always_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small frames too, as long as their keys can be screened."""
    monkeypatch.setattr(matching, "_SCREEN_FROM", 0)


both_ways = pytest.mark.parametrize("screen", [False, True], ids=["float32", "screened"])


def clip(frames: int, *, grid: tuple[int, int] = GRID) -> Tensor:
    """Features (T, h, w, D) of places that change so much that many are more like others than like themselves."""
    noise = torch.randn(frames + 1, *grid, 24, generator=Generator().manual_seed(0))
    return noise[0] + 1.5 * noise[1:]


def labels_of(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(*GRID, count, generator=Generator().manual_seed(seed))


def keys_of(features: Tensor, *, screen: bool) -> list[FrameKeys]:
    return [FrameKeys.of(frame.flatten(0, 1), screen=screen) for frame in features]


def remembered(keys: Sequence[FrameKeys], now: int, n_context: int) -> list[FrameKeys]:
    """The last frames before `now`, newest first."""
    return list(keys[max(0, now - n_context) : now])[::-1]


def stream(features: Tensor, labels: Tensor, config: TrackingConfig, *, screen: bool = False) -> Tensor:
    """What `propagate_labels` gives, frame by frame."""
    grid = labels.shape[:2]
    propagator = LabelPropagator((grid[0], grid[1]), config)
    keys = keys_of(features, screen=screen)
    track = propagator.start(keys[0], labels.flatten(0, 1))
    predicted = [track.newest]
    for now in range(1, len(keys)):
        (track,) = propagator.step(keys[now], remembered(keys, now, config.n_context), [track])
        predicted.append(track.newest)
    return torch.stack(predicted).unflatten(1, grid)


# Against the release.


def reference(golden: Golden, name: str) -> tuple[Tensor, Tensor, TrackingConfig]:
    config = TrackingConfig(
        n_context=int(golden["n_context"]), top_k=int(golden["topk"]), temperature=float(golden["temperature"])
    )
    return torch.from_numpy(golden["features"]), torch.from_numpy(golden[name]), config


def assert_reference(soft: Tensor, golden: Golden, name: str) -> None:
    expected = golden["soft_labels" if name == "heatmap" else "pose_soft"]
    assert soft.dtype == torch.float32
    np.testing.assert_allclose(soft, expected, atol=LABELS)
    size = golden["mask"].shape[1:]
    for t, labels in enumerate(soft.numpy()):
        if name == "heatmap":
            mask = labels_to_mask(labels, golden["label_map"], processing_size=(192, 256), size=size)
            np.testing.assert_array_equal(mask, golden["pred_mask"][t])
        else:
            joints = labels_to_joints(labels, size=size)
            np.testing.assert_array_equal((joints != -1).all(axis=-1), golden["pose_visible"][t])
            as_near = np.abs(joints - expected_joints(golden, t)).max(axis=-1) <= PIXELS
            assert as_near.any(axis=0).all(), joints[~as_near.any(axis=0)]


def expected_joints(golden: Golden, t: int) -> np.ndarray:
    """The release's joints and what they are if the sixth best cell takes the place of the fifth, (2, J, 2).

    These differ for joints at the border only, where both cells are corners of the Gaussian and equal up to rounding.
    """
    joints = golden["pose_coords"][t]
    soft = golden["pose_soft"][t].copy()
    planes = soft.reshape(-1, soft.shape[-1])
    cells = np.argsort(-planes, axis=0, kind="stable")[4:6]
    fifth, sixth = np.take_along_axis(planes, cells, axis=0)
    np.put_along_axis(planes, cells[:1], 0, axis=0)
    swapped = labels_to_joints(soft, size=golden["mask"].shape[1:])
    equal = (fifth - sixth <= LABELS * fifth)[1:, None]
    assert equal.mean() < 0.2
    return np.stack([joints, np.where(equal, swapped, joints)])


def test_defaults_are_those_of_the_release(golden: Golden) -> None:
    assert reference(golden, "heatmap")[2] == TrackingConfig()


@pytest.mark.parametrize("name", ["heatmap", "pose_heatmap"])
def test_clip_is_that_of_the_release(golden: Golden, name: str) -> None:
    features, labels, config = reference(golden, name)
    soft = propagate_labels(
        features, labels, n_context=config.n_context, top_k=config.top_k, temperature=config.temperature
    )
    assert_reference(soft, golden, name)


@both_ways
@pytest.mark.parametrize("name", ["heatmap", "pose_heatmap"])
def test_stream_is_that_of_the_release(
    golden: Golden, name: str, screen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screened = 0
    rescore = matching.Context._rescore

    def counted(context: matching.Context, *given: Any) -> Tensor:
        nonlocal screened
        screened += 1
        return rescore(context, *given)

    monkeypatch.setattr(matching.Context, "_rescore", counted)
    features, labels, config = reference(golden, name)
    assert_reference(stream(features, labels, config, screen=screen), golden, name)
    # In each step the queue and the first frame; in the first step only that.
    assert screened == screen * (2 * len(features) - 1)


# Frame by frame against the whole clip.


@both_ways
@pytest.mark.parametrize("radius", [None, 1.0, 1.5, 2.5, 20])
@pytest.mark.parametrize(("n_context", "top_k"), [(20, 7), (6, 7), (4, 3), (1, 2), (3, 1)])
def test_stream_is_as_the_clip(n_context: int, top_k: int, radius: float | None, screen: bool) -> None:
    features, labels = clip(10), labels_of(3)
    config = TrackingConfig(n_context=n_context, top_k=top_k, radius=radius, temperature=0.3)
    expected = propagate_labels(
        features, labels, n_context=n_context, top_k=top_k, radius=radius, temperature=config.temperature
    )
    torch.testing.assert_close(stream(features, labels, config, screen=screen), expected, atol=LABELS, rtol=0)


def test_radius_changes_something_but_not_at_the_first_frame() -> None:
    features, labels = clip(4), labels_of(2)
    free, near = propagate_labels(features, labels), propagate_labels(features, labels, radius=1.5)
    assert (free - near)[1:].abs().amax() > 100 * LABELS
    # The last row of cells comes back at the top: only the first frame has it so far away.
    moved = torch.stack([features[0], features[0].roll(1, dims=0)])
    config = TrackingConfig(n_context=2, top_k=1, radius=1.5)
    torch.testing.assert_close(stream(moved, labels, config)[1, 0], labels[-1], atol=LABELS, rtol=0)


def test_cells_are_near_under_the_radius() -> None:
    near = near_cells(3, 4, 2.0)
    assert near.shape == (12, 12) and near.dtype == torch.bool
    assert near[0].reshape(3, 4).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert torch.equal(near, near.T)


def counted_by_hand(frames: Tensor, first: Tensor, config: TrackingConfig) -> Tensor:
    """The protocol with all copies written out; of equal matches those of the first frame come first."""
    queue = [(frames[0], first)] * config.n_context
    predicted = []
    for frame in frames:
        context = [(frames[0], first), *queue]
        score, cell = (frame @ torch.cat([keys for keys, _ in context]).T).sort(dim=1, descending=True, stable=True)
        weight = (score[:, : config.top_k] / config.temperature).softmax(-1)
        labels = torch.cat([labels for _, labels in context])
        predicted.append((weight[..., None] * labels[cell[:, : config.top_k]]).sum(1))
        queue = [*queue[1:], (frame, predicted[-1])]
    return torch.stack(predicted)


@pytest.mark.parametrize(("n_context", "top_k"), [(1, 5), (2, 7), (3, 7), (5, 7), (7, 7), (12, 7), (20, 3)])
def test_first_frame_counts_as_often_as_it_is_in_the_context(n_context: int, top_k: int) -> None:
    """The copies in the queue are equal to it, so features are used whose products are exact in any order of sums."""
    whole = torch.randint(-64, 65, (10, CELLS, 64), generator=Generator().manual_seed(0))
    frames, labels = (whole[0] + whole[1:]) / 1024, labels_of(3).flatten(0, 1)
    config = TrackingConfig(n_context=n_context, top_k=top_k)
    propagator, keys = LabelPropagator(GRID, config), [FrameKeys(frame, False) for frame in frames]
    tracks = [propagator.start(keys[0], labels)]
    for now in range(1, len(keys)):
        tracks += propagator.step(keys[now], remembered(keys, now, n_context), tracks[-1:])
    expected = counted_by_hand(frames, labels, config)
    torch.testing.assert_close(torch.stack([track.newest for track in tracks]), expected, atol=LABELS, rtol=0)


def test_fewer_cells_than_matches() -> None:
    features, labels = clip(6, grid=(1, 2)), torch.rand(1, 2, 3, generator=Generator().manual_seed(0))
    expected = propagate_labels(features, labels, n_context=2, top_k=50)
    config = TrackingConfig(n_context=2, top_k=50)
    torch.testing.assert_close(stream(features, labels, config), expected, atol=LABELS, rtol=0)


@both_ways
@pytest.mark.parametrize(("n_context", "radius"), [(12, None), (7, None), (8, 2.5)])
def test_labels_that_start_at_different_frames(n_context: int, radius: float | None, screen: bool) -> None:
    """In one propagator, each as if it were alone."""
    starts, features = (0, 0, 3, 7, 11), clip(16)
    config = TrackingConfig(n_context=n_context, radius=radius)
    given = [labels_of(1 + i, seed=i) for i in range(len(starts))]
    propagator, keys = LabelPropagator(GRID, config), keys_of(features, screen=screen)
    tracks: list[LabelTrack] = []
    predicted: list[list[Tensor]] = [[] for _ in starts]
    for now, frame in enumerate(keys):
        tracks = propagator.step(frame, remembered(keys, now, n_context), tracks)
        tracks += [
            propagator.start(frame, labels.flatten(0, 1))
            for start, labels in zip(starts, given, strict=True)
            if start == now
        ]
        for track, sequence in zip(tracks, predicted, strict=False):
            sequence.append(track.newest)
    for start, labels, sequence in zip(starts, given, predicted, strict=True):
        expected = propagate_labels(features[start:], labels, n_context=n_context, radius=radius)
        torch.testing.assert_close(torch.stack(sequence).unflatten(1, GRID), expected, atol=LABELS, rtol=0)


def test_tracks_of_one_frame_share_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, the similarities with the queue are computed once, and once for each first frame."""
    products = 0
    compute = matching.Context.__init__

    def counted(context: matching.Context, query: FrameKeys, frames: Sequence[FrameKeys], **options: object) -> None:
        nonlocal products
        products += len(frames) + len(options.get("anchors", ()))  # type: ignore[arg-type]
        compute(context, query, frames, **options)  # type: ignore[arg-type]

    propagator, keys = LabelPropagator(GRID, TrackingConfig(n_context=5)), keys_of(clip(9), screen=False)
    tracks = [propagator.start(keys[0], labels_of(k).flatten(0, 1)) for k in (1, 2, 3)]
    for now in range(1, 8):
        tracks = propagator.step(keys[now], remembered(keys, now, 5), tracks)
    monkeypatch.setattr(matching.Context, "__init__", counted)
    propagator.step(keys[8], remembered(keys, 8, 5), tracks)
    assert products == 5 + 1
    products = 0
    assert propagator.step(keys[8], remembered(keys, 8, 5), []) == []
    assert products == 0


def test_some_labels_of_a_track_go_on_alone() -> None:
    config, features, labels = TrackingConfig(n_context=4, top_k=3), clip(8), labels_of(4)
    propagator, keys = LabelPropagator(GRID, config), keys_of(features, screen=False)
    track = propagator.start(keys[0], labels.flatten(0, 1))
    for now in range(1, 8):
        if now == 3:
            track = track.keep([2, 0])
        (track,) = propagator.step(keys[now], remembered(keys, now, 4), [track])
    expected = propagate_labels(features, labels, n_context=4, top_k=3)[-1][..., [2, 0]]
    torch.testing.assert_close(track.newest.unflatten(0, GRID), expected, atol=LABELS, rtol=0)


def test_track_is_a_value_of_bounded_size() -> None:
    config = TrackingConfig(n_context=3)
    propagator, keys = LabelPropagator(GRID, config), keys_of(clip(12), screen=False)
    tracks = [propagator.start(keys[0], labels_of(2).flatten(0, 1))]
    for now in range(1, 12):
        tracks += propagator.step(keys[now], remembered(keys, now, 3), tracks[-1:])
    assert [len(track.recent) for track in tracks] == [1, 2] + 10 * [3]
    for before, after in pairwise(tracks):
        assert all(a is b for a, b in zip(before.recent, after.recent[1:], strict=False))
    kept = tracks[5].newest.clone()
    (again,) = propagator.step(keys[6], remembered(keys, 6, 3), [tracks[5]])
    assert torch.equal(again.newest, tracks[6].newest)
    assert torch.equal(tracks[5].newest, kept)


# Settings and shapes.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_context": 0}, "n_context must be positive, got 0"),
        ({"top_k": -1}, "top_k must be positive, got -1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"radius": 0.0}, "radius must be positive or None, got 0.0"),
        ({"radius": -2}, "radius must be positive or None, got -2"),
    ],
)
def test_settings_without_sense_are_refused(setting: Mapping[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**setting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        propagate_labels(clip(1), labels_of(1), **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "labels"),
    [((0, 6, 7, 4), (6, 7, 1)), ((2, 6, 7), (6, 7, 1)), ((2, 6, 7, 4), (6, 7)), ((2, 6, 7, 4), (7, 6, 1))],
)
def test_shapes_that_do_not_fit_are_refused(features: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected features \(T, h, w, D\) and labels \(h, w, K\) of one grid"):
        propagate_labels(torch.zeros(features), torch.zeros(labels))


def test_features_of_other_float_types() -> None:
    features, labels = clip(3).bfloat16(), labels_of(2)
    expected = propagate_labels(features.float(), labels)
    torch.testing.assert_close(propagate_labels(features, labels.double()), expected, atol=LABELS, rtol=0)
    torch.testing.assert_close(stream(features, labels, TrackingConfig()), expected, atol=LABELS, rtol=0)

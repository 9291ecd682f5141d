"""Features that are made once, in memory and on the disk, and those that are made again each time."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rvm_training.feature_cache as feature_cache
from readout_clips import FRAMES, GRID, WIDTH, CellEncoder, DotClips
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.feature_cache import (
    CacheError,
    CachePlan,
    Dtype,
    FeatureStore,
    make_in_memory,
    make_live,
    make_on_disk,
    plan_cache,
)
from rvm_training.readouts.clips import Clip

ALL = slice(None)
FLOAT16 = 1e-3
"""Relative error of numbers kept as float16."""


def plan(count: int = 40, dtype: Dtype = "float16", **options: Any) -> CachePlan:
    return plan_cache(DotClips(count, **options), CellEncoder(), keep=ALL, dtype=dtype)


def same(first: FeatureStore, second: FeatureStore, indices: list[int], tolerance: float) -> None:
    a, b = first.batch(indices), second.batch(indices)
    assert a.features.shape == (len(indices), FRAMES, GRID[0] * GRID[1] + 1, WIDTH)
    assert a.features.dtype == b.features.dtype == torch.float32
    assert torch.allclose(a.features, b.features, rtol=tolerance, atol=tolerance)
    assert a.truth.keys() == b.truth.keys()
    assert all(torch.equal(a.truth[name], b.truth[name]) for name in a.truth)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", FLOAT16)])
def test_kept_features_are_those_that_are_made(tmp_path: Path, dtype: Dtype, tolerance: float) -> None:
    planned = plan(dtype=dtype)
    live = make_live(planned)
    for store in (make_in_memory(planned), make_on_disk(planned, tmp_path)):
        same(store, live, [3, 39, 0, 3], tolerance)


def test_the_size_is_known_before_anything_is_made(tmp_path: Path) -> None:
    planned = plan()
    make_on_disk(planned, tmp_path)
    files = [path for path in (tmp_path / planned.key).glob("*.npy") if path.name != "state.npy"]
    headers = 128 * len(files)
    assert sum(path.stat().st_size for path in files) == planned.num_bytes + headers


def test_a_full_cache_is_not_made_again(tmp_path: Path) -> None:
    first = make_on_disk(plan(), tmp_path)
    encoder = CellEncoder()
    second = make_on_disk(plan_cache(DotClips(40), encoder, keep=ALL), tmp_path)
    # The one clip that tells the shapes.
    assert encoder.clips == 1
    same(first, second, [5, 7], 0.0)


class Broken(Exception):
    pass


class BreakingEncoder(CellEncoder):
    """Fails once it has done so many clips."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def encode(self, videos: Any) -> torch.Tensor:
        if self.clips >= self.after:
            raise Broken
        return super().encode(videos)


def test_a_cache_goes_on_after_a_break(tmp_path: Path) -> None:
    with pytest.raises(Broken):
        make_on_disk(plan_cache(DotClips(40), BreakingEncoder(after=30), keep=ALL), tmp_path)
    encoder, told = CellEncoder(), list[int]()
    store = make_on_disk(plan_cache(DotClips(40), encoder, keep=ALL), tmp_path, progress=told.append)
    assert encoder.clips == 1 + 40 - 32
    assert told == [32, 8]
    same(store, make_in_memory(plan()), [0, 20, 39], 0.0)


def test_processes_make_the_same(tmp_path: Path) -> None:
    same(make_in_memory(plan(), workers=1), make_in_memory(plan()), [0, 17, 39], 0.0)


def test_other_weights_clips_and_dtypes_have_caches_of_their_own() -> None:
    others = [
        plan(),
        plan(41),
        plan(first=7),
        plan(dtype="float32"),
        plan_cache(DotClips(40), CellEncoder(2), keep=ALL),
        plan_cache(DotClips(40), CellEncoder(), keep=slice(0, None, FRAMES - 1)),
    ]
    assert len({planned.key for planned in others}) == len(others)


def test_only_the_kept_frames_are_kept() -> None:
    ends = make_in_memory(plan_cache(DotClips(4), CellEncoder(), keep=slice(0, None, FRAMES - 1), dtype="float32"))
    whole = make_in_memory(plan(4, dtype="float32"))
    assert torch.equal(ends.batch([2]).features, whole.batch([2]).features[:, [0, -1]])


def test_clips_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    planned = plan(20, bad=(0, 4, 19))
    for _ in range(2):
        store = make_on_disk(planned, tmp_path)
        assert store.skipped == 3
        assert not set(store.usable) & {0, 4, 19} and len(store.usable) == 17
    live = make_live(planned)
    assert torch.equal(live.batch([4]).features, live.batch([5]).features)
    assert live.skipped == 1


def test_a_source_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="none of the first 5 clips"):
        plan(5, bad=tuple(range(5)))


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SPARE_BYTES", 1 << 60)
    planned = plan()
    with pytest.raises(CacheError, match="need 0.00 GB .* are free; use fewer clips"):
        make_on_disk(planned, tmp_path)
    assert list((tmp_path / planned.key).glob("*.npy")) == []


def test_two_processes_do_not_fill_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "LOCK_SECONDS", 0.1)
    planned = plan()
    folder = tmp_path / planned.key
    folder.mkdir()
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match="another process"):
            make_on_disk(planned, tmp_path)


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    planned = plan()
    make_on_disk(planned, tmp_path)
    path = tmp_path / planned.key / "features.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CacheError, match="features.npy is no part of this cache.*remove the folder"):
        make_on_disk(planned, tmp_path)
    assert json.loads((tmp_path / planned.key / "cache.json").read_text())["clips"] == 40


class LargeEncoder(CellEncoder):
    """Numbers that float16 has not, or nothing has."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def encode(self, videos: Any) -> torch.Tensor:
        return super().encode(videos) + self.value


@pytest.mark.parametrize(("value", "said"), [(1e6, "--cache-dtype float32"), (np.nan, "not finite")])
def test_features_that_cannot_be_kept_are_refused(value: float, said: str) -> None:
    with pytest.raises(CacheError, match=said):
        make_in_memory(plan_cache(DotClips(3), LargeEncoder(value), keep=ALL))


def test_a_clip_is_the_same_in_any_order() -> None:
    def first(clip: Clip) -> Any:
        return clip.video

    source = DotClips(9)
    assert np.array_equal(first(source.clip(8)), first(DotClips(9).clip(8)))

"""The loader: its batches are what the configuration says, in an order that nothing but the seed changes."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvm_training.data.examples import DataError
from rvm_training.data.loader import Loader, make_loader
from rvm_training.pretrain_batch import ClipBatch, PretrainBatch
from rvm_training.pretrain_config import ClipSamplingConfig, DataConfig, SamplingConfig, SourceConfig
from rvm_training.sampling_config import Crops
from training_clips import level_of, numbered_clips, write_shards

SAMPLING = SamplingConfig(image_size=32)
WAIT_S = 300.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets of 9 and of 5 clips; the clips of the second have the numbers from 30 on."""
    root = tmp_path_factory.mktemp("datasets")
    clips = numbered_clips(35)
    return {"a": write_shards(root / "a", clips[:9]), "b": write_shards(root / "b", clips[30:])}


def data(folders: dict[str, Path], **changes: Any) -> DataConfig:
    sources = tuple(SourceConfig(name=name, path=str(path), weight=1 + (name == "a")) for name, path in folders.items())
    return DataConfig(**{"sources": sources, **changes})


def loader(folders: dict[str, Path], batch: int = 4, seed: int = 0, **changes: Any) -> Loader:
    place = {key: changes.pop(key) for key in ("process_index", "process_count") if key in changes}
    return make_loader(data(folders, **changes), SAMPLING, batch_size=batch, seed=seed, **place)


def clips_of(batch: PretrainBatch) -> list[int]:
    """Numbers of the clips, from their green."""
    levels = batch.source[..., 1].mean(axis=(1, 2, 3))
    return [min(range(40), key=lambda clip: abs(level_of(clip) - level)) for level in levels]


def assert_equal(first: PretrainBatch, second: PretrainBatch) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_shapes_and_types(folders: dict[str, Path]) -> None:
    with loader(folders) as batches:
        batch = next(batches)
    assert isinstance(batch, PretrainBatch)
    assert batch.source.shape == batch.target.shape == (4, 4, 32, 32, 3)
    assert batch.source.dtype == batch.target.dtype == np.uint8
    assert batch.time_gaps.shape == (4, 4) and batch.visible.shape == (4, 4, 1)
    assert batch.time_gaps.dtype == batch.visible.dtype == np.int32


def test_frames_are_those_of_the_gaps(folders: dict[str, Path]) -> None:
    with loader(folders, batch=16) as batches:
        batch = next(batches)
    frame = np.round((batch.source[..., 0].mean(axis=(2, 3)) - level_of(0)) / 3)
    np.testing.assert_array_equal(np.diff(frame, axis=1), 1)
    target = np.round((batch.target[..., 0].mean(axis=(2, 3)) - level_of(0)) / 3)
    np.testing.assert_array_equal(target - frame[:, -1:], batch.time_gaps)


@pytest.mark.parametrize(("crops", "alike"), [("frames", False), ("clip", True)])
def test_a_picture_that_stands_still_is_cropped(tmp_path: Path, crops: Crops, alike: bool) -> None:
    picture = np.random.default_rng(0).integers(256, size=(64, 80, 3)).astype(np.uint8)
    folder = write_shards(tmp_path / "still", [[picture] * 64])
    sampling = SamplingConfig(image_size=32, crops=crops)
    config = DataConfig(sources=(SourceConfig(name="still", path=str(folder)),))
    with make_loader(config, sampling, batch_size=4, seed=0) as batches:
        batch = next(batches)
    frames = np.concatenate([batch.source, batch.target], axis=1)
    assert (frames == frames[:, :1]).all(axis=(1, 2, 3, 4)).tolist() == [alike] * 4
    assert (frames[0] != frames[1]).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_frames_a_stride_apart_cropped_alike(folders: dict[str, Path], workers: int) -> None:
    sampling = ClipSamplingConfig(image_size=32, frames=4, stride=3, mask="tubelets", mask_ratio=0.5)
    sources = tuple(SourceConfig(name=name, path=str(path)) for name, path in folders.items())
    with make_loader(DataConfig(sources=sources, workers=workers), sampling, batch_size=8, seed=0) as batches:
        first, second = next(batches), next(batches)
    assert isinstance(first, ClipBatch) and isinstance(second, ClipBatch)
    assert first.frames.shape == (8, 4, 32, 32, 3) and first.frames.dtype == np.uint8
    assert first.visible.shape == (8, 4) and first.visible.dtype == np.int32 and first.visible.max() < 8
    assert not np.array_equal(first.visible, second.visible)
    frame = np.round((first.frames[..., 0].mean(axis=(2, 3)) - level_of(0)) / 3)
    np.testing.assert_array_equal(np.diff(frame, axis=1), 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_the_same_batches(folders: dict[str, Path], workers: int) -> None:
    with loader(folders) as alone, loader(folders, workers=workers) as together:
        for _ in range(5):
            assert_equal(next(alone), next(together))
        assert alone.get_state() == together.get_state()


def test_a_batch_stays_as_it_is(folders: dict[str, Path]) -> None:
    with loader(folders, workers=1) as batches:
        first = next(batches)
        before = PretrainBatch(*(array.copy() for array in first))
        for _ in range(8):
            next(batches)
    assert_equal(first, before)


def test_seeds_give_other_batches(folders: dict[str, Path]) -> None:
    with loader(folders) as one, loader(folders, seed=1) as two, loader(folders, **{"seed": 0}) as same:
        batch = next(one)
        assert not np.array_equal(batch.time_gaps, next(two).time_gaps)
        assert_equal(batch, next(same))
    with make_loader(data(folders, seed=1), SAMPLING, batch_size=4, seed=0) as other:
        assert not np.array_equal(batch.time_gaps, next(other).time_gaps)


def test_a_clip_that_comes_again_looks_different(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "one", numbered_clips(1))
    with loader({"a": folder}, batch=8) as batches:
        batch = next(batches)
    assert len({tuple(gaps) for gaps in batch.time_gaps.tolist()}) == 8


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_of_a_run_share_its_batches(folders: dict[str, Path], processes: int) -> None:
    with loader(folders, batch=8) as whole:
        expected = [next(whole) for _ in range(3)]
    for index in range(processes):
        with loader(folders, batch=8 // processes, process_index=index, process_count=processes) as part:
            for batch in expected:
                mine = slice(index * 8 // processes, (index + 1) * 8 // processes)
                assert_equal(next(part), PretrainBatch(*(array[mine] for array in batch)))


def test_an_epoch_has_each_clip_once(folders: dict[str, Path]) -> None:
    with loader({"a": folders["a"]}, batch=3, process_count=3) as first:
        parts = [clips_of(next(first))]
    for index in (1, 2):
        with loader({"a": folders["a"]}, batch=3, process_index=index, process_count=3) as other:
            parts.append(clips_of(next(other)))
    assert sorted(sum(parts, [])) == list(range(9))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_at_the_exact_example(folders: dict[str, Path], workers: int) -> None:
    with loader(folders) as whole:
        expected = [next(whole) for _ in range(8)]
    with loader(folders, workers=workers) as first:
        for batch in expected[:5]:
            assert_equal(next(first), batch)
        state = json.loads(json.dumps(first.get_state()))
        next(first)
        first.set_state(state)
        assert_equal(next(first), expected[5])
    with loader(folders) as second:
        second.set_state(state)
        assert second.get_state() == state
        for batch in expected[5:]:
            assert_equal(next(second), batch)


def test_it_goes_on_with_other_batches_and_processes(folders: dict[str, Path]) -> None:
    with loader(folders, batch=2) as whole:
        expected = [next(whole) for _ in range(8)]
    with loader(folders, batch=4, process_index=1, process_count=2) as first:
        assert_equal(next(first), PretrainBatch(*map(np.concatenate, zip(expected[2], expected[3], strict=True))))
        state = first.get_state()
    with loader(folders, batch=2, workers=1) as second:
        second.set_state(state)
        for batch in expected[4:]:
            assert_equal(next(second), batch)


@pytest.mark.parametrize("change", ["seed", "weight", "clips", "missing"])
def test_a_state_of_other_data_is_refused(folders: dict[str, Path], change: str) -> None:
    with loader(folders) as first:
        state = json.loads(json.dumps(first.get_state()))
    if change == "seed":
        state["seed"][0] += 1
    elif change == "missing":
        del state["taken"]
    else:
        state["datasets"]["a"][change == "weight"] += 1
    with loader(folders) as second, pytest.raises(ValueError, match=r"begun with other data|state of a loader"):
        second.set_state(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_clips_are_skipped_and_counted(tmp_path: Path, workers: int) -> None:
    folder = write_shards(tmp_path / "a", numbered_clips(8))
    size = int(np.load(folder / "shard-000000.npy")["offset"][64 * 2])
    os.truncate(folder / "shard-000000.tar", size)  # clips 2 and 3 are gone
    with loader({"a": folder}, batch=8, workers=workers) as batches:
        clips = [clip for _ in range(4) for clip in clips_of(next(batches))]
        state = batches.get_state()
        assert set(clips) == {0, 1, 4, 5, 6, 7} and len(clips) == 32
        # Four epochs, and those that were drawn in place of a damaged one and were damaged too.
        assert state["skipped"]["a"] == batches.skipped["a"] >= 8
        assert "shard-000000.tar: clip" in batches.last_skipped[0]
    with loader({"a": folder}, batch=8) as again:
        assert [clip for _ in range(4) for clip in clips_of(next(again))] == clips
        again.set_state(state)
        assert again.skipped == state["skipped"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_is_gone_ends_the_run(tmp_path: Path, workers: int) -> None:
    folder = write_shards(tmp_path / "a", numbered_clips(3))
    for path in folder.glob("*.npy"):
        path.unlink()
    with loader({"a": folder}, workers=workers) as batches:
        with pytest.raises(DataError, match="20 clips of a after each other cannot be read"):
            next(batches)


def test_a_process_that_dies_is_an_error(folders: dict[str, Path]) -> None:
    with loader(folders, workers=1) as batches:
        before = set(multiprocessing.active_children())
        next(batches)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        with pytest.raises(DataError, match="ended by itself"):
            for _ in range(10):
                next(batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "expected a batch of one or more"),
        ({"process_index": 1}, "expected a batch of one or more"),
        ({"sources": ()}, "no datasets"),
    ],
)
def test_what_makes_no_sense_is_refused(folders: dict[str, Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(folders, **arguments)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the dataset a holds no clips"):
        loader({"a": write_shards(tmp_path / "a", [])})


@pytest.fixture
def child(folders: dict[str, Path]) -> Iterator[subprocess.Popen[str]]:
    """A process with a loader of two processes, which says their numbers and then waits."""
    code = (
        "import sys; from rvm_training.data.loader import make_loader\n"
        "from rvm_training.pretrain_config import *; from multiprocessing import active_children\n"
        "data = DataConfig(sources=(SourceConfig(name='a', path=sys.argv[1]),), workers=2)\n"
        "batches = make_loader(data, SamplingConfig(image_size=32), batch_size=16, seed=0)\n"
        "next(batches); print(*[child.pid for child in active_children()], flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(folders["a"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_its_processes_end_when_it_is_killed(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    pids = [int(word) for word in child.stdout.readline().split()]
    assert len(pids) == 2
    watched = [os.pidfd_open(pid) for pid in pids]
    child.kill()
    for descriptor in watched:
        assert select.select([descriptor], [], [], WAIT_S)[0], "a process outlived the one that started it"
        os.close(descriptor)


def test_the_processes_import_neither_torch_nor_jax() -> None:
    code = "import rvm_training.data.batches, sys; print(*{'torch', 'jax', 'grain'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert result.stdout.strip() == ""

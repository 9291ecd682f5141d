"""The format of shards: single frames are read, damage is found, and what makes no sense is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rvm_training.data.jpeg import JpegError, decode_jpeg, encode_jpeg
from rvm_training.data.shards import ClipError, Shard, ShardError, ShardFolder, read_json
from training_clips import frame_of, numbered_clips, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six clips in two shards, of 3 to 8 frames."""
    return write_shards(tmp_path / "shards", [clip[: 3 + i] for i, clip in enumerate(numbered_clips(6))])


def damage(path: Path, offset: int, data: bytes = b"\x55\xaa\x55\xaa") -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_each_frame_of_each_clip_is_found(folder: Path) -> None:
    shards = ShardFolder(folder)
    assert len(shards) == 6
    for clip in range(6):
        shard, number = shards.locate(clip)
        assert shard.length(number) == 3 + clip
        for frame in range(3 + clip):
            image = shard.read(number, frame)
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8
            assert (frame_of(image[..., 0]), frame_of(image[..., 1])) == (frame, clip)


def test_a_shard_is_a_tar_file_of_samples(folder: Path) -> None:
    """Names up to the first point are the samples' keys, as WebDataset has it."""
    with tarfile.open(folder / "shard-000001.tar") as tar:
        names = [member.name for member in tar]
        about = tar.extractfile("000001.json")
        assert about is not None and json.load(about) == {"made": "by a test"}
        frame = tar.extractfile("000001.002.jpg")
        assert frame is not None and frame_of(decode_jpeg(frame.read())[..., 0]) == 2
    assert names == ["000000.json", *(f"000000.{i:03d}.jpg" for i in range(7))] + [
        "000001.json", *(f"000001.{i:03d}.jpg" for i in range(8))
    ]  # fmt: skip


def test_only_the_frames_that_are_asked_for_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, number = ShardFolder(folder).locate(5)
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read.append(size) or pread(file, size, offset))
    shard.read(number, 2)
    assert len(read) == 1 and read[0] < 2000 < (folder / "shard-000001.tar").stat().st_size


def test_a_flipped_bit_is_found_and_the_other_frames_are_well(folder: Path) -> None:
    shard = Shard(folder, "shard-000000")
    offset = int(np.load(folder / "shard-000000.npy")["offset"][1])
    damage(folder / "shard-000000.tar", offset + 300, b"\x99")
    with pytest.raises(ClipError, match="clip 0, frame 1 is damaged"):
        shard.read(0, 1)
    assert frame_of(shard.read(0, 0)[..., 0]) == 0


def test_the_end_of_a_short_file_is_damaged(folder: Path) -> None:
    os.truncate(folder / "shard-000001.tar", 3000)
    shard, number = ShardFolder(folder).locate(5)
    with pytest.raises(ClipError, match="damaged"):
        shard.read(number, 7)


def test_a_damaged_index_is_an_error_of_its_clips(folder: Path) -> None:
    damage(folder / "shard-000000.npy", 0)
    shards = ShardFolder(folder)
    with pytest.raises(ClipError, match="shard-000000"):
        shards.locate(0)
    assert shards.locate(4)[1] == 0


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), int), np.array([{}], object)])
def test_another_array_is_no_index(folder: Path, array: np.ndarray) -> None:
    np.save(folder / "shard-000000.npy", array, allow_pickle=array.dtype == object)
    with pytest.raises(ShardError, match="shard-000000"):
        Shard(folder, "shard-000000")


def test_a_shard_with_less_clips_than_the_list_says(folder: Path) -> None:
    np.save(folder / "shard-000000.npy", np.load(folder / "shard-000000.npy")[:3], allow_pickle=False)
    with pytest.raises(ClipError, match="has 1 clips, less than"):
        ShardFolder(folder).locate(2)


def test_a_missing_file_is_an_error_of_its_clips(folder: Path) -> None:
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(ClipError, match="shard-000000"):
        ShardFolder(folder).locate(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ("{}", "expected the format rvm-clips-1, got None"),
        ('{"format": "rvm-clips-1", "shards": [{"name": "x"}]}', "name and clips"),
        ('{"format": "rvm-clips-1", "shards": [{"name": "x", "clips": -1}]}', "name and clips"),
    ],
)
def test_a_list_that_makes_no_sense(folder: Path, text: str, message: str) -> None:
    (folder / "shards.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        ShardFolder(folder)


def test_an_unfinished_folder_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "shards.json").unlink()
    with pytest.raises(ShardError, match="not finished: run the command that made it again"):
        ShardFolder(folder)
    with pytest.raises(ShardError, match="not there$"):
        ShardFolder(tmp_path)


def test_many_shards_are_open_one_after_the_other(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "many", [clip[:1] for clip in numbered_clips(40)] * 2, per_shard=1)
    shards = ShardFolder(folder)
    for clip in (*range(80), 0):
        shard, number = shards.locate(clip)
        assert frame_of(shard.read(number, 0)[..., 1]) == clip % 40


def test_another_process_can_have_a_copy(folder: Path) -> None:
    shards = ShardFolder(folder)
    shards.locate(0)
    for again in (copy.copy(shards), pickle.loads(pickle.dumps(shards))):
        assert len(again) == 6 and again.locate(5)[0].length(1) == 8


def test_json_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ShardError, match="cannot be read"):
        read_json(tmp_path / "deep.json")


@pytest.mark.parametrize("data", [b"", b"nothing", encode_jpeg(np.zeros((32, 32, 3), np.uint8), 90)[:200]])
def test_what_is_no_jpeg(data: bytes) -> None:
    with pytest.raises(JpegError):
        decode_jpeg(data)

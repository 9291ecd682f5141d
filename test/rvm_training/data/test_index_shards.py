"""Shards that others wrote become readable; what is no shard is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from rvm_training.data.clip_sources import open_source
from rvm_training.data.index_shards import index_shards
from rvm_training.data.jpeg import encode_jpeg
from rvm_training.data.shards import ShardError
from rvm_training.train_cli import main
from training_clips import frame_of, numbered_clips


def write_tar(path: Path, names: list[str], clips: list[int], frames: list[int]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, clip, frame in zip(names, clips, frames, strict=True):
            data = encode_jpeg(numbered_clips(4, frames=12)[clip][frame], 95) if name.endswith("g") else b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_frames_are_found_by_clip_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "x.tar", ["a/1.json", "a/1.0.jpg", "a/1.10.jpg", "a/1.2.jpg"], [0] * 4, [0, 0, 10, 2])
    write_tar(tmp_path / "y.tar", ["2.f01.jpeg", "2.f00.jpeg", "3.f00.jpeg"], [1, 1, 2], [1, 0, 0])
    assert main(["shards", "--index", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 3 clips, 6 frames in 2 shards\n"
    source = open_source(str(tmp_path), 32)
    seen = []
    for number in range(len(source)):
        clip = source.clip(number)
        images = clip.read(range(clip.length))
        seen.append([(frame_of(image[..., 1]), frame_of(image[..., 0])) for image in images])
    assert seen == [[(0, 0), (0, 2), (0, 10)], [(1, 0), (1, 1)], [(2, 0)]]


def test_what_cannot_be_indexed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="there is none"):
        index_shards(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ShardError, match="cannot be read as a tar file"):
        index_shards(tmp_path)
    write_tar(tmp_path / "x.tar", ["1.json"], [0], [0])
    with pytest.raises(ShardError, match="holds no JPEG frames"):
        index_shards(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_list_is_not_overwritten(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", ["1.0.jpg"], [0], [0])
    (tmp_path / "shards.json").write_text("mine")
    with pytest.raises(ShardError, match="already"):
        index_shards(tmp_path)
    assert (tmp_path / "shards.json").read_text() == "mine"

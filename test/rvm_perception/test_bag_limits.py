"""Bounds on what is read and unpacked of recordings."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

import lz4.frame  # type: ignore[import-untyped] # noqa: E402
from rosbags.rosbag2 import storage_mcap  # noqa: E402

from bag_files import Shot, mcap_of, write_bag  # noqa: E402
from rvm_perception import bag_limits  # noqa: E402
from rvm_perception.bag_limits import bound_rosbags, unpack_lz4, unpack_zstd  # noqa: E402
from rvm_perception.bag_reader import Bag, BagError  # noqa: E402

zstd = bag_limits._zstd()
BOMB_BYTES = 64 << 20


@pytest.mark.parametrize(("pack", "unpack"), [(zstd.compress, unpack_zstd), (lz4.frame.compress, unpack_lz4)])
def test_bombs_are_not_unpacked(pack: object, unpack: object) -> None:
    assert callable(pack) and callable(unpack)
    packed = pack(bytes(BOMB_BYTES))
    assert unpack(packed) == bytes(BOMB_BYTES)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than the 1000 bytes"):
        unpack(packed, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(ValueError, match="ends too early"):
        unpack(packed[:-8])


def test_lengths_are_checked_before_memory_is_taken() -> None:
    bound_rosbags()
    assert storage_mcap.read_exact(io.BytesIO(b"abcd"), 3) == b"abc"
    with pytest.raises(ValueError, match="announces 9223372036854775807 bytes, but 4 are left"):
        storage_mcap.read_exact(io.BytesIO(b"abcd"), 2**63 - 1)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_chunks_that_expand_too_far_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    shots = [Shot(stamp=i).raw() for i in range(2)]
    if compression == "lz4":
        path = mcap_of(tmp_path / "a.mcap", shots)
    else:
        path = write_bag(tmp_path / "bag", shots, compression="chunk")
    monkeypatch.setattr(bag_limits, "MAX_UNPACKED_BYTES", 1000)
    with Bag(path) as bag, pytest.raises(BagError, match="more than the 1000 bytes"):
        list(bag.messages(list(bag.topics)))

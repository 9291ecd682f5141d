"""Tables and features of a replay are read as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from replay_folder import FRAMES, NASTY, REJECTED_FRAME, RESET_FRAME, features, stamp, write_replay
from rvm_core.tracking.base import Status
from rvm_perception.replay_results import ResultsError, read_features, read_frames, read_times, read_tracks


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    write_replay(tmp_path / "replay")
    return tmp_path / "replay" / "front"


def test_processed_frames(camera: Path) -> None:
    frames = read_frames(camera / "frames.csv")
    numbers = [number for number in range(FRAMES + 1) if number != REJECTED_FRAME]
    assert frames.frame.tolist() == numbers and frames.stamp_ns.tolist() == [stamp(number) for number in numbers]
    assert frames.seconds[-1] == pytest.approx(5.0) and frames.index.tolist()[:3] == [0, 1, 2]
    assert [number for number, goes_on in zip(numbers, frames.goes_on, strict=True) if not goes_on] == [0, RESET_FRAME]
    assert frames.resets() == [(pytest.approx(3.8), "gap")]


def test_times(camera: Path) -> None:
    times = read_times(camera / "timing.csv")
    assert list(times) == ["preprocess", "engine", "tracking"] and len(times["engine"]) == FRAMES
    assert times["engine"].mean() > times["preprocess"].mean()
    assert read_times(camera / "gone.csv") == {}


def check_tracks(path: Path, camera: Path) -> None:
    frames = read_frames(camera / "frames.csv")
    first, second = read_tracks(path, frames)
    assert (first.name, second.name) == ("point 1 cat", f"point 2 {NASTY}")
    assert first.frames.tolist() == list(range(18)) and frames.frame[first.frames[-1]] == RESET_FRAME
    assert (first.count(Status.VISIBLE), first.count(Status.OCCLUDED), first.count(Status.LOST)) == (17, 0, 1)
    assert second.count(Status.OCCLUDED) == 5


def test_tracks(camera: Path) -> None:
    check_tracks(camera / "point_tracks.csv", camera)


def test_tracks_in_parquet(camera: Path) -> None:
    csv = pytest.importorskip("pyarrow.csv", reason="parquet is read with pyarrow (extra: replay)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet is read with pyarrow (extra: replay)")
    parquet.write_table(csv.read_csv(camera / "point_tracks.csv"), camera / "point_tracks.parquet")
    check_tracks(camera / "point_tracks.parquet", camera)


def test_features(camera: Path) -> None:
    expected = features([0] * 17 + [1] * 13).astype(np.float32)
    np.testing.assert_array_equal(np.stack(list(read_features(camera / "features.npz"))), expected)


def test_features_in_zarr(camera: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="long features are in zarr (extra: replay)")
    expected = features([0] * 17 + [1] * 13)
    group = zarr.open_group(str(camera / "features.zarr"), mode="w")
    array = group.create_array("features", shape=expected.shape, dtype=expected.dtype, chunks=(7, *expected.shape[1:]))
    array[:] = expected
    np.testing.assert_array_equal(np.stack(list(read_features(camera / "features.zarr"))), expected.astype(np.float32))


def test_what_does_not_fit_is_refused(camera: Path) -> None:
    frames = read_frames(camera / "frames.csv")
    table = camera / "point_tracks.csv"
    lines = table.read_text().splitlines()
    for broken, message in (
        ([lines[0].replace("status", "state"), *lines[1:]], "no column status"),
        ([*lines, "0,7,0,1,cat,visible,1,1,1"], "epoch 7, index 0"),
        ([*lines, "0,0,0,1,cat,gone,1,1,1"], "'gone' does not fit"),
        ([*lines, "0,0"], "index out of range"),
        ([*lines, "0,0,0,x,cat,visible,1,1,1"], "invalid literal"),
    ):
        table.write_text("\n".join(broken) + "\n")
        with pytest.raises(ResultsError, match=message) as error:
            read_tracks(table, frames)
        assert str(table) in str(error.value)
    with pytest.raises(ResultsError, match="No such file"):
        read_frames(camera / "gone.csv")
    data = (camera / "features.npz").read_bytes()
    (camera / "features.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ResultsError, match="features.npz cannot be read"):
        list(read_features(camera / "features.npz"))
    np.savez(camera / "features.npz", features=np.zeros((2, 3)))
    with pytest.raises(ResultsError, match=r"expected features \(T, rows, cols, D\)"):
        list(read_features(camera / "features.npz"))

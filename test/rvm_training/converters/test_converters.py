"""Each converter on a miniature of its dataset: what comes out is what was in, and what is not all of it is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import rvm_core.cli
from readout_folders import (
    SPEED,
    encoded,
    moving_frame,
    tapvid_video,
    write_davis,
    write_kinetics_points,
    write_mot,
    write_robotap,
    write_waymo,
)
from rvm_core.cli import main
from rvm_training.converters.output import new_folder
from rvm_training.datasets.boxes import BoxFolder
from rvm_training.datasets.images import read_image
from rvm_training.datasets.tapvid import TapVidFolder
from rvm_training.evaluation.benchmark import DatasetError


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whether or not this version of the package is installed."""
    entry = rvm_core.cli.EntryPoint("convert-data", "rvm_training.convert_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says as it refuses; checks that it leaves nothing behind."""
    out = Path(arguments[arguments.index("--out") + 1])
    before = sorted(out.parent.iterdir())
    assert main(["convert-data", *map(str, arguments)]) == 1
    assert sorted(out.parent.iterdir()) == before, "something was left behind"
    error = capsys.readouterr().err
    assert error.startswith("rvm: error: ") and error.count("\n") == 1
    return error


def write(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=4))
    return path


def test_davis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_davis(tmp_path), tmp_path / "new" / "davis"
    assert main(["convert-data", "tapvid", str(source), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 videos written to {out}\n"
    dataset = TapVidFolder(out)
    assert dataset.name == "davis" and dataset.ids == ["0000_bike-packing", "0001_blackswan"]
    original = pickle.loads(source.read_bytes())
    for id, video in zip(dataset.ids, original.values(), strict=True):
        converted = dataset.read(id)
        np.testing.assert_array_equal(np.stack([read_image(path) for path in converted.frames]), video["video"])
        np.testing.assert_allclose(converted.points, video["points"].transpose(1, 0, 2), atol=1e-7)
        np.testing.assert_array_equal(converted.occluded, video["occluded"].T)
        assert dataset.files(id) == [out / "videos" / id / "points.npz", *converted.frames]
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["videos"][1] | {"id": ""} == {
        "id": "", "name": "blackswan", "frames": 11, "height": 48, "width": 64, "points": 5,
    }  # fmt: skip
    assert manifest["sources"][0]["name"] == "tapvid_davis.pkl" and len(manifest["sources"][0]["sha256"]) == 64
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "videos"]


def test_kinetics_keeps_the_jpeg_files_as_they_are(tmp_path: Path) -> None:
    source = write_kinetics_points(tmp_path / "source")
    assert main(["convert-data", "tapvid", str(source), "--out", str(tmp_path / "out")]) == 0
    dataset = TapVidFolder(tmp_path / "out")
    assert dataset.name == "kinetics" and len(dataset.ids) == 4
    second = pickle.loads((source / "0001_of_0002.pkl").read_bytes())
    assert [path.read_bytes() for path in dataset.read(dataset.ids[2]).frames] == second[0]["video"].tolist()


def test_robotap_and_names_that_are_given(tmp_path: Path) -> None:
    source = write_robotap(tmp_path / "source")
    assert main(["convert-data", "tapvid", str(source), "--out", str(tmp_path / "a")]) == 0
    assert TapVidFolder(tmp_path / "a").name == "robotap" and len(TapVidFolder(tmp_path / "a").ids) == 2
    one = str(source / "robotap_split1.pkl")
    assert main(["convert-data", "tapvid", one, "--name", "perception_test", "--out", str(tmp_path / "b")]) == 0
    assert TapVidFolder(tmp_path / "b").name == "perception_test" and TapVidFolder(tmp_path / "b").ids == [
        "0000_video_1"
    ]


def test_frames_as_lists(tmp_path: Path) -> None:
    video = tapvid_video(3)
    lists = {
        "jpeg": video | {"video": [encoded(frame, ".jpg") for frame in video["video"]]},
        "arrays": video | {"video": list(video["video"])},
    }
    assert main(["convert-data", "tapvid", str(write(tmp_path / "a.pkl", lists)), "--out", str(tmp_path / "out")]) == 0
    dataset = TapVidFolder(tmp_path / "out")
    arrays = np.stack([read_image(path) for path in dataset.read("0001_arrays").frames])
    np.testing.assert_array_equal(arrays, video["video"])
    assert dataset.read("0000_jpeg").frames[0].suffix == ".jpg" and dataset.name == "other"


@pytest.mark.parametrize("name", ["../../evil", "/etc/x", "a/b", "..", "", "ä b", "x" * 300])
def test_names_of_videos_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "a.pkl", {name: tapvid_video(2)})
    out = tmp_path / "inner" / "out"
    assert main(["convert-data", "tapvid", str(source), "--out", str(out)]) == 0
    assert [path.name[:4] for path in (out / "videos").iterdir()] == ["0000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl", "inner"]
    assert json.loads((out / "dataset.json").read_text())["videos"][0]["name"] == name


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = tmp_path / "was here"
    value = {"good": tapvid_video(2), "bad": tapvid_video(2) | {"points": Command(flag)}}
    error = refused(capsys, "tapvid", write(tmp_path / "a.pkl", value), "--out", tmp_path / "out")
    assert "asks for 'posix' 'system'" in error and str(tmp_path / "a.pkl") in error and not flag.exists()


def changed(**other: Any) -> dict[str, Any]:
    video = tapvid_video(3)
    return {"v": {key: value for key, value in (video | other).items() if value is not None}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected a dict or a list of videos, got int"),
        ({"a": 1}, "video 'a': expected a dict with video, points, occluded, got int"),
        (changed(points=None), "got a dict with occluded, video"),
        (changed(points=np.zeros((5, 3, 3))), "points (P, T, 2)"),
        (changed(points=np.zeros((5, 3, 2), int)), "expected points float (P, T, 2), got int64 (5, 3, 2)"),
        (changed(points=np.zeros((5, 4, 2))), "points are (5, 4, 2) but occluded is (5, 3)"),
        (changed(points=np.full((5, 3, 2), 100.0)), "expected x and y as shares of it"),
        (changed(points=np.full((5, 3, 2), np.nan)), "expected x and y as shares of it"),
        (changed(occluded=np.zeros((5, 3))), "expected occluded bool"),
        (changed(video=np.zeros((3, 8, 8, 4), np.uint8)), "expected video uint8 (T, H, W, 3) or a list of JPEG files"),
        (changed(video=np.zeros((3, 8, 8, 3), np.float32)), "got float32 (3, 8, 8, 3)"),
        (changed(video=np.zeros((4, 8, 8, 3), np.uint8)), "it has 4 frames, but points of 3"),
        (changed(video=[b"no", b"jpeg", b"files"]), "frame 0 is no JPEG file"),
        (changed(video=[b"\xff\xd8 damaged"] * 3), "frame 0 is no image that can be read"),
    ],
)
def test_pickles_that_are_not_tap_vids(
    tmp_path: Path, value: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "tapvid", write(tmp_path / "a.pkl", value), "--out", tmp_path / "out")
    assert message in error and "a.pkl" in error


def test_sources_that_are_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert f"in {tmp_path / 'no'}: it is not there" in refused(capsys, "tapvid", tmp_path / "no", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "looked for tapvid_davis.pkl" in refused(capsys, "tapvid", tmp_path / "empty", "--out", out)
    source = write_kinetics_points(tmp_path / "source")
    (source / "0000_of_0002.pkl").unlink()
    assert "1 are missing, the first is 0000_of_0002.pkl" in refused(capsys, "tapvid", source, "--out", out)
    write_davis(source)
    assert "several datasets (davis, kinetics)" in refused(capsys, "tapvid", source, "--out", out)


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_davis(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    assert f"{out} exists already" in refused(capsys, "tapvid", source, "--out", out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    source = write_davis(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["convert-data", "tapvid", str(source), "--out", str(tmp_path / "out")]) == 4
    assert "the disk is full" in capsys.readouterr().err and not (tmp_path / "out").exists()


def damaged(folder: Path, change: str) -> None:
    """Breaks a converted dataset."""
    id = "0000_bike-packing"
    if change == "manifest":
        (folder / "dataset.json").unlink()
    elif change == "json":
        (folder / "dataset.json").write_text("{")
    elif change == "format":
        (folder / "dataset.json").write_text('{"format": "x", "version": 1}')
    elif change == "id":
        text = (folder / "dataset.json").read_text()
        (folder / "dataset.json").write_text(text.replace(id, "../" + id))
    elif change == "points":
        (folder / "videos" / id / "points.npz").unlink()
    elif change == "frame":
        (folder / "videos" / id / "frames" / "00003.png").unlink()
    elif change == "array":
        (folder / "videos" / id / "points.npz").write_bytes(b"PK")
    elif change == "pickle":
        np.savez(folder / "videos" / id / "points.npz", points=np.array([{}], dtype=object), occluded=np.zeros((1, 1)))
    elif change == "shape":
        np.savez(folder / "videos" / id / "points.npz", points=np.zeros((2, 8, 2)), occluded=np.zeros((3, 8), bool))
    elif change == "length":
        np.savez(folder / "videos" / id / "points.npz", points=np.zeros((2, 7, 2)), occluded=np.zeros((2, 7), bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("manifest", "the list of a converted TAP-Vid dataset in .*dataset.json: it is not there"),
        ("json", "dataset.json is no list"),
        ("format", "expected format rvm-tapvid version 1, got x 1"),
        ("id", "a video with id '../0000_bike-packing'"),
        ("points", r"looked for points.npz in videos/ID of 2 videos, 1 have none \(0000_bike-packing\)"),
        ("frame", "looked for 8 frames, 00000 to 00007, in .*: found 7"),
        ("array", "points.npz cannot be read"),
        ("pickle", "points.npz cannot be read"),
        ("shape", "expected points float"),
        ("length", "has points of 7 frames, but there are 8 in frames/"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, change: str, message: str) -> None:
    out = tmp_path / "out"
    assert main(["convert-data", "tapvid", str(write_davis(tmp_path)), "--out", str(out)]) == 0
    damaged(out, change)
    with pytest.raises(DatasetError, match=message):
        dataset = TapVidFolder(out)
        dataset.read(dataset.ids[0])


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="looked for a converted TAP-Vid dataset"):
        TapVidFolder(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"looked for SEQUENCE/boxes.json in .*: there is none"):
        BoxFolder(tmp_path)


def test_mot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_mot(tmp_path / "train"), tmp_path / "out"
    assert main(["convert-data", "mot", str(source), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"1 video written to {out}\n"
    dataset = BoxFolder(out)
    video = dataset.read("0000_MOT17-02-FRCNN")
    assert video.rate == 10 and len(video.frames) == 40
    # Those that do not count and the car are left out; pixels count from 0 here.
    assert video.ids == ("7", "8")
    np.testing.assert_allclose(video.boxes[0], [[40, 20, 70, 60], [60, 10, 63, 13]])
    np.testing.assert_allclose(video.boxes[5, 0], [40 + 5 * SPEED * 144, 20, 70 + 5 * SPEED * 144, 60])
    assert video.frames[0].read_bytes() == (source / "MOT17-02-FRCNN" / "img1" / "000001.jpg").read_bytes()


def test_one_sequence_of_mot(tmp_path: Path) -> None:
    source = write_mot(tmp_path / "train") / "MOT17-02-FRCNN"
    assert main(["convert-data", "mot", str(source), "--out", str(tmp_path / "out")]) == 0
    assert BoxFolder(tmp_path / "out").ids == ["0000_MOT17-02-FRCNN"]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("seqinfo.ini", None, "looked for SEQUENCE/seqinfo.ini"),
        ("seqinfo.ini", "x", "expected [Sequence] with frameRate and seqLength"),
        ("seqinfo.ini", "[Sequence]\nframeRate=0\nseqLength=40", "expected a frameRate above 0"),
        ("seqinfo.ini", "[Sequence]\nframeRate=5\nseqLength=40\nimDir=../x", "expected the name of a folder"),
        ("seqinfo.ini", "[Sequence]\nframeRate=5\nseqLength=41", "looked for 41 frames"),
        ("gt/gt.txt", None, "the true boxes of a sequence of MOT"),
        ("gt/gt.txt", "1,2,3", "line 1: expected frame, id"),
        ("gt/gt.txt", "1,2,a,4,5,6,1", "line 1: expected frame, id"),
        ("gt/gt.txt", "41,2,3,4,5,6,1", "line 1: frame 41 of 40"),
    ],
)
def test_damaged_mot(
    tmp_path: Path, path: str, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_mot(tmp_path / "train")
    file = source / "MOT17-02-FRCNN" / path
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert message in refused(capsys, "mot", source, "--out", tmp_path / "out")


def test_waymo(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="is of the extra `eval`")
    assert main(["convert-data", "waymo", str(write_waymo(tmp_path / "v2")), "--out", str(tmp_path / "out")]) == 0
    dataset = BoxFolder(tmp_path / "out")
    (id,) = dataset.ids
    video = dataset.read(id)
    assert video.rate == 10 and video.ids == ("object-1",) and len(video.frames) == 6
    for t in range(6):
        x = 60 + t * SPEED * 144
        np.testing.assert_allclose(video.boxes[t, 0], [x - 15, 30, x + 15, 70])
        expected = cv2.imdecode(np.frombuffer(encoded(moving_frame(t, 96, 144, 1), ".jpg"), np.uint8), 1)[..., ::-1]
        np.testing.assert_array_equal(read_image(video.frames[t]), expected)


def test_damaged_waymo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="is of the extra `eval`")
    source, out = write_waymo(tmp_path / "v2"), tmp_path / "out"
    (image,) = (source / "camera_image").iterdir()
    kept = image.read_bytes()
    image.write_bytes(kept[:1000])
    assert "cannot be read as Parquet" in refused(capsys, "waymo", source, "--out", out)
    shutil.copyfile(next((source / "camera_box").iterdir()), image)
    assert "has no column [CameraImageComponent].image" in refused(capsys, "waymo", source, "--out", out)
    image.unlink()
    assert "looked for the same *.parquet" in refused(capsys, "waymo", source, "--out", out)
    (source / "segment.tfrecord").write_text("")
    assert "version 1 is not read" in refused(capsys, "waymo", source, "--out", out)
    assert "it is not there" in refused(capsys, "waymo", tmp_path / "no", "--out", out)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "rvm_perception[eval]" in refused(capsys, "waymo", tmp_path, "--out", tmp_path / "out")


def box_file(folder: Path, **changes: Any) -> Path:
    frame = {"image": "a.jpg", "boxes": [{"id": "1", "xyxy": [0, 0, 10, 10]}]}
    data = {"format": "rvm-boxes", "version": 1, "rate": 10, "frames": [frame, frame]} | changes
    (folder / "s").mkdir()
    (folder / "s" / "a.jpg").write_bytes(encoded(moving_frame(0), ".jpg"))
    (folder / "s" / "boxes.json").write_text(json.dumps(data))
    return folder


def frame_of(**changes: Any) -> list[dict[str, Any]]:
    return [{"image": "a.jpg", "boxes": [{"id": "1", "xyxy": [0, 0, 10, 10]}]} | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "expected format rvm-boxes version 1, got x 1"),
        ({"version": 2}, "got rvm-boxes 2"),
        ({"rate": 0}, "expected a rate above 0"),
        ({"frames": []}, "it has no frames"),
        ({"frames": 3}, "is not as the format"),
        ({"frames": [{"image": "a.jpg"}]}, "there is no 'boxes'"),
        ({"frames": frame_of(image="../a.jpg")}, "expected the path of an image in the folder"),
        ({"frames": frame_of(image="/a.jpg")}, "expected the path of an image in the folder"),
        ({"frames": frame_of(image="b.jpg")}, "1 of them are missing; the first is .*b.jpg"),
        ({"frames": frame_of(boxes=[{"id": "1", "xyxy": [0, 0, 0, 10]}])}, "frame 0: expected a box"),
        ({"frames": frame_of(boxes=[{"id": "1", "xyxy": [0, 0, 5]}])}, "frame 0: expected a box"),
        ({"frames": frame_of(boxes=[{"id": "1", "xyxy": [0, 0, 5, 5]}] * 2)}, "frame 0 has an id twice"),
    ],
)
def test_boxes_that_are_not_as_the_format_has_them(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        BoxFolder(box_file(tmp_path, **changes)).read("s")


def test_a_box_that_is_not_in_every_frame(tmp_path: Path) -> None:
    second = {"image": "a.jpg", "boxes": [{"id": "2", "xyxy": [1, 2, 3, 4]}]}
    video = BoxFolder(box_file(tmp_path, frames=[*frame_of(), second])).read("s")
    assert video.ids == ("1", "2") and np.isnan(video.boxes[1, 0]).all() and np.isnan(video.boxes[0, 1]).all()
    assert video.boxes[1, 1].tolist() == [1, 2, 3, 4]

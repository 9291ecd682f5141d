"""`rvm eval tapvid`, `boxes`, `depth`, `classes` and `pose` from end to end on miniature datasets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rvm_core.cli
from readout_folders import (
    DEPTH_MM,
    SPEED,
    SSV2,
    camera_of,
    tapvid_video,
    write_davis,
    write_kinetics,
    write_mot,
    write_realestate,
    write_scannet,
    write_ssv2,
    write_video,
)
from rvm_core.cli import main
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PointHeadConfig,
    PoseHead,
    PoseHeadConfig,
)
from rvm_core.readout_checkpoint import Readout, save_readout
from rvm_core.tracking.base import BoxQuery, BoxTracks, PointQuery, PointTracks, Query, Status, Tracks
from rvm_training.converters.tapvid import convert_tapvid
from rvm_training.datasets.boxes import BoxVideo
from rvm_training.datasets.clips import clip_indices, count_frames, read_video_frames
from rvm_training.datasets.realestate import RealEstateFolder, relative_pose
from rvm_training.datasets.scannet import ScanNetFolder
from rvm_training.datasets.tapvid import TapVidFolder
from rvm_training.datasets.video_classes import open_classes
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluators import box_tracking, point_tracking
from rvm_training.evaluators.box_tracking import BoxTracking, to_middle
from rvm_training.evaluators.point_tracking import PROTOCOLS, PointTracking, make_task
from rvm_training.evaluators.pose import CUBE

WIDTH = 64
"""Of the tiny model's features."""
SMALL: dict[str, Any] = {"features": WIDTH, "channels": 8, "num_heads": 2}
TRACKS: dict[str, Any] = SMALL | {"fourier_bases": 2, "query_hidden": 8, "query_width": 8}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whether or not this version of the package is installed."""
    entry = rvm_core.cli.EntryPoint("eval", "rvm_training.eval_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])


@pytest.fixture
def evaluate(tiny_path: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a benchmark with the tiny model and returns its report."""

    def run(name: str, data: Path, *options: str | Path, expected: int = 0) -> dict[str, Any]:
        out = tmp_path / "results"
        arguments = ["eval", name, "--data", data, "--weights", tiny_path, "--out", out, *options]
        assert main([str(argument) for argument in arguments]) == expected
        folder = out / name
        for suffix in ("json", "csv", "html"):
            assert (folder / f"report.{suffix}").stat().st_size > 0
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        for video in report["videos"]:
            for picture in video["pictures"]:
                assert cv2.imread(str(folder / picture["path"])) is not None
        return report

    return run


def head_file(path: Path, head: Readout, *, output: Sequence[float] | None = None) -> Path:
    """Saves a head; `output`: what it is to say, whatever it sees."""
    if output is not None:
        for module in head.modules():
            if isinstance(module, nn.Module) and hasattr(module, "output"):
                with torch.no_grad():
                    module.output.weight.zero_()
                    module.output.bias.copy_(torch.tensor(output))
    save_readout(head, path)
    return path


def converted(folder: Path, source: Path, name: str | None = None) -> Path:
    convert_tapvid(source, folder, name, lambda text, done, total: None)
    return folder


# Points


class CountingEncoder:
    """Features that hold nothing but how far the picture has moved, which `MovingTracker` needs."""

    name, random, width = "counting", True, 1

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        return {}

    def encode(self, frames: Iterable[np.ndarray], image_size: tuple[int, int], **options: Any) -> Iterator[Tensor]:
        for frame in frames:
            yield torch.full((1, 1), float(frame[0, 0, 0]))


class MovingTracker:
    """Knows that everything moves by `SPEED` of 16 columns for each number that the picture tells, in either way."""

    name = "moving"
    grid = (16, 16)

    def init_state(self) -> tuple[float, tuple[tuple[Query, float], ...]]:
        return 0.0, ()

    def remembered(self, state: Any) -> int:
        return 1

    def add(self, queries: Sequence[Query], state: Any, *, age: int = 0) -> Any:
        return state[0], state[1] + tuple((query, state[0]) for query in queries)

    def remove(self, ids: Collection[int], state: Any) -> Any:
        return state

    def step(self, tokens: Tensor, state: Any) -> tuple[Tracks, Any]:
        now, asked = float(tokens[0, 0]), state[1]
        status = {"ids": np.array([query.id for query, _ in asked], np.uint64)}
        status |= {"status": np.full(len(asked), Status.VISIBLE, np.uint8)}
        status |= {"confidence": np.ones(len(asked), np.float32)}
        moved = [(query, (now - start) * SPEED * 16) for query, start in asked]
        if any(isinstance(query, BoxQuery) for query, _ in moved):
            corners = [(q.x_min + x, q.y_min, q.x_max + x, q.y_max) for q, x in moved if isinstance(q, BoxQuery)]
            return Tracks(boxes=BoxTracks(xyxy=np.array(corners, np.float32), **status)), (now, asked)
        places = [(q.x + x, q.y) for q, x in moved if isinstance(q, PointQuery)]
        return Tracks(points=PointTracks(xy=np.array(places, np.float32).reshape(-1, 2), **status)), (now, asked)


def numbered_video(frames: int) -> dict[str, Any]:
    """A video whose frames tell their numbers."""
    video = tapvid_video(frames)
    numbers = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return video | {"video": np.broadcast_to(numbers, (frames, 48, 64, 3)).copy()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_tracker_has_every_position_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: point_tracking.Protocol
) -> None:
    """Backwards too, and whatever frames the protocol takes; it says of everything that it is visible."""
    import pickle

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"v": numbered_video(62)}, protocol=4))
    dataset = TapVidFolder(converted(tmp_path / "out", tmp_path / "a.pkl"))
    monkeypatch.setattr(point_tracking, "create_tracker", lambda *args, **options: MovingTracker())
    benchmark = PointTracking(dataset, CountingEncoder(), protocol=protocol)
    shares: list[float] = []
    result = benchmark.evaluate("0000_v", pictures=True, advance=shares.append)
    assert result.scores["position_accuracy"] == 1.0
    assert shares == sorted(shares) and shares[-1] == 1.0
    # Frames of the query do not count; point k is hidden in the first k frames, the last one in the last two as well.
    if protocol == "first":
        counted, hidden = sum(61 - k for k in range(5)), 2
    elif protocol == "4ds":
        counted, hidden = 15, 0
    else:
        queries = [sum(t % 5 == 0 and t >= k and not (k == 4 and t >= 60) for t in range(62)) for k in range(5)]
        counted, hidden = 61 * sum(queries), sum(k * queries[k] for k in range(5)) + 2 * queries[4]
    assert result.scores["occlusion_accuracy"] == pytest.approx(1 - hidden / counted)
    assert result.scores["queries"] == {"first": 5, "4ds": 1}.get(protocol) or protocol == "strided"
    (row,) = benchmark.aggregate({"0000_v": result.scores}).rows
    assert row.values["average_jaccard"] == pytest.approx(result.scores["average_jaccard"])


def test_the_queries_of_4ds(tmp_path: Path) -> None:
    dataset = TapVidFolder(converted(tmp_path / "out", write_davis(tmp_path, {"short": 60, "long": 70})))
    video = dataset.read("0001_long")
    task = make_task(video, "4ds")
    assert [path.stem for path in task.frames] == [f"{t:05d}" for t in range(0, 61, 4)]
    # Only the first point is seen in the first frame.
    assert task.starts.tolist() == [0] and task.mode == "first"
    np.testing.assert_allclose(task.points[:, 0], video.points[0:61:4, 0])
    with pytest.raises(DatasetError, match="protocol 4ds needs 61 frames, the video has 60"):
        make_task(dataset.read("0000_short"), "4ds")


@pytest.mark.parametrize("protocol", ["first", "strided"])
def test_tapvid_without_training(tmp_path: Path, evaluate: Callable[..., dict[str, Any]], protocol: str) -> None:
    data = converted(tmp_path / "davis", write_davis(tmp_path))
    report = evaluate("tapvid", data, "--size", "64x64", "--protocol", protocol)
    assert [video["id"] for video in report["videos"]] == ["0000_bike-packing", "0001_blackswan"]
    (row,) = report["rows"]
    assert set(row["values"]) == {"average_jaccard", "position_accuracy", "occlusion_accuracy"}
    assert all(0 <= value <= 1 for value in row["values"].values())
    assert report["published"] == [] and "64x64" in " ".join(report["not_comparable"])
    assert report["identity"]["settings"]["protocol"] == protocol
    again = evaluate("tapvid", data, "--size", "64x64", "--protocol", protocol)
    assert again["rows"] == report["rows"] and again["fingerprint"] == report["fingerprint"]


def test_tapvid_with_a_head_beside_published_values(
    tmp_path: Path, evaluate: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    data = converted(tmp_path / "data", write_davis(tmp_path, {"a": 62, "short": 9}), "perception_test")
    head = head_file(tmp_path / "points.safetensors", PointHead(PointHeadConfig(**TRACKS)))
    report = evaluate("tapvid", data, "--head", head, "--size", "64x64", "--protocol", "4ds", expected=3)
    assert [row["values"]["average_jaccard"] for row in report["published"]][:2] == [0.773, 0.783]
    assert report["identity"]["settings"]["tracker"] == "window_heads+label_propagation"
    assert len(report["identity"]["settings"]["head"]) == 64
    assert "needs 61 frames" in report["failed"]["0001_short"]
    shown = capsys.readouterr().out
    assert "RVM-L" in shown and "77.3" in shown


def test_another_head_does_the_videos_again(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = converted(tmp_path / "data", write_davis(tmp_path, {"a": 6}))
    fingerprints = set()
    for seed in (0, 1):
        head = head_file(tmp_path / "points.safetensors", PointHead(PointHeadConfig(**TRACKS), seed=seed))
        fingerprints.add(evaluate("tapvid", data, "--head", head, "--size", "64x64")["fingerprint"]["all"])
    assert len(fingerprints) == 2


def test_a_video_in_which_nothing_is_asked_for(tmp_path: Path) -> None:
    import pickle

    video = numbered_video(5)
    video["occluded"][:] = True
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([video], protocol=4))
    dataset = TapVidFolder(converted(tmp_path / "out", tmp_path / "a.pkl"))
    benchmark = PointTracking(dataset, CountingEncoder())
    result = benchmark.evaluate("0000_0", pictures=True, advance=lambda share: None)
    aggregate = benchmark.aggregate({"0000_0": result.scores})
    assert aggregate.rows[0].values == {} and "1 videos have no point" in aggregate.notes[1]
    json.dumps(result.scores, allow_nan=False)


# Boxes


def test_boxes_are_cut_to_the_part_in_the_middle() -> None:
    # 768x512 is twice 384x256, of which 64 are cut at each side.
    boxes = np.array([[[0, 0, 768, 512], [128, 0, 256, 100], [0, 0, 100, 100], [600, 500, 700, 600], [np.nan] * 4]])
    expected = [[0, 0, 256, 256], [0, 0, 64, 50], [np.nan] * 4, [236, 250, 256, 256], [np.nan] * 4]
    np.testing.assert_allclose(to_middle(boxes, (512, 768))[0], expected)


def test_which_frames_and_boxes_count(tmp_path: Path) -> None:
    frames = tuple(tmp_path / f"{t}.png" for t in range(100))
    cv2.imwrite(str(frames[0]), np.zeros((256, 384, 3), np.uint8))
    side = math.sqrt(box_tracking.SMALLEST) * 256
    corners = [(70.0, 10.0, 70 + s, 10 + s) for s in [side - 0.1, side + 0.1, *np.linspace(30, 60, 30)]]
    boxes = np.broadcast_to(np.array(corners), (100, 32, 4)).copy()
    boxes[0, 31] = np.nan
    video = BoxVideo(rate=14.0, frames=frames, ids=tuple(map(str, range(32))), boxes=boxes)
    task = box_tracking.make_task(video, 16)
    assert [int(path.stem) for path in task.frames] == [round(i * 14 / 5) for i in range(16)]
    # 25 of the 29 large ones, the smallest are left out, and so is the one that the first frame does not show.
    np.testing.assert_allclose(task.boxes[0, :, 2], [corners[i][2] - 64 for i in range(6, 31)])
    with pytest.raises(DatasetError, match="expected a video of 5 frames a second or more, got 4"):
        box_tracking.make_task(BoxVideo(rate=4.0, frames=frames, ids=video.ids, boxes=boxes), 16)


def test_a_perfect_tracker_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes move by 2 pixels of 256 a frame; a tracker that says 16 / 256 * `SPEED` * 256 is wrong by that, exactly."""
    speed = 256 * SPEED
    frames = tuple(tmp_path / f"{t}.png" for t in range(5))
    for t, path in enumerate(frames):
        cv2.imwrite(str(path), np.full((256, 384, 3), t, np.uint8))
    moved = np.arange(5)[:, None, None] * np.array([speed, 0, speed, 0])
    boxes = np.array([[[100.0, 50, 150, 100], [160, 100, 240, 180]]]) + moved
    boxes[3, 0] = np.nan
    video = BoxVideo(rate=5.0, frames=frames, ids=("1", "2"), boxes=boxes)

    class Folder:
        folder, ids = tmp_path, ["v"]

        def read(self, id: str) -> BoxVideo:
            return video

    monkeypatch.setattr(box_tracking, "create_tracker", lambda *args, **options: MovingTracker())
    benchmark = BoxTracking(Folder(), CountingEncoder())  # type: ignore[arg-type]
    result = benchmark.evaluate("v", pictures=True, advance=lambda share: None)
    # Four frames of two boxes, without the one that is hidden.
    assert result.scores["count"] == 7 and result.scores["sum"] == pytest.approx(7, abs=1e-4)
    boxes[1:] = boxes[0]
    standing = benchmark.evaluate("v", pictures=False, advance=lambda share: None)
    shifts = np.arange(1, 5) * speed
    ious = [(width - s) / (width + s) for width in (50, 80) for s in shifts]
    assert standing.scores["sum"] == pytest.approx(sum(ious), abs=1e-4)


@pytest.mark.parametrize("with_head", [False, True])
def test_boxes(tmp_path: Path, evaluate: Callable[..., dict[str, Any]], with_head: bool) -> None:
    from rvm_training.converters.mot import convert_mot

    convert_mot(write_mot(tmp_path / "train"), tmp_path / "boxes", lambda text, done, total: None)
    options: list[str | Path] = []
    if with_head:
        options = ["--head", head_file(tmp_path / "boxes.safetensors", BoxHead(BoxHeadConfig(**TRACKS)))]
    report = evaluate("boxes", tmp_path / "boxes", *options)
    (row,) = report["rows"]
    assert 0 <= row["values"]["box_iou"] <= 1
    assert report["notes"] == ["1 boxes in 1 videos"]
    assert ("untrained" in " ".join(report["not_comparable"])) is not with_head
    if not with_head:
        assert evaluate("boxes", tmp_path / "boxes", "--frames", "5")["identity"]["settings"]["frames"] == 5


def test_boxes_that_are_all_too_small(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    from rvm_training.converters.mot import convert_mot

    source = write_mot(tmp_path / "train")
    (source / "MOT17-02-FRCNN" / "gt" / "gt.txt").write_text("1,1,60,10,2,2,1,1,1\n")
    convert_mot(source, tmp_path / "boxes", lambda text, done, total: None)
    report = evaluate("boxes", tmp_path / "boxes")
    assert report["rows"][0]["values"]["box_iou"] is None and "1 videos have no box" in report["notes"][1]


# Depth


def depth_head(path: Path, metres: float, frames: int = 4) -> Path:
    head = DepthHead(DepthHeadConfig(frames=frames, image_size=(32, 32), **SMALL))
    return head_file(path, head, output=[math.log(metres)] * 128)


def test_depth(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """A head that says 2.5 m of what is 2 m away is wrong by a quarter; what is not known does not count."""
    data = write_scannet(tmp_path / "scannet")
    report = evaluate("depth", data, "--head", depth_head(tmp_path / "d.safetensors", 2.5), "--size", "64x64")
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(2500 / DEPTH_MM - 1, abs=1e-6)
    assert report["published"][0]["values"]["abs_rel"] == 0.120
    assert [video["id"] for video in report["videos"]] == ["scene0700_00", "scene0701_00"]
    assert "a head for 4 frames instead of 16" in report["not_comparable"]


def test_depth_counts_only_what_is_known(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_scannet(tmp_path / "scannet", scenes=1)
    for path in (data / "scans" / "scene0700_00" / "depth").iterdir():
        depth = np.zeros((48, 64), np.uint16)
        depth[:, 8:32], depth[:, 32:56] = 1000, 12000
        cv2.imwrite(str(path), depth)
    report = evaluate("depth", data, "--head", depth_head(tmp_path / "d.safetensors", 1.5), "--size", "64x64")
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0.5, abs=1e-6)


def test_depth_of_listed_scenes_and_options(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_scannet(tmp_path / "scannet"), depth_head(tmp_path / "d.safetensors", 2.0, frames=2)
    (data / "scannetv2_val.txt").write_text("scene0701_00\n\n")
    report = evaluate("depth", data, "--head", head, "--size", "64x64", "--clips", "3", "--stride", "2")
    assert [video["id"] for video in report["videos"]] == ["scene0701_00"]
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    settings = report["identity"]["settings"]
    assert (settings["clips"], settings["stride"], settings["frames"]) == (3, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "scans").rename(data / "x"),
            "looked for ScanNet's scenes .* in .*scans: it is not there",
        ),
        (lambda data: [p.rename(data / p.name) for p in list((data / "scans").iterdir())], "there is none"),
        (lambda data: (data / "scans/scene0700_00/depth").rename(data / "x"), "the first is scene0700_00/depth"),
        (lambda data: (data / "scannetv2_val.txt").write_text("scene9999_00"), "the first is scene9999_00/color"),
        (lambda data: (data / "scans/scene0700_00/depth/3.png").unlink(), "found 6 images .* and 5 depth maps"),
    ],
)
def test_damaged_scannet(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_scannet(tmp_path / "scannet")
    change(data)
    with pytest.raises(DatasetError, match=message):
        ScanNetFolder(data).read("scene0700_00")


def test_a_depth_map_of_another_kind_fails_its_scene(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_scannet(tmp_path / "scannet")
    cv2.imwrite(str(data / "scans/scene0700_00/depth/2.png"), np.zeros((48, 64), np.uint8))
    head = depth_head(tmp_path / "d.safetensors", 2.0)
    report = evaluate("depth", data, "--head", head, "--size", "64x64", expected=3)
    assert "expected a PNG with one channel of 16 bits" in report["failed"]["scene0700_00"]
    assert report["rows"][0]["values"]["abs_rel"] == pytest.approx(0, abs=1e-6)


# Classes


def class_head(path: Path, said: int, classes: int) -> Path:
    head = ClassHead(ClassHeadConfig(classes=classes, frames=4, **SMALL))
    return head_file(path, head, output=[float(index == said) for index in range(classes)])


@pytest.mark.parametrize(("said", "expected"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3)])
def test_classes_of_ssv2(tmp_path: Path, evaluate: Callable[..., dict[str, Any]], said: int, expected: float) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", said, 3)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["rows"][0]["values"]["top_1"] == pytest.approx(expected)
    assert [row["values"]["top_1"] for row in report["published"]] == [0.597, 0.667, 0.687]
    settings = report["identity"]["settings"]
    assert (settings["dataset"], settings["clips"], settings["stride"]) == ("ssv2", 1, 2)
    assert settings["classes"] == list(SSV2)


def test_classes_of_kinetics(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_kinetics(tmp_path / "kinetics"), class_head(tmp_path / "c.safetensors", 1, 2)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["identity"]["settings"]["clips"] == 7
    assert report["identity"]["settings"]["classes"] == ["abseiling", "yoga"]
    assert report["rows"][0]["values"]["top_1"] == pytest.approx(2 / 3)
    assert report["published"][0]["values"]["top_1"] == 0.496


def test_kinetics_with_missing_videos_is_not_comparable(
    tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    data, head = write_kinetics(tmp_path / "kinetics", missing=True), class_head(tmp_path / "c.safetensors", 0, 2)
    report = evaluate("classes", data, "--head", head, "--size", "64x64")
    assert report["rows"][0]["values"]["top_1"] == 0.5
    assert "1 of 3 videos of the list are missing" in report["not_comparable"]


def test_kinetics_in_folders_of_classes(tmp_path: Path) -> None:
    for i, path in enumerate(("yoga/a.mp4", "yoga/b.mp4", "abseiling/c.mp4")):
        write_video(tmp_path / "val" / path, 5, seed=i)
    dataset = open_classes(tmp_path)
    assert dataset.labels == {"abseiling/c.mp4": 0, "yoga/a.mp4": 1, "yoga/b.mp4": 1}
    (tmp_path / "classes.txt").write_text("zumba\nyoga\nabseiling\n")
    assert open_classes(tmp_path).labels == {"abseiling/c.mp4": 2, "yoga/a.mp4": 1, "yoga/b.mp4": 1}
    (tmp_path / "classes.txt").write_text("yoga\n")
    with pytest.raises(DatasetError, match="does not list the class 'abseiling'"):
        open_classes(tmp_path)


def test_classes_that_the_head_does_not_have(
    tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", 0, 5)
    arguments = ["--data", data, "--weights", tiny_path, "--head", head, "--out", tmp_path / "out"]
    assert main(["eval", "classes", *map(str, arguments)]) == 1
    assert "expected a head for the 3 classes there are, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: (data / "labels" / "labels.json").unlink(),
            "looked for videos of Kinetics in .*neither is there",
        ),
        (lambda data: (data / "labels" / "labels.json").write_text("[]"), "expected a dict that is not empty"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "3"}'), "expected the numbers 0 to 0"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "x"}'), "expected templates with numbers"),
        (lambda data: (data / "labels" / "labels.json").write_text('{"a": "0"}'), "no known template"),
        (lambda data: (data / "labels" / "validation.json").unlink(), "looked for validation.json or something-som"),
        (lambda data: (data / "labels" / "validation.json").write_text("{"), "cannot be read as JSON"),
        (lambda data: (data / "20bn-something-something-v2").rename(data / "x"), "looked for the videos of Something"),
        (lambda data: (data / "20bn-something-something-v2/101.webm").unlink(), "1 are missing, the first is 101.webm"),
    ],
)
def test_damaged_ssv2(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_ssv2(tmp_path / "ssv2")
    change(data)
    with pytest.raises(DatasetError, match=message):
        open_classes(data)


def test_damaged_kinetics(tmp_path: Path) -> None:
    data = write_kinetics(tmp_path / "kinetics")
    table = data / "annotations" / "val.csv"
    kept = table.read_text()
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="expected columns label, youtube_id, time_start, time_end"):
        open_classes(data)
    table.write_text(kept.replace("000", "x").replace("yoga,-aBc_dEfGhI,10", "yoga,other,11"))
    for path in list((data / "val").iterdir()):
        path.unlink()
    with pytest.raises(DatasetError, match=r"as .*val.csv lists them, or for .*found none"):
        open_classes(data)


def test_a_video_that_cannot_be_decoded_fails_alone(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data, head = write_ssv2(tmp_path / "ssv2"), class_head(tmp_path / "c.safetensors", 2, 3)
    (data / "20bn-something-something-v2" / "101.webm").write_bytes(b"no video")
    report = evaluate("classes", data, "--head", head, "--size", "64x64", expected=3)
    assert "101.webm" in report["failed"]["101"] and report["rows"][0]["values"]["top_1"] == 1.0


@pytest.mark.parametrize(
    ("total", "frames", "stride", "clips", "expected"),
    [
        (100, 4, 2, 1, [[46, 48, 50, 52]]),
        (7, 4, 2, 1, [[0, 2, 4, 6]]),
        (5, 4, 2, 1, [[0, 2, 4, 4]]),
        (1, 3, 2, 2, [[0, 0, 0], [0, 0, 0]]),
        (11, 2, 1, 4, [[0, 1], [3, 4], [6, 7], [9, 10]]),
    ],
)
def test_which_frames_make_a_clip(total: int, frames: int, stride: int, clips: int, expected: list[list[int]]) -> None:
    assert clip_indices(total, frames=frames, stride=stride, clips=clips) == expected


def test_frames_of_a_video_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", 9)
    assert count_frames(path) == 9
    every = dict(read_video_frames(path, range(9)))
    some = dict(read_video_frames(path, [7, 2, 2]))
    assert list(some) == [2, 7]
    assert np.array_equal(some[7], every[7]) and not np.array_equal(some[2], some[7])
    with pytest.raises(DatasetError, match="ends after 9 frames"):
        list(read_video_frames(path, [9]))
    with pytest.raises(DatasetError, match="looked for a video in"):
        count_frames(tmp_path / "b.webm")


# Pose


def pose_head(path: Path, said: np.ndarray) -> Path:
    head = PoseHead(PoseHeadConfig(**SMALL))
    return head_file(path, head, output=said.ravel().tolist())


def test_pose(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """The clip is frames 1 to 4; a head that says their motion has no error, one that says none has the cube's."""
    data = write_realestate(tmp_path / "re10k")
    rotation, translation = relative_pose(camera_of(1), camera_of(4))
    true = np.column_stack([rotation, translation])
    options = ["--size", "64x64", "--frames", "4"]
    report = evaluate("pose", data, "--head", pose_head(tmp_path / "p.safetensors", true), *options)
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(0, abs=1e-6)
    assert "clips of 4 frames instead of 16" in report["not_comparable"]
    still = np.column_stack([np.eye(3), np.zeros(3)])
    report = evaluate("pose", data, "--head", pose_head(tmp_path / "p.safetensors", still), *options)
    expected = np.linalg.norm(CUBE @ rotation.T + translation - CUBE, axis=1).mean()
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(expected, abs=1e-6)
    report = evaluate(
        "pose", data, "--head", tmp_path / "p.safetensors", "--frames", "2", "--stride", "3", *options[:2]
    )
    assert report["rows"][0]["values"]["end_point_error"] == pytest.approx(expected, abs=1e-6)


def test_relative_poses_take_points_from_one_camera_to_the_other() -> None:
    point = np.array([0.3, -0.2, 2.0, 1.0])
    rotation, translation = relative_pose(camera_of(1), camera_of(5))
    np.testing.assert_allclose(rotation @ (camera_of(1) @ point) + translation, camera_of(5) @ point, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "test").rename(data / "x"), r"looked for files of cameras ID.txt in"),
        (lambda data: (data / "frames").rename(data / "x"), "looked for frames of 2 videos"),
        (lambda data: next((data / "frames/test" / ("0" * 16)).iterdir()).unlink(), "looked for 6 frames .*: 1 are mi"),
        (lambda data: text(data).write_text("url\n1 2 3\n"), "expected 19 numbers in each line after the first"),
        (lambda data: text(data).write_text("url\n"), "expected 19 numbers in each line after the first"),
        (lambda data: text(data).write_text("url\n" + "a " * 19), "is no file of cameras"),
        (lambda data: text(data).write_text("url\n" + "2 " * 19), "expected rotations and translations"),
        (lambda data: text(data).write_text("url\n1 " + "nan " * 18), "expected rotations and translations"),
    ],
)
def test_damaged_realestate(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    data = write_realestate(tmp_path / "re10k")
    change(data)
    with pytest.raises(DatasetError, match=message):
        RealEstateFolder(data).read("0" * 16)


def text(data: Path) -> Path:
    return data / "test" / f"{'0' * 16}.txt"


def test_a_video_that_is_too_short_fails_alone(tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = write_realestate(tmp_path / "re10k")
    lines = text(data).read_text().splitlines()
    text(data).write_text("\n".join(lines[:4]))
    head = pose_head(tmp_path / "p.safetensors", np.zeros((3, 4)))
    report = evaluate("pose", data, "--head", head, "--size", "64x64", "--frames", "4", expected=3)
    assert "expected a video of 4 frames or more, got 3" in report["failed"]["0" * 16]


# All of them


@pytest.mark.parametrize("name", ["depth", "classes", "pose", "tapvid", "boxes"])
def test_heads_that_do_not_fit(tmp_path: Path, tiny_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    makers = {"depth": write_scannet, "classes": write_ssv2, "pose": write_realestate}
    if name == "tapvid":
        data = converted(tmp_path / "data", write_davis(tmp_path))
    elif name == "boxes":
        from rvm_training.converters.mot import convert_mot

        convert_mot(write_mot(tmp_path / "train"), data := tmp_path / "data", lambda text, done, total: None)
    else:
        data = makers[name](tmp_path / "data")
    right: dict[str, Readout] = {
        "depth": DepthHead(DepthHeadConfig(frames=4, image_size=(32, 32), features=32, channels=8, num_heads=2)),
        "classes": ClassHead(ClassHeadConfig(classes=3, features=32, channels=8, num_heads=2)),
        "pose": PoseHead(PoseHeadConfig(features=32, channels=8, num_heads=2)),
        "tapvid": PointHead(PointHeadConfig(**TRACKS | {"features": 32})),
        "boxes": BoxHead(BoxHeadConfig(**TRACKS | {"features": 32})),
    }
    wrong = right["pose" if name == "classes" else "classes"]
    for head, message in ((wrong, "expected"), (right[name], "features of 64 channels, got 32")):
        path = head_file(tmp_path / "head.safetensors", head)
        arguments = ["--data", data, "--weights", tiny_path, "--head", path, "--out", tmp_path / "out"]
        assert main(["eval", name, *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert message in error and str(path) in error
    arguments = ["--data", data, "--weights", tiny_path, "--head", tmp_path / "no", "--out", tmp_path / "out"]
    assert main(["eval", name, *map(str, arguments)]) == 1


@pytest.mark.parametrize("name", ["depth", "classes", "pose", "tapvid", "boxes"])
def test_folders_that_are_something_else(
    tmp_path: Path, tiny_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    head = head_file(tmp_path / "pose.safetensors", PoseHead(PoseHeadConfig(**SMALL)))
    given = ["--head", str(head)] if name in ("depth", "classes", "pose") else []
    arguments = ["--data", tmp_path / "data", "--weights", tiny_path, "--out", tmp_path / "out", *given]
    assert main(["eval", name, *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rvm: error: looked for ") and str(tmp_path / "data") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depth", "--data", "x"], "--head"),
        (["tapvid", "--data", "x", "--protocol", "second"], "invalid choice: 'second'"),
        (["tapvid", "--data", "x", "--size", "100x100"], "multiple"),
        (["tapvid", "--data", "x", "--size", "100"], "expected HEIGHTxWIDTH, such as 256x256, got '100'"),
        (["boxes", "--data", "x", "--frames", "0"], "expected a whole number of 1 or more, got '0'"),
        (["classes", "--data", "x", "--head", "x", "--dataset", "imagenet"], "invalid choice: 'imagenet'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    assert message in capsys.readouterr().err

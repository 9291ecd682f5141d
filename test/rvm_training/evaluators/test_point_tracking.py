"""`rvm eval tapvid`: protocols, and end to end on miniatures of TAP-Vid."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readout_folders import (
    tapvid_video,
    write_davis,
)
from readout_heads import TRACKS, CountingEncoder, MovingTracker, converted, head_file
from rvm_core.cli import main
from rvm_core.heads import (
    PointHead,
    PointHeadConfig,
)
from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.datasets.tapvid import TapVidFolder
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluators import point_tracking
from rvm_training.evaluators.point_tracking import PROTOCOLS, PointTracking, make_task


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
    video = numbered_video(5)
    video["occluded"][:] = True
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([video], protocol=4))
    dataset = TapVidFolder(converted(tmp_path / "out", tmp_path / "a.pkl"))
    benchmark = PointTracking(dataset, CountingEncoder())
    result = benchmark.evaluate("0000_0", pictures=True, advance=lambda share: None)
    aggregate = benchmark.aggregate({"0000_0": result.scores})
    assert aggregate.rows[0].values == {} and "1 videos have no point" in aggregate.notes[1]
    json.dumps(result.scores, allow_nan=False)


def test_the_same_as_the_benchmark_of_synthetic_scenes(
    tmp_path: Path, evaluate: Callable[..., dict[str, Any]], tiny_path: Path
) -> None:
    """One scene, followed by `rvm eval synthetic` and, as a pickle of TAP-Vid, by `rvm eval tapvid`."""
    scene = generate_scene(SceneConfig(height=64, width=96, num_frames=9, num_points=12, num_objects=2), 3)
    video = {
        "video": scene.video,
        "points": (scene.points / (96, 64)).transpose(1, 0, 2),
        "occluded": scene.occluded.T,
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"v": video}, protocol=4))
    data = converted(tmp_path / "data", tmp_path / "a.pkl")
    report = evaluate("tapvid", data, "--size", "64x96", "--precision", "fp32")
    out = str(tmp_path / "synthetic")
    options = ["--size", "64x96", "--frames", "9", "--points", "12", "--objects", "2", "--seed", "3", "--scenes", "1"]
    given = ["--weights", str(tiny_path), "--precision", "fp32", "--out", out]
    assert main(["eval", "synthetic", *options, *given]) == 0
    expected = json.loads((tmp_path / "synthetic" / "synthetic.json").read_text())["rows"][0]
    values = report["rows"][0]["values"]
    for key in ("average_jaccard", "position_accuracy", "occlusion_accuracy"):
        assert values[key] == pytest.approx(expected[key], abs=1e-12) and 0 < values[key] <= 1

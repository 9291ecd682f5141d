"""Replay of whole recordings, with a tiny model: what comes out, in which order, and that it is the same each time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

import rvm_perception.replay as replay_module
from bag_files import (
    PARAMETERS,
    PERIOD_NS,
    START_NS,
    STORAGES,
    Shot,
    clip_bag,
    contents,
    cut,
    query,
    storage_file,
    tracked_bag,
    write_bag,
)
from rvm_core import Preprocess, load_checkpoint
from rvm_perception import feature_map_to_numpy
from rvm_perception.bag_reader import Bag, BagError, RawMessage, decode
from rvm_perception.bag_types import FEATURE_MAP, POINT_TRACKS, QUERY_ANSWERS
from rvm_perception.conversions import image_to_rgb
from rvm_perception.parameters import NodeParameters
from rvm_perception.replay import Interrupted, Stepper
from rvm_perception.replay_job import ReplayOptions, make_stepper, replay_bag
from rvm_perception.replay_parts import ReplayError
from rvm_perception.replay_summary import ReplaySummary, read_summary, read_timing
from rvm_perception.video import video_info

FEATURES = "/rvm/features"
QUIET = ReplayOptions(film=False, report=False, quiet=True)


@pytest.fixture(scope="module")
def stepper() -> Stepper:
    return make_stepper(PARAMETERS, print)


@pytest.fixture
def run(tmp_path: Path, stepper: Stepper) -> Callable[..., ReplaySummary]:
    def replay(
        bag: Path,
        out: str = "out",
        *,
        parameters: NodeParameters = PARAMETERS,
        stepper: Stepper = stepper,
        is_stopped: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> ReplaySummary:
        return replay_bag(
            bag, tmp_path / out, parameters, lambda: stepper, replace(QUIET, **options), is_stopped=is_stopped
        )

    return replay


def stored(folder: Path, *topics: str) -> list[tuple[RawMessage, Any]]:
    with Bag(folder / "replay.mcap") as bag:
        return [(raw, decode(raw)) for raw in bag.messages(topics or list(bag.topics))]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_features_are_those_of_the_engine_on_the_frames(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    from rvm_core.engines import create_engine

    bag = clip_bag(tmp_path, frames=6)
    summary = run(bag)
    engine = create_engine(
        load_checkpoint(PARAMETERS.weights), backend="torch", precision="fp32", image_size=(32, 48), device="cpu"
    )
    preprocess, state = Preprocess(height=32, width=48, policy="letterbox"), engine.init_state()
    with Bag(bag) as recording:
        images = [image_to_rgb(decode(message)) for message in recording.messages(["/camera/image_raw"])]
    with np.load(tmp_path / "out/camera/features.npz") as arrays:
        assert arrays["features"].dtype == np.float32
        for i, ((raw, message), image) in enumerate(zip(stored(tmp_path / "out", FEATURES), images, strict=True)):
            features, state = engine.step(preprocess(image)[None], state)
            tokens = features[0].numpy()
            np.testing.assert_array_equal(feature_map_to_numpy(message).reshape(-1, 64), tokens[1:])
            np.testing.assert_array_equal(arrays["features"][i].reshape(-1, 64), tokens[1:])
            np.testing.assert_array_equal(arrays["cls"][i], tokens[0])
            assert raw.message_type == FEATURE_MAP and raw.received_ns == START_NS + i * PERIOD_NS + 2_000_000
            assert (message.index, message.epoch, message.skipped, message.camera) == (i, 0, 0, "camera")
            assert arrays["stamp_ns"][i] == START_NS + i * PERIOD_NS
        np.testing.assert_array_equal(arrays["grid_to_image"][0].ravel(), message.grid_to_image)
        assert arrays["image_size"][0].tolist() == [48, 72]
    assert summary == read_summary(tmp_path / "out")
    assert (summary.frames, summary.cameras[0].features) == (6, "camera/features.npz")
    timing = read_timing(tmp_path / "out")
    assert timing.frames_per_s > 0 and timing.cameras["camera"]["engine_ms"].max > 0
    assert [row["frame"] for row in table(tmp_path / "out/camera/timing.csv")] == [str(i) for i in range(6)]


def test_two_runs_give_the_same_bytes(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = tracked_bag(tmp_path / "bag")
    run(bag, "one", film=True)
    run(bag, "two", film=True)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and "camera/overlay.mp4" in one
    assert [name for name in one if one[name] != two[name]] == []


def test_every_storage_gives_the_same(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    results = []
    for storage, compression in STORAGES:
        name = f"{storage}_{compression}"
        run(clip_bag(tmp_path, name=name, frames=4, storage=storage, compression=compression), f"out_{name}")
        files = contents(tmp_path / f"out_{name}")
        results.append({name: data for name, data in files.items() if name != "summary.json"})
    assert all(result == results[0] for result in results)


def test_queries_are_carried_out_as_the_node_would(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    summary = run(tracked_bag(tmp_path / "bag"))
    answers = {m.request_id: m for raw, m in stored(tmp_path / "out", "/rvm/track_answers")}
    assert {raw.message_type for raw, _ in stored(tmp_path / "out", "/rvm/track_answers")} == {QUERY_ANSWERS}
    assert answers["points"].accepted.tolist() == [True, False] and "outside" in answers["points"].reason[1]
    assert answers["ahead"].ids.tolist() == [77] and answers["ahead"].header.stamp.nanosec == 4 * PERIOD_NS
    assert answers[""].header.stamp.nanosec == PERIOD_NS, "the box was added two frames back"
    assert answers["mask"].ids[0] >= 2**15
    assert answers["again"].ids.tolist() == [3] and answers["again"].epoch == 1, "ids are not used again"
    assert answers["too late"].reason == ["the recording ended"]
    points = {m.index + 100 * m.epoch: m for _, m in stored(tmp_path / "out", "/rvm/point_tracks")}
    assert sorted(points) == [1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103]
    assert points[1].ids.tolist() == [1] and points[1].labels == ["hub"]
    assert points[5].ids.tolist() == [1, 77]
    assert points[100].status.tolist() == [3, 3], "the reset is said once"
    boxes = [m.index for _, m in stored(tmp_path / "out", "/rvm/box_tracks") if m.epoch == 0]
    assert boxes == [3, 4, 5, 6, 7]
    masks = [m for _, m in stored(tmp_path / "out", "/rvm/mask")]
    assert len(masks) == 5 and masks[0].encoding == "mono16"
    (camera,) = summary.cameras
    assert camera.tracks == {"point": 3, "box": 1, "mask": 1}
    assert (camera.queries, camera.queries_accepted, camera.queries_refused) == (6, 5, 2)
    assert set(camera.tables) == {f"camera/{n}.csv" for n in ("frames", "point_tracks", "box_tracks", "mask_tracks")}
    rows = table(tmp_path / "out/camera/point_tracks.csv")
    assert rows[0]["label"] == "hub" and rows[0]["status"] == "visible"
    assert float(rows[0]["x"]) == np.float32(points[1].x[0])
    assert all(np.isnan(float(row["x"])) for row in rows if row["status"] == "lost")


def test_the_rules_of_the_stream(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    shots = [Shot(stamp=i) for i in (0, 1, 2)]
    shots += [Shot(stamp=2, received=2.5), Shot(stamp=3, encoding="yuv9000"), Shot(stamp=4)]
    shots += [Shot(stamp=40), Shot(stamp=41, size=(32, 32)), Shot(stamp=42, size=(32, 32), frame_id="other")]
    shots += [Shot(stamp=10, received=43, size=(32, 32), frame_id="other")]
    bag = write_bag(tmp_path / "bag", [shot.raw() for shot in shots])
    summary = run(bag)
    (camera,) = summary.cameras
    assert (camera.received, camera.processed) == (10, 8)
    assert camera.rejected == {"duplicate": 1, "encoding": 1}
    assert [(r.frame, r.reason) for r in camera.rejections] == [(3, "duplicate"), (4, "encoding")]
    assert "yuv9000" in camera.rejections[1].message
    resets = [(r.frame, r.epoch, r.reason) for r in camera.resets]
    assert resets == [(6, 1, "gap"), (7, 2, "resolution"), (8, 3, "frame_id"), (9, 4, "backward")]
    assert camera.image_sizes == ((48, 72), (32, 32))
    skipped = {m.epoch * 100 + m.index: m.skipped for _, m in stored(tmp_path / "out", FEATURES)}
    assert skipped == {0: 0, 1: 0, 2: 0, 3: 2, 100: 0, 200: 0, 300: 0, 400: 0}
    rows = table(tmp_path / "out/camera/frames.csv")
    assert [row["status"] for row in rows[2:6]] == ["processed", "duplicate", "encoding", "processed"]
    assert [row["reset"] for row in rows[5:8]] == ["", "gap", "resolution"]


def test_damaged_messages_cost_one_frame(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    whole = [Shot(stamp=i).raw() for i in range(4)]
    whole[2] = whole[2]._replace(data=whole[2].data[:500])
    broken_query = query(0.5)._replace(data=b"\x00\x01\x00\x00")
    (camera,) = run(write_bag(tmp_path / "bag", [*whole, broken_query])).cameras
    assert (camera.processed, camera.rejected) == (3, {"corrupt": 1})


def test_frames_out_of_order_are_put_in_order(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    ordered = write_bag(tmp_path / "ordered", [Shot(stamp=i).raw() for i in range(6)])
    shots = [Shot(stamp=i, received=i + (2.5 if i == 2 else 0)).raw() for i in range(6)]
    disordered = write_bag(tmp_path / "disordered", shots)
    run(ordered, "one")
    (camera,) = run(disordered, "two").cameras
    assert (camera.processed, camera.out_of_order) == (6, 1)
    arrays = [np.load(tmp_path / name / "camera/features.npz") for name in ("one", "two")]
    np.testing.assert_array_equal(arrays[0]["features"], arrays[1]["features"])
    np.testing.assert_array_equal(arrays[0]["stamp_ns"], arrays[1]["stamp_ns"])


def test_several_cameras(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    front = [Shot(stamp=i, topic="/front/image_raw").raw() for i in range(4)]
    rear = [Shot(stamp=i, received=i + 0.3, topic="/rear/image_raw", size=(32, 64)).raw() for i in range(3)]
    asked = [
        query(1.5, camera="rear", point_x=[9.0], point_y=[9.0], request_id="rear"),
        query(1.6, camera="roof", point_x=[9.0], point_y=[9.0], request_id="roof"),
        query(1.7, point_x=[9.0], point_y=[9.0], request_id="nobody"),
    ]
    bag = write_bag(tmp_path / "bag", [*front, *rear, *asked])
    with pytest.raises(BagError, match="several cameras: choose with --topics among /front/image_raw .*, /rear"):
        run(bag)
    summary = run(bag, topics=("/rear/image_raw", "/front/image_raw"))
    assert {camera.name: camera.processed for camera in summary.cameras} == {"rear": 3, "front": 4}
    assert summary.messages["/rvm/front/features"] == 4 and summary.messages["/rvm/rear/point_tracks"] == 1
    answers = {m.request_id: m for _, m in stored(tmp_path / "out", "/rvm/track_answers")}
    assert answers["rear"].accepted.tolist() == [True] and answers["rear"].camera == "rear"
    for name in ("roof", "nobody"):
        assert "there is no camera" in answers[name].reason[0] and "rear, front" in answers[name].reason[0]
    # Each camera gives what it gives alone.
    run(write_bag(tmp_path / "front", front), "alone", topics=("/front/image_raw",))
    alone, both = (np.load(tmp_path / name / "front/features.npz") for name in ("alone", "out"))
    np.testing.assert_array_equal(alone["features"], both["features"])


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_compressed_images(tmp_path: Path, run: Callable[..., ReplaySummary], form: str) -> None:
    bag = clip_bag(tmp_path, frames=3, form=form)
    (camera,) = run(bag).cameras
    assert (camera.name, camera.topic, camera.processed) == ("camera", "/camera/image_raw/compressed", 3)
    if form == "png":
        run(clip_bag(tmp_path, name="raw_bag", frames=3), "raw")
        raw, png = (np.load(tmp_path / name / "camera/features.npz")["features"] for name in ("raw", "out"))
        np.testing.assert_array_equal(raw, png)


def test_which_topics_are_taken(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    both = write_bag(
        tmp_path / "bag",
        [*(Shot(stamp=i, topic=topic).raw() for i in range(2) for topic in ("/camera/image_raw", "/depth/image"))],
    )
    assert [c.topic for c in run(both, "one").cameras] == ["/camera/image_raw"], "that of the parameters"
    assert [c.name for c in run(both, "two", topics=("/depth/image",)).cameras] == ["depth"]
    with pytest.raises(BagError, match="no images on /roof; its images: /camera/image_raw"):
        run(both, topics=("/roof",))
    only = write_bag(tmp_path / "only", [Shot(stamp=0, topic="/left/image").raw()])
    assert [c.name for c in run(only, "three").cameras] == ["left"], "the only one that there is"


def test_recordings_that_cannot_be_used(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    with pytest.raises(BagError, match="is empty"):
        run(write_bag(tmp_path / "empty", []))
    with pytest.raises(BagError, match="no images; its topics: /rvm/track_queries"):
        run(write_bag(tmp_path / "wrong", [query(0)]))
    two = [query(1), query(2, topic="/other/track_queries"), Shot(stamp=0).raw()]
    with pytest.raises(BagError, match="several topics of queries"):
        run(write_bag(tmp_path / "two", two))
    assert run(tmp_path / "two", topics=("/camera/image_raw", "/other/track_queries")).cameras[0].queries == 1
    assert not list(tmp_path.glob(".out*")), "nothing is left behind"


def test_recovery_marks_the_results(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = write_bag(tmp_path / "bag", [Shot(stamp=i, size=(240, 320)).raw() for i in range(20)])
    cut(storage_file(bag), 0.5)
    with pytest.raises(BagError, match="--recover"):
        run(bag)
    summary = run(bag, recover=True)
    assert "damaged" in summary.recovered
    assert summary.lost == 20 - summary.frames > 0
    assert summary.frames >= 5


def test_without_tracking(tmp_path: Path, run: Callable[..., ReplaySummary], stepper: Stepper) -> None:
    parameters = replace(PARAMETERS, tracking="none")
    bag = tracked_bag(tmp_path / "bag")
    summary = run(bag, parameters=parameters, stepper=replace(stepper, tracker=None))
    assert summary.messages == {FEATURES: 12} and summary.engine.tracker == ""
    assert summary.cameras[0].tables == ("camera/frames.csv",)


# Forms of the results.


def test_zarr_holds_what_npz_holds(tmp_path: Path, run: Callable[..., ReplaySummary], monkeypatch: Any) -> None:
    zarr = pytest.importorskip("zarr")
    import rvm_perception.replay_outputs as outputs

    bag = clip_bag(tmp_path, frames=7)
    half = replace(PARAMETERS, feature_dtype="float16")
    run(bag, "npz", parameters=half)
    monkeypatch.setattr(outputs, "NPZ_BYTES", 1000)
    monkeypatch.setattr(outputs, "_CHUNK_BYTES", 3 * 2 * 3 * 64 * 2)
    summary = run(bag, "zarr", parameters=half)
    assert summary.cameras[0].features == "camera/features.zarr"
    group = zarr.open_group(str(tmp_path / "zarr/camera/features.zarr"), mode="r")
    with np.load(tmp_path / "npz/camera/features.npz") as arrays:
        assert set(group.array_keys()) == set(arrays) and arrays["features"].dtype == np.float16
        for name in arrays:
            np.testing.assert_array_equal(group[name][:], arrays[name])
    assert group["features"].chunks == (3, 2, 3, 64)
    run(bag, "again", parameters=half)
    assert contents(tmp_path / "again") == contents(tmp_path / "zarr")


def test_parquet_holds_what_csv_holds(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    bag = tracked_bag(tmp_path / "bag")
    run(bag, "csv")
    run(bag, "parquet", tables="parquet")
    for name in ("point_tracks", "box_tracks", "mask_tracks"):
        rows = table(tmp_path / f"csv/camera/{name}.csv")
        columns = parquet.read_table(tmp_path / f"parquet/camera/{name}.parquet").to_pylist()
        assert len(rows) == len(columns) > 0
        for row, other in zip(rows, columns, strict=True):
            for key, value in other.items():
                assert row[key] == (f"{value:.9g}" if isinstance(value, float) else str(value))


def test_the_film_shows_every_frame(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    shots = [Shot(stamp=i) for i in range(4)] + [Shot(stamp=i, size=(64, 64)) for i in range(100, 103)]
    asked = query(0.5, point_x=[30.0], point_y=[20.0])
    summary = run(write_bag(tmp_path / "bag", [*(shot.raw() for shot in shots), asked]), film=True)
    path = tmp_path / "out" / summary.cameras[0].overlay
    info = video_info(path)
    assert (info.width, info.height, info.frames) == (72, 48, 7)
    capture = cv2.VideoCapture(str(path))
    pictures = [capture.read()[1] for _ in range(7)]
    assert pictures[-1][:, :8].mean() < 30 < pictures[-1][:, 30:40].mean(), "another shape has black beside it"
    assert capture.get(cv2.CAP_PROP_POS_MSEC) < 1000, "a pause in the recording is none in the film"


# Interruption.


def stop_after(turns: int) -> Callable[[], bool]:
    count = iter(range(turns - 1))
    return lambda: next(count, None) is None


@pytest.mark.parametrize("stops", [[1], [4, 1, 1], [18], [7]])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, run: Callable[..., ReplaySummary], stops: Iterable[int]
) -> None:
    bag = tracked_bag(tmp_path / "bag")
    run(bag, "whole", film=True)
    for turns in stops:
        with pytest.raises(Interrupted):
            run(bag, is_stopped=stop_after(turns), film=True, resume=True)
        assert not (tmp_path / "out").exists()
    run(bag, film=True, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_parts_have_no_influence(tmp_path: Path, run: Callable[..., ReplaySummary], monkeypatch: Any) -> None:
    bag = tracked_bag(tmp_path / "bag")
    run(bag, "one")
    monkeypatch.setattr(replay_module, "PART_BYTES", 1)
    run(bag, "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_crash_while_results_are_made(tmp_path: Path, run: Callable[..., ReplaySummary], monkeypatch: Any) -> None:
    import rvm_perception.replay_job as job

    bag = tracked_bag(tmp_path / "bag")
    run(bag, "whole", film=True)
    for name in ("mcap_file", "write_features", "write_film", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(job, name, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(bag, film=True, resume=True)
        assert not (tmp_path / "out").exists()
    run(bag, film=True, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_earlier_results_stay_until_all_is_done(
    tmp_path: Path, run: Callable[..., ReplaySummary], monkeypatch: Any
) -> None:
    run(clip_bag(tmp_path, name="first", frames=2))
    before = contents(tmp_path / "out")
    other = clip_bag(tmp_path, name="second", frames=3)
    with pytest.raises(Interrupted):
        run(other, is_stopped=stop_after(2))
    assert contents(tmp_path / "out") == before
    run(other, resume=True)
    assert read_summary(tmp_path / "out").bag == "second"
    # A run that was killed between the two renames.
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(BagError):
        run(tmp_path / "missing")
    assert read_summary(tmp_path / "out").bag == "second"


def test_what_is_done_is_not_done_again(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = clip_bag(tmp_path, frames=2)
    first = run(bag, resume=True)
    time = (tmp_path / "out/summary.json").stat().st_mtime_ns
    assert run(bag, resume=True) == first
    assert (tmp_path / "out/summary.json").stat().st_mtime_ns == time
    run(bag)
    assert (tmp_path / "out/summary.json").stat().st_mtime_ns != time


def test_another_command_does_not_go_on(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = clip_bag(tmp_path, frames=4)
    with pytest.raises(Interrupted):
        run(bag, is_stopped=stop_after(2))
    with pytest.raises(ReplayError, match="another parameters"):
        run(bag, resume=True, parameters=replace(PARAMETERS, track_context=3))
    assert run(bag, parameters=replace(PARAMETERS, track_context=3)).frames == 4


def test_folders_of_others_are_left_alone(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = clip_bag(tmp_path, frames=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(ReplayError, match="something else"):
        run(bag)
    (tmp_path / "out/thesis.tex").unlink()
    assert run(bag).frames == 2, "an empty folder may be used"


def test_one_process_at_a_time(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    bag = clip_bag(tmp_path, frames=2)

    def another() -> bool:
        with pytest.raises(ReplayError, match="another process"):
            run(bag)
        return False

    assert run(bag, is_stopped=another).frames == 2


def test_what_the_tables_say_of_a_frame_is_what_the_bag_says(tmp_path: Path, run: Callable[..., ReplaySummary]) -> None:
    run(tracked_bag(tmp_path / "bag"))
    rows = table(tmp_path / "out/camera/frames.csv")
    with Bag(tmp_path / "out/replay.mcap") as bag:
        types = {name: topic.message_type for name, topic in bag.topics.items()}
    assert types["/rvm/point_tracks"] == POINT_TRACKS
    for row, (_, message) in zip(rows, stored(tmp_path / "out", FEATURES), strict=True):
        assert (int(row["epoch"]), int(row["index"])) == (message.epoch, message.index)
        assert (int(row["image_width"]), int(row["image_height"])) == (72, 48)

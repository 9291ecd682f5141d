"""Making shards: the same bytes whatever interrupts it; damaged videos are skipped, other folders left alone."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from failing_shards import crashing_make, failing_make, hopeless_make
from rvm_training.data import cut
from rvm_training.data.cut import make_shard
from rvm_training.data.run_job import Summary, run_job
from rvm_training.data.shard_job import CutConfig, Job, plan_scenes, plan_videos
from rvm_training.data.shards import ShardError, ShardFolder, read_json
from training_clips import frame_of, write_numbered_video

WAIT_S = 300.0
CONFIG = CutConfig(size=32, clip_frames=10, min_frames=6, shard_mb=1e-6)
"""Every video is a shard of its own."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 35, 20, 27 and 5 frames, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("a", 35), ("b/x", 20), ("c", 27), ("d", 5)):
        write_numbered_video(folder / f"{name}.mp4", frames)
    (folder / "e.mp4").write_bytes(b"this is no video" * 50)
    return folder


def run(job: Job, out: Path, workers: int = 1, make: object = make_shard) -> Summary:
    return run_job(job, out, workers=workers, progress=lambda *_: None, make=make)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A folder of the shards of these videos, and what was said of them."""
    out = tmp_path_factory.mktemp("done") / "out"
    return out, run(plan_videos([videos], CONFIG), out)


@pytest.fixture
def out(done: tuple[Path, Summary], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(done[0], tmp_path / "out")


def test_clips_follow_each_other_and_a_long_rest_is_one_too(done: tuple[Path, Summary]) -> None:
    folder, summary = done
    shards = ShardFolder(folder)
    clips = [shards.locate(clip) for clip in range(len(shards))]
    seen = [[frame_of(shard.read(number, i)) for i in range(shard.length(number))] for shard, number in clips]
    # 35 frames are three clips and a rest of 5, which is too short; 27 are two and a rest of 7.
    lengths = [10, 10, 10, 10, 10, 10, 10, 7]
    firsts = [0, 10, 20, 0, 10, 0, 10, 20]
    assert seen == [list(range(first, first + length)) for first, length in zip(firsts, lengths, strict=True)]
    assert (summary.clips, summary.frames, summary.made, summary.items) == (8, 77, 8, 5)
    assert summary.seconds > 0 and summary.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))


def test_what_cannot_be_used_is_named(done: tuple[Path, Summary]) -> None:
    skipped = done[1].skipped
    assert [skip.video for skip in skipped] == ["d.mp4", "e.mp4"]
    assert skipped[0].reason == "too short: 5 frames, at least 6 are needed"
    assert "Invalid data" in skipped[1].reason


@pytest.mark.parametrize("damage", ["cut off", "zeros"])
def test_a_video_that_is_damaged_further_on_is_used_up_to_there(tmp_path: Path, damage: str) -> None:
    path = write_numbered_video(tmp_path / "in" / "long.mkv", 70)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] if damage == "cut off" else data[:half] + bytes(half // 2) + data[half + half // 2 :])
    summary = run(plan_videos([path], CONFIG), tmp_path / "out")
    assert 1 <= summary.clips < 7
    assert [skip.video for skip in summary.skipped] == ["long.mkv"]
    assert f"; {summary.clips} of its clips are used" in summary.skipped[0].reason
    shard, number = ShardFolder(tmp_path / "out").locate(0)
    assert [frame_of(shard.read(number, i)) for i in range(10)] == list(range(10))


def test_the_same_bytes_with_any_number_of_processes(videos: Path, out: Path, tmp_path: Path) -> None:
    run(plan_videos([videos], CONFIG), tmp_path / "three", workers=3)
    assert contents(out) == contents(tmp_path / "three")
    assert len(contents(out)) == 2 + 3 * 5


def test_nothing_is_made_twice(videos: Path, out: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    summary = run(plan_videos([videos], CONFIG), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")} == before
    assert (summary.made, summary.clips, len(summary.skipped)) == (0, 8, 2)


def test_a_shard_without_its_last_file_is_made_again(videos: Path, out: Path) -> None:
    before = contents(out)
    for name in ("shard-000001.json", "shard-000004.json", "shard-000004.npy", "shards.json"):
        (out / name).unlink()
    (out / "shard-000001.tar").write_bytes(b"half")
    run(plan_videos([videos], CONFIG), out)
    assert contents(out) == before


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "abc":
        write_numbered_video(tmp_path / "in" / f"{name}.mp4", 78, height=64, width=96)
    arguments = ["--size", "48", "--clip-frames", "4", "--min-frames", "4", "--shard-mb", "0.000001", "--workers", "2"]
    command = [sys.executable, "-m", "rvm_training.train_cli", "shards", str(tmp_path / "in"), *arguments, "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, str(whole)], check=True, capture_output=True, timeout=WAIT_S)
    for wanted in (".shard-*.tmp", "shard-*.json"):
        with subprocess.Popen([*command, str(broken)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + WAIT_S
            while not list(broken.glob(wanted)) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
    assert len(contents(broken)) < len(contents(whole)) or (broken / "shards.json").is_file()
    subprocess.run([*command, str(broken)], check=True, capture_output=True, timeout=WAIT_S)
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize("name", ["notes.txt", "shard-000000.tar", "shards.json"])
def test_another_folder_is_left_alone(videos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ShardError, match="not empty and holds no shards"):
        run(plan_videos([videos], CONFIG), tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_shards_of_other_settings_or_videos_are_left_alone(videos: Path, out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(videos, tmp_path / "copy")
    before = contents(out)
    write_numbered_video(copy / "c.mp4", 40)
    other = CutConfig(size=16, clip_frames=10, min_frames=6, shard_mb=1e-6)
    for changed in (plan_videos([copy], CONFIG), plan_videos([videos], other), plan_scenes("scenes", 2, 0, CONFIG)):
        with pytest.raises(ShardError, match="shards of other videos or settings"):
            run(changed, out)
    assert contents(out) == before


def test_files_that_a_killed_process_left_go(videos: Path, out: Path, tmp_path: Path) -> None:
    (out / ".shard-000000.tar.0123abcd.tmp").write_text("half")
    run(plan_videos([videos], CONFIG), out)
    assert not list(out.glob(".*"))


def test_a_process_may_have_been_killed_at_its_very_first_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / ".job.json.0123abcd.tmp").write_text("half")
    run(plan_videos([videos / "b" / "x.mp4"], CONFIG), tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_two_at_a_time_are_refused(videos: Path, out: Path) -> None:
    job = plan_videos([videos], CONFIG)
    with open(out / "job.json", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another process"):
            run(job, out)
    run(job, out)


@pytest.mark.parametrize("shard_mb", [1e-6, 1.0])
def test_a_video_that_crashes_the_decoder_is_skipped(videos: Path, tmp_path: Path, shard_mb: float) -> None:
    config = CutConfig(size=32, clip_frames=10, min_frames=6, shard_mb=shard_mb)
    summary = run(plan_videos([videos], config), tmp_path, workers=2, make=crashing_make)
    assert [skip.video for skip in summary.skipped] == ["c.mp4", "d.mp4", "e.mp4"]
    assert "crashed" in summary.skipped[0].reason
    assert summary.clips == 5 and len(ShardFolder(tmp_path)) == 5
    assert read_json(tmp_path / "crashes.json") == {"videos": ["c.mp4"]}
    assert not list(tmp_path.glob(".*"))


def test_not_every_video_can_crash_the_decoder(videos: Path, tmp_path: Path) -> None:
    config = CutConfig(size=32, clip_frames=10, min_frames=6)
    with pytest.raises(ShardError, match=r"ended 3 times at shard-000000.*remove crashes.json"):
        run(plan_videos([videos], config), tmp_path, make=hopeless_make)


def test_an_error_leaves_what_is_done(videos: Path, tmp_path: Path) -> None:
    job = plan_videos([videos], CONFIG)
    with pytest.raises(OSError, match="No space left"):
        run(job, tmp_path, make=failing_make)
    assert (tmp_path / "shard-000000.json").is_file() and not (tmp_path / "shards.json").exists()
    assert run(job, tmp_path).clips == 8


def test_scenes_become_clips(tmp_path: Path) -> None:
    config = CutConfig(size=32, clip_frames=5, min_frames=5)
    run(plan_scenes("scenes", 3, 7, config), tmp_path)
    shards = ShardFolder(tmp_path)
    shard, number = shards.locate(2)
    assert len(shards) == 3 and shard.length(number) == 5 and shard.read(number, 4).shape == (32, 32, 3)
    assert read_json(tmp_path / "job.json")["shards"] == [["7", "8", "9"]]


def test_progress_is_told(videos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    run_job(plan_videos([videos], CONFIG), tmp_path, workers=1, progress=lambda *values: told.append(values))
    assert told[0] == (0, 0, 0) and told[-1] == (5, 8, 2)
    assert told == sorted(told) and len(set(told)) >= 5


def test_videos_share_shards_by_their_size(videos: Path) -> None:
    sizes = [path.stat().st_size for path in sorted(videos.rglob("*.mp4"))]
    room = (sizes[0] + sizes[1]) / 1e6
    config = CutConfig(size=32, clip_frames=10, min_frames=6, shard_mb=room)
    job = plan_videos([videos], config)
    assert job.shards[0] == ("a.mp4", "b/x.mp4") and job.items == 5
    assert all(sum(shard) <= room * 1e6 or len(shard) == 1 for shard in job.sizes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 4}, "size of 16 to 4096"),
        ({"clip_frames": 0}, "clip_frames"),
        ({"min_frames": 65}, "min_frames of 1 to 64"),
        ({"stride": 0}, "stride"),
        ({"quality": 101}, "quality"),
        ({"shard_mb": 0.0}, "shard_mb"),
    ],
)
def test_settings_that_make_no_clips(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CutConfig(**values)  # type: ignore[arg-type]


def test_a_size_that_changes_ends_the_video(monkeypatch: pytest.MonkeyPatch, videos: Path, tmp_path: Path) -> None:
    read = cut.read_video

    def changing(path: Path, *, size: int, stride: int) -> object:
        for number, frame in enumerate(read(path, size=size, stride=stride)):
            yield frame if number < 12 else frame[:16]

    monkeypatch.setattr(cut, "read_video", changing)
    job = plan_videos([videos / "a.mp4"], CONFIG)
    made = make_shard(job, tmp_path, 0, (), lambda *_: None)
    assert made.clips == 1 and "changes after 12 frames; 1 of its clips are used" in made.skipped[0].reason

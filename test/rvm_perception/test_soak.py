"""A soak test of 2,000 frames as `rvm soak` runs it, and its report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rvm_core.cli import main
from rvm_perception.shared_memory import forget_segments, segments_of
from rvm_perception.soak_check import Verdict
from rvm_perception.soak_client import ledger_fault
from rvm_perception.soak_frames import ENGINE_FAULTS, FAULTS
from rvm_perception.soak_report import failed, make_report, make_table, memory_growth
from rvm_perception.soak_run import Findings

SOAK_TIMEOUT_S = 600
OWN_GROWTH_MB = 16.0
"""Torch's and Python's allocators still settle in 2,000 frames; a frame that is kept, of 9 KB, would cost 18 MB."""


def findings(**changes: Any) -> Findings:
    sound = Findings(
        frames=10,
        injected=Counter(late=2, raised=1),
        verdict=Verdict(compared=7),
        memory=[(0, 100_000_000, 0), (100, 101_000_000, 5_000_000), (1000, 102_500_000, 5_000_000)],
        restart_s=[2.0, 3.0, 2.5],
        start_s=[2.0],
        end_s=[0.25, 0.75],
        soak_s=2.0,
        soak_outputs=300,
    )
    for name, value in changes.items():
        setattr(sound, name, value)
    return sound


DELIVERY = [
    {"profile": "Fast DDS defaults", "size": "640x480", "reliability": "best_effort", "sent": 90, "received": 12}
]


def report(**changes: Any) -> dict[str, Any]:
    made = make_report(findings(**changes), DELIVERY, {"seed": 0}, {"cpu": "an abacus"})
    restored: dict[str, Any] = json.loads(json.dumps(made))
    return restored


def test_the_report_holds_the_figures() -> None:
    table = make_table(report())
    for text in (
        "3 / 0 / 0",
        "+1.5 MB over 900 frames",
        "150",
        "2.5 s (median of 3, at most 3.0)",
        "at most 0.8 s",
        "12 of 90",
    ):
        assert text in table, table


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"crashes": ["exit code -11"]}, ["crash: exit code -11"]),
        ({"verdict": Verdict(compared=3, different=["index 4"])}, ["silent state change: index 4"]),
        ({"ledger_faults": ["received 3, processed 1"]}, ["counts do not add up: received 3, processed 1"]),
        ({"verdict": Verdict()}, ["no output could be compared"]),
        ({"queries": 3, "answers": 2}, ["3 track queries had 2 answers"]),
    ],
)
def test_what_must_not_be_is_told(changes: dict[str, Any], expected: list[str]) -> None:
    assert failed(report(**changes)) == expected


def test_memory_growth_is_that_after_the_warm_up() -> None:
    samples = [(frames, 100_000_000 + (50_000_000 if frames >= 100 else 0), 7) for frames in range(0, 1001, 50)]
    growth = memory_growth(samples)
    assert (growth["own_mb"], growth["shared_mb"], growth["frames"]) == (0, 0, 900)
    leaking = [(frames, own + frames * 1000, shared) for frames, own, shared in samples]
    assert memory_growth(leaking)["own_mb"] > 0.7


@pytest.mark.parametrize(
    ("counts", "sound"),
    [
        ({"received": 9, "processed": 5, "dropped": 2, "rejected": 1, "waiting": 1, "rejected_late": 3}, True),
        ({"received": 9, "processed": 5, "dropped": 2, "rejected": 1, "rejected_late": 3}, False),
        ({"received": 8, "processed": 5, "dropped": 2, "rejected": 1, "rejected_late": 2}, False),
    ],
)
def test_ledgers_are_added_up(counts: dict[str, int], sound: bool) -> None:
    assert (ledger_fault(counts) == "") == sound


def test_only_segments_of_fast_dds_are_removed(tmp_path: Path) -> None:
    unused, foreign = (tmp_path / name for name in ("fastrtps_unused", "other"))
    for path in (unused, foreign):
        path.write_bytes(bytes(4096))
    assert segments_of(2**22 + 1) == set()
    forget_segments(map(str, (unused, foreign, tmp_path / "fastrtps_gone")))
    assert foreign.exists() and not unused.exists()


def test_a_mapped_segment_stays() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("this system has no /dev/shm")
    code = (
        "import mmap, os, sys; path = f'/dev/shm/fastrtps_rvm_test_{os.getpid()}'; file = open(path, 'w+b')\n"
        "file.truncate(4096); mapped = mmap.mmap(file.fileno(), 4096); print(path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        path = process.stdout.readline().strip()
        segments = segments_of(process.pid)
        assert path in segments
        forget_segments(segments)
        assert Path(path).exists()
        process.stdin.close()
        process.wait(timeout=20)
    forget_segments(segments)
    assert not Path(path).exists()


def test_too_few_frames_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rclpy", reason="ROS is not installed")
    assert main(["soak", "--frames", "99"]) == 2
    assert "--frames must be 100 or more" in capsys.readouterr().err


def test_soak(tmp_path: Path) -> None:
    """2,000 frames, every kind of fault: no crash, no silent change, every frame accounted for."""
    pytest.importorskip("rclpy", reason="ROS is not installed")
    options = ["--frames", "2000", "--kills", "1", "--overload", "3", "--delivery", "10", "--delivery-sizes", "480x640"]
    command = [sys.executable, "-m", "rvm_core.cli", "soak", *options, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOAK_TIMEOUT_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads((tmp_path / "soak.json").read_text())
    faults = result["faults"]
    assert faults["by_kind"].keys() == {*FAULTS, "kill -9"}
    assert faults["frames"] >= 2000 and faults["outputs_compared"] > 1000
    assert (faults["outputs_lost"], faults["outputs_unknown"]) == (0, 0)
    counts = faults["counts"]
    assert {name for name in counts if name.startswith("rejected_")} >= {
        "rejected_duplicate", "rejected_late", "rejected_encoding", "rejected_size",
        "rejected_not_finite", "rejected_engine", "rejected_out_of_memory",
    }  # fmt: skip
    assert counts["resets"] > 10
    assert (
        0
        < sum(counts[f"rejected_{name}"] for name in ("engine", "not_finite", "out_of_memory"))
        <= sum(faults["by_kind"][name] for name in ENGINE_FAULTS)
    )
    overload = result["overload"]
    assert overload["published"] == overload["received"] + overload["lost"]
    assert overload["received"] == overload["processed"] + overload["dropped"] + overload["rejected"]
    assert overload["processed"] == overload["outputs"] and overload["dropped"] + overload["lost"] > 0
    assert len(result["restart"]["kill_to_first_output_s"]) == 1
    assert result["memory"]["own_mb"] < OWN_GROWTH_MB
    delivered = {(row["profile"], row["reliability"]): row["received"] for row in result["delivery"]}
    assert len(delivered) == 4
    assert delivered["shared-memory profile", "reliable"] > 0

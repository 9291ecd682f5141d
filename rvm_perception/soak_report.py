"""What a soak test found: a table for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rvm_perception.soak_run import Findings

FORMAT_VERSION = 1
"""Of the JSON file. Grows when an older reader would misread it."""
_WARM_UP = 0.1
"""Part of the frames after which memory should no longer grow."""
_ENDS = 0.1
"""Part of the samples at each end that growth is measured between."""


def make_report(
    findings: Findings, delivery: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything, as JSON has it."""
    verdict = findings.verdict
    return {
        "format_version": FORMAT_VERSION,
        "machine": dict(machine),
        "settings": dict(settings),
        "faults": {
            "frames": findings.frames,
            "injected": sum(findings.injected.values()),
            "by_kind": dict(sorted(findings.injected.items())),
            "crashes": findings.crashes,
            "silent_state_changes": verdict.different,
            "outputs_compared": verdict.compared,
            "outputs_unknown": verdict.unknown,
            "outputs_lost": findings.lost_outputs,
            "counts": dict(sorted(findings.counts.items())),
            "counts_that_do_not_add_up": findings.ledger_faults,
            "queries": findings.queries,
            "answers": findings.answers,
        },
        "speed": {"frames_per_s": findings.soak_outputs / findings.soak_s if findings.soak_s else None},
        "memory": memory_growth(findings.memory),
        "restart": {
            "kill_to_first_output_s": findings.restart_s,
            "start_to_first_output_s": findings.start_s,
            "sigint_to_end_s": findings.end_s,
        },
        "delivery": [dict(row) for row in delivery],
        "overload": findings.overload,
    }


def memory_growth(samples: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Growth of resident memory in MB from the end of the warm-up to the end, medians of several samples each.

    samples: frames sent, bytes of the node's own and bytes that it shares.
    """
    if len(samples) < 2:
        return {"frames": 0, "own_mb": None, "shared_mb": None, "samples": []}
    last = samples[-1][0]
    after = [sample for sample in samples if sample[0] >= last * _WARM_UP]
    count = max(1, round(len(after) * _ENDS))
    own, shared = (
        float(np.median([s[part] for s in after[-count:]]) - np.median([s[part] for s in after[:count]])) / 1e6
        for part in (1, 2)
    )
    return {
        "frames": last - after[0][0],
        "own_mb": round(own, 3),
        "shared_mb": round(shared, 3),
        "samples": [[frames, round(a / 1e6, 2), round(b / 1e6, 2)] for frames, a, b in samples],
    }


def failed(report: Mapping[str, Any]) -> list[str]:
    """What must not be, in a line each: crashes, silent changes of the state, counts that do not add up."""
    faults = report["faults"]
    lines = [f"crash: {text}" for text in faults["crashes"]]
    lines += [f"silent state change: {text}" for text in faults["silent_state_changes"]]
    lines += [f"counts do not add up: {text}" for text in faults["counts_that_do_not_add_up"]]
    if faults["outputs_compared"] == 0:
        lines.append("no output could be compared")
    if faults["queries"] != faults["answers"]:
        lines.append(f"{faults['queries']} track queries had {faults['answers']} answers")
    return lines


def make_table(report: Mapping[str, Any]) -> str:
    """The five figures."""
    faults, memory, overload = report["faults"], report["memory"], report["overload"]
    rows = [
        (
            "faults injected / crashes / silent state changes",
            f"{faults['injected']} / {len(faults['crashes'])} / {len(faults['silent_state_changes'])}",
        ),
        ("frames sent, outputs compared bit for bit", f"{faults['frames']}, {faults['outputs_compared']}"),
    ]
    if memory["own_mb"] is not None:
        text = f"{memory['own_mb']:+.1f} MB over {memory['frames']} frames"
        text += f" (shared with others: {memory['shared_mb']:+.1f} MB)"
        rows.append(("growth of resident memory", text))
    if report["speed"]["frames_per_s"]:
        rows.append(("outputs per second, with the faults", f"{report['speed']['frames_per_s']:.0f}"))
    times = report["restart"]["kill_to_first_output_s"]
    if times:
        text = f"{np.median(times):.1f} s (median of {len(times)}, at most {max(times):.1f})"
        rows.append(("kill -9 to first output", text))
    if ends := report["restart"]["sigint_to_end_s"]:
        rows.append(("SIGINT to end", f"at most {max(ends):.1f} s"))
    if overload:
        age = overload["age_ms"]
        rows += [
            (
                f"output age at 3x overload ({overload['camera_hz']:.0f} Hz in, {overload['node_hz']:.0f} Hz possible)",
                f"p50 {age['p50']:.0f} ms, p99 {age['p99']:.0f} ms, max {age['max']:.0f} ms",
            ),
            (
                "its frames",
                "{published} published = {received} received + {lost} lost; "
                "received = {processed} processed + {dropped} dropped + {rejected} rejected".format(**overload),
            ),
        ]
    for row in report["delivery"]:
        name = f"delivered: {row['size']} rgb8 at 30 Hz, {row['reliability'].replace('_', ' ')}, {row['profile']}"
        rows.append((name, f"{row['received']} of {row['sent']}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

"""What `rvm bench` shows: statistics of what was measured, a table, a JSON file and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvm_core.atomic import atomic_file
from rvm_core.bench import Group, Measurement, Options, torch_device
from rvm_core.bench_worker import matmul_flops
from rvm_core.checkpoint import read_info
from rvm_core.config import RVMConfig, TRecViTConfig
from rvm_core.encoders import named_config
from rvm_core.flops import step_flops

FORMAT_VERSION = 1
"""Of the JSON file. Grows when an older reader would misread it."""

_PACKAGES = ("torch", "openvino", "tensorrt", "tensorrt_rtx_cu12", "tensorrt_rtx_cu13", "numpy")
_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_PEAK_OF = {"int8": "bf16"}
"""Torch has no fast int8 product to compare with."""
_RATIOS = (
    "flops",
    "tflops",
    "share_of_peak",
    "share_of_launch_floor",
    "speedup_over_eager_fp32",
    "speedup_over_eager_bf16",
)
SOAK_WARM_UP = 0.1
"""Part of a soak after which memory should no longer grow."""

Rounds = Mapping[int, Sequence[float]]
"""Seconds of each step, by round."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """Statistics of single steps, seconds."""

    median: float
    p95: float
    jitter: float
    """p95 - p5."""

    @classmethod
    def of(cls, rounds: Rounds) -> Summary:
        """Raises `ValueError` if nothing was measured."""
        samples = [seconds for steps in rounds.values() for seconds in steps]
        if not samples:
            raise ValueError("expected at least one measured step")
        p5, median, p95 = np.percentile(samples, (5, 50, 95))
        return cls(float(median), float(p95), float(p95 - p5))


def paired_ratio(numerator: Rounds, denominator: Rounds) -> float | None:
    """Median over the rounds in both of the ratio of their medians; None if no round is in both."""
    ratios = [
        np.median(numerator[number]) / np.median(denominator[number])
        for number in numerator.keys() & denominator.keys()
        if len(numerator[number]) and len(denominator[number])
    ]
    return float(np.median(ratios)) if ratios else None


def soak_growth(soak: Sequence[tuple[int, int]]) -> int | None:
    """Bytes by which the most resident memory after the warm-up is above that at its end; None without a soak."""
    if not soak:
        return None
    warm = [resident for steps, resident in soak if steps > SOAK_WARM_UP * soak[-1][0]]
    return max(warm) - warm[0]


def make_rows(group: Group) -> list[Row]:
    """One row for each measurement: what was measured, and the figures, None where there is none."""
    return [_row(measurement, group) for measurement in group.measurements]


def _row(measurement: Measurement, group: Group) -> Row:
    job = measurement.job
    row: Row = {
        "kind": job.kind,
        "name": job.name,
        "model": job.model if job.kind in ("engine", "eager") else None,
        "image_size": list(job.image_size) if job.kind != "matmul" else None,
        "cameras": job.cameras,
        "arrangement": job.arrangement,
        "device": job.device,
        "failure": measurement.failure,
    }
    return row | _times(measurement) | _ratios(measurement, group) | _memory(measurement) | _raw(measurement)


def _times(measurement: Measurement) -> Row:
    if not any(measurement.rounds.values()):
        return dict.fromkeys(("steps", "median_ms", "p95_ms", "jitter_ms", "steps_per_s", "frames_per_s"))
    summary = Summary.of(measurement.rounds)
    return {
        "steps": sum(map(len, measurement.rounds.values())),
        "median_ms": summary.median * 1e3,
        "p95_ms": summary.p95 * 1e3,
        "jitter_ms": summary.jitter * 1e3,
        "steps_per_s": 1 / summary.median,
        "frames_per_s": measurement.job.cameras / summary.median,
    }


def _ratios(measurement: Measurement, group: Group) -> Row:
    job, ready, rounds = measurement.job, measurement.ready, measurement.rounds
    empty: Row = dict.fromkeys(_RATIOS)
    if not any(rounds.values()) or job.kind == "preprocess":
        return empty
    median = Summary.of(rounds).median
    if job.kind == "matmul":
        flops = matmul_flops(job.device)
        return empty | {"flops": flops, "tflops": flops / median / 1e12}
    flops = step_flops(_config(measurement), job.image_size) * job.cameras
    row = empty | {"flops": flops, "tflops": flops / median / 1e12}
    peak = _reference(group, "matmul", _PEAK_OF.get(job.precision, job.precision), job.device)
    if peak and (ratio := paired_ratio(peak.rounds, rounds)):
        row["share_of_peak"] = ratio * flops / matmul_flops(peak.job.device)
    for precision in ("fp32", "bf16"):
        if eager := _reference(group, "eager", precision, job.device):
            row[f"speedup_over_eager_{precision}"] = paired_ratio(eager.rounds, rounds)
    if ready and ready.kernels and ready.launch_s:
        row["share_of_launch_floor"] = ready.kernels * ready.launch_s / median
    return row


def _config(measurement: Measurement) -> RVMConfig | TRecViTConfig:
    job = measurement.job
    if not job.weights:
        return named_config(job.model)
    config: RVMConfig | TRecViTConfig = read_info(job.weights).config
    return config


def _reference(group: Group, kind: str, precision: str, device: str) -> Measurement | None:
    wanted = (kind, precision, torch_device(device))
    return next((m for m in group.measurements if (m.job.kind, m.job.precision, m.job.device) == wanted), None)


def _memory(measurement: Measurement) -> Row:
    """In MB of 10^6 bytes."""
    turn, ready, job = measurement.turn, measurement.ready, measurement.job
    weights = ready.parameters * _BYTES.get(job.precision, 4) if ready and ready.parameters else None
    growth = soak_growth(measurement.soak)
    return {
        "weights_mb": _mb(weights),
        "resident_mb": _mb(turn.resident_bytes if turn else None),
        "peak_mb": _mb(turn.peak_bytes if turn else None),
        "device_mb": _mb(turn.device_bytes if turn else None),
        "soak_growth_mb": _mb(growth),
    }


def _mb(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _raw(measurement: Measurement) -> Row:
    return {
        "ready": asdict(measurement.ready) if measurement.ready else None,
        "idle_cpu": float(np.median(measurement.idle_cpu)) if measurement.idle_cpu else None,
        "soak_mb": [[steps, resident / 1e6] for steps, resident in measurement.soak],
        "rounds_ms": {str(n): [round(s * 1e3, 4) for s in steps] for n, steps in measurement.rounds.items()},
    }


def describe_machine() -> dict[str, Any]:
    """Processor, GPUs, memory and versions."""
    cpu, flags = _processor()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu,
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> tuple[str, set[str]]:
    """Name and flags of the processor as Linux gives them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", set()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return fields.get("model name", platform.machine()), set(fields.get("flags", fields.get("Features", "")).split())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def make_report(groups: Sequence[Group], options: Options, machine: dict[str, Any], *, interrupted: bool) -> Row:
    """Everything that was measured, as JSON has it."""
    rows = [row for group in groups for row in make_rows(group)]
    readies = [m.ready for group in groups for m in group.measurements if m.ready]
    return {
        "format_version": FORMAT_VERSION,
        "interrupted": interrupted,
        "machine": machine | {"threads": max((ready.threads for ready in readies), default=None)},
        "options": asdict(options),
        "rows": rows,
    }


def write_json(report: Row, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# ---- table ----------------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("median_ms", "median ms", ".2f"),
    ("p95_ms", "p95", ".2f"),
    ("jitter_ms", "p95-p5", ".2f"),
    ("frames_per_s", "frames/s", ".1f"),
    ("tflops", "TFLOP/s", ".3f"),
    ("share_of_peak", "of peak", ".0%"),
    ("share_of_launch_floor", "floor/step", ".0%"),
    ("speedup_over_eager_fp32", "x fp32", ".2f"),
    ("speedup_over_eager_bf16", "x bf16", ".2f"),
    ("weights_mb", "weights MB", ".0f"),
    ("resident_mb", "resident MB", ".0f"),
    ("peak_mb", "peak MB", ".0f"),
    ("device_mb", "GPU MB", ".0f"),
    ("soak_growth_mb", "growth MB", ".2f"),
)
_OPTIONAL = {"share_of_launch_floor", "device_mb", "soak_growth_mb"}
"""Columns that are left out where they are empty."""


def workload_title(row: Row) -> str:
    """What was stepped, such as "rvm_s16 480x880, 4 cameras in turns", height before width."""
    if row["kind"] == "preprocess":
        return "preprocessing, 1080p frame to"
    size = "x".join(map(str, row["image_size"] or ()))
    cameras = row["cameras"]
    how = "" if cameras == 1 else f", {cameras} cameras {'as a batch' if row['arrangement'] == 'batch' else 'in turns'}"
    return f"{row['model']} {size}{how}"


def make_table(report: Row) -> str:
    """Plain text with one line for each row, below a title for each workload."""
    rows: list[Row] = report["rows"]
    columns = [c for c in _COLUMNS if c[0] not in _OPTIONAL or any(row[c[0]] is not None for row in rows)]
    lines: list[tuple[list[str] | str, str]] = []
    title = ""
    for row in rows:
        if row["kind"] != "matmul" and workload_title(row) != title:
            title = workload_title(row)
            lines.append((title, ""))
        cells = [_label(row), *("-" if row[key] is None else format(row[key], form) for key, _, form in columns)]
        lines.append((cells, f"  failed: {_one_line(row['failure'])}" if row["failure"] else ""))
    header = ["ms: one step of all cameras", *(name for _, name, _ in columns)]
    cell_lines = [header, *(cells for cells, _ in lines if isinstance(cells, list))]
    widths = [max(len(cells[i]) for cells in cell_lines) for i in range(len(header))]
    out = [aligned(header, widths)]
    for line, note in lines:
        if isinstance(line, str):
            out += ["", line]
        elif note and set(line[1:]) == {"-"}:
            out.append(f"{line[0]:<{widths[0]}}{note}")
        else:
            out.append(aligned(line, widths) + note)
    return "\n".join(out)


def _label(row: Row) -> str:
    if row["kind"] == "preprocess":
        return "  " + "x".join(map(str, row["image_size"]))
    where = "" if row["device"] == "cpu" else f" {row['device']}"
    return f"  {row['name']}{where}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table: the first cell from the left, the others from the right."""
    return "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])

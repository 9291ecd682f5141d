"""`rvm-train readout`, once torch may be loaded: clips, features, training, the file and what it is worth."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rvm_core.bench_plot import PlotError
from rvm_core.bench_report import describe_machine
from rvm_core.exit_codes import DISK_FULL, DIVERGED, DONE, INTERRUPTED, DiskFullError, disk_full_errors
from rvm_core.readout_checkpoint import save_readout
from rvm_core.stop_request import stop_request
from rvm_training.evaluation.command import load_model
from rvm_training.feature_cache import (
    CachePlan,
    FeatureStore,
    make_in_memory,
    make_live,
    make_on_disk,
    plan_cache,
)
from rvm_training.readout_report import draw_curve, write_curve, write_summary
from rvm_training.readout_state import CurvePoint
from rvm_training.readouts.clips import ClipEncoder, ClipSource, ModelEncoder, pixel_encoder
from rvm_training.readouts.measure import Metrics, measure
from rvm_training.readouts.presets import END_LEARNING_RATE, PRESETS, WEIGHT_DECAY
from rvm_training.readouts.sources import ENTRIES, SourceRequest, open_source
from rvm_training.readouts.tasks import ReadoutTask
from rvm_training.train_readout import Trained, Training, TrainingConfig, TrainingError, train

SAVE_SECONDS = 60.0
"""Time between two savings of the state."""
_MEMORY_SHARE = 0.4
"""Features may take up so much of the memory that is free."""
_RECURRENT_FRAMES, _WINDOW_FRAMES = 24, 16
_OBJECTS, _BOXES = 4, 25
_METRIC_TEXT = {
    "average_jaccard": "average Jaccard",
    "position_accuracy": "position accuracy",
    "occlusion_accuracy": "occlusion accuracy",
    "box_iou": "box IoU",
    "abs_rel": "AbsRel (less is better)",
    "top_1": "top-1",
    "end_point_error": "end-point error (less is better)",
}


@dataclass(frozen=True, kw_only=True)
class _Files:
    out: Path

    @property
    def state(self) -> Path:
        return self.out.with_suffix(".resume.safetensors")

    @property
    def start(self) -> Path:
        return self.out.with_name(f".{self.out.stem}.start.safetensors")


def run(args: argparse.Namespace) -> int:
    """Does what `rvm-train readout` was asked. Returns the exit code."""
    files = _Files(out=args.out)
    # Before an hour is spent on a file that cannot be written.
    try:
        with disk_full_errors(str(files.out)):
            return _run(args, files)
    except DiskFullError as error:
        print(f"rvm-train: error: {error}", file=sys.stderr)
        return DISK_FULL
    except TrainingError as error:
        print(f"rvm-train: error: {error}", file=sys.stderr)
        return DIVERGED


def _run(args: argparse.Namespace, files: _Files) -> int:
    files.out.parent.mkdir(parents=True, exist_ok=True)
    if args.resume and not files.state.is_file():
        raise ValueError(f"there is no stopped training at {files.state}; start it without --resume")
    encoder, name = _encoder(args)
    sources = _sources(args)
    task = _task(args, encoder, sources[0])
    config = _config(args, task)
    plans = [_plan(args, source, encoder, task) for source in sources]
    started = time.perf_counter()
    stores = [_store(args, plan, what) for plan, what in zip(plans, ("training", "held-out"), strict=True)]
    feature_seconds = time.perf_counter() - started
    started = time.perf_counter()
    trained = _train(args, files, task, config, plans, stores)
    if not trained.finished or trained.head is None:
        print(f"rvm-train: interrupted; the same command with --resume goes on from {files.state}", file=sys.stderr)
        return INTERRUPTED
    train_seconds = time.perf_counter() - started
    save_readout(trained.head, files.out)  # type: ignore[arg-type]
    metrics = _metrics(task, files, stores[1])
    summary = {
        "task": task.identity(),
        "encoder": {"name": name, **encoder.identity},
        "clips": {"training": dict(sources[0].identity), "held_out": dict(sources[1].identity)},
        "clips_used": [len(store.usable) for store in stores],
        "clips_skipped": [store.skipped for store in stores],
        "training": asdict(config),
        "rates": [asdict(result) for result in trained.progress.results],
        "learning_rate": trained.best_rate,
        "metrics": {key: _plain(values) for key, values in metrics.items()},
        "seconds": {"features": round(feature_seconds, 1), "training": round(train_seconds, 1)},
        "machine": describe_machine(),
    }
    _write(files, trained, summary)
    _show(files, trained, stores, metrics, summary)
    files.state.unlink(missing_ok=True)
    return DONE


# What is trained on what


def _encoder(args: argparse.Namespace) -> tuple[ClipEncoder, str]:
    if args.pixels:
        return pixel_encoder(), "raw pixels"
    logging.getLogger("rvm_core").addHandler(logging.NullHandler())
    model, name = load_model(args)
    return ModelEncoder(model, device=_device(args), autocast=args.bfloat16), name


def _device(args: argparse.Namespace) -> torch.device:
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _head_kind(args: argparse.Namespace) -> str:
    return args.head or ("recurrent" if args.task in ("points", "boxes") else "window")


def _clip_frames(args: argparse.Namespace) -> int:
    frames: int = args.frames or (_RECURRENT_FRAMES if _head_kind(args) == "recurrent" else _WINDOW_FRAMES)
    return frames


def _sources(args: argparse.Namespace) -> tuple[ClipSource, ClipSource]:
    name, path = args.data
    held_name, held_path = args.held_out_data or args.data
    split = args.split or ENTRIES[name].splits[0]
    held_split = args.held_out_split or ENTRIES[held_name].splits[1]
    common: dict[str, Any] = {
        "task": args.task,
        "image_size": args.size,
        "frames": _clip_frames(args),
        # The protocol has every second frame for classes.
        "stride": args.stride or (2 if args.task == "class" else 1),
        "points": args.points,
        "objects": args.objects or (_BOXES if path else _OBJECTS),
        "seed": args.seed,
        "set_aside": (path, split) == (held_path, held_split),
    }
    training = SourceRequest(path=path, split=split, held_out=False, count=args.clips, **common)
    held_out = SourceRequest(path=held_path, split=held_split, held_out=True, count=args.held_out, **common)
    return open_source(name, training), open_source(held_name, held_out)


def _task(args: argparse.Namespace, encoder: ClipEncoder, source: ClipSource) -> ReadoutTask:
    preset = PRESETS[args.preset]
    return ReadoutTask(
        task=args.task,
        head="recurrent" if _head_kind(args) == "recurrent" else "window",
        features=encoder.width,
        image_size=args.size,
        frames=args.frames or _WINDOW_FRAMES,
        channels=args.channels or preset.channels,
        num_heads=args.heads or preset.num_heads,
        classes=len(getattr(source, "classes", ())) or None,
        truncate=args.truncate,
        seed=args.seed,
    )


def _config(args: argparse.Namespace, task: ReadoutTask) -> TrainingConfig:
    preset = PRESETS[args.preset]
    steps = args.steps or preset.steps
    return TrainingConfig(
        steps=steps,
        batch_size=args.batch or preset.batch_size,
        learning_rates=tuple(args.learning_rates or preset.learning_rates),
        # Of a short training no more than a tenth.
        warmup_steps=min(preset.warmup_steps, steps // 10) if args.warmup is None else args.warmup,
        end_learning_rate=END_LEARNING_RATE if args.end_learning_rate is None else args.end_learning_rate,
        weight_decay=WEIGHT_DECAY if args.weight_decay is None else args.weight_decay,
        clip_norm=args.clip_norm or (1.0 if task.head == "recurrent" else None),
        seed=args.seed,
    )


# Features


def _plan(args: argparse.Namespace, source: ClipSource, encoder: ClipEncoder, task: ReadoutTask) -> CachePlan:
    return plan_cache(source, encoder, keep=task.keep(_clip_frames(args)), dtype=args.cache_dtype)


def _store(args: argparse.Namespace, plan: CachePlan, what: str) -> FeatureStore:
    where = _where(args, plan)
    size = f"{len(plan.source)} {what} clips of {plan.source.name}, {plan.num_bytes / 1e9:.2f} GB"
    if where == "live":
        print(f"{size} if they were kept: features are made again for each batch", file=sys.stderr)
        return make_live(plan)
    place = str(args.cache / plan.key) if where == "disk" else "memory"
    print(f"{size} of features in {place}", file=sys.stderr)
    with tqdm(total=len(plan.source), unit="clip", desc=f"features, {what}", disable=None, leave=False) as bar:
        if where == "disk":
            return make_on_disk(plan, args.cache, workers=args.workers, progress=bar.update)
        return make_in_memory(plan, workers=args.workers, progress=bar.update)


def _where(args: argparse.Namespace, plan: CachePlan) -> str:
    if args.features == "disk" and not args.cache:
        raise ValueError("features on the disk need a folder: --cache DIR")
    if args.features != "auto":
        return str(args.features)
    if args.cache:
        return "disk"
    return "memory" if plan.num_bytes < _MEMORY_SHARE * _free_memory() else "live"


def _free_memory() -> float:
    """Bytes; without bound where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf


# Training


def _train(
    args: argparse.Namespace,
    files: _Files,
    task: ReadoutTask,
    config: TrainingConfig,
    plans: list[CachePlan],
    stores: list[FeatureStore],
) -> Trained:
    identity = {"task": task.identity(), "clips": plans[0].key, "held_out": plans[1].key}
    with _bar(config) as (bar, advance), stop_request(lambda: bar.set_description("stopping")) as stop:
        training = Training(
            make_head=task.make_head,
            loss=task.loss,
            clips=stores[0],
            held_out=stores[1],
            config=config,
            identity=identity,
            state_file=files.state,
            device=_device(args),
            stop=stop.is_set,
            save_now=_every(SAVE_SECONDS),
            advance=advance,
            measured=lambda point: bar.write(_line(point, config), file=sys.stderr),
        )
        if not args.resume:
            save_readout(task.make_head().eval(), files.start)  # type: ignore[arg-type]
        return train(training, resume=args.resume)


def _line(point: CurvePoint, config: TrainingConfig) -> str:
    loss, held_out = ("-" if value is None else f"{value:.4g}" for value in (point.loss, point.held_out))
    return f"rate {point.learning_rate:g}, step {point.step} of {config.steps}: loss {loss}, held out {held_out}"


def _every(seconds: float) -> Callable[[], bool]:
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return False
        last = now
        return True

    return due


@contextmanager
def _bar(config: TrainingConfig) -> Iterator[tuple[Any, Callable[[str, int], None]]]:
    total = config.steps * len(config.learning_rates)
    with tqdm(total=total, unit="step", disable=None, leave=False) as bar:

        def advance(text: str, done: int) -> None:
            bar.set_description(text, refresh=False)
            bar.update(done)

        yield bar, advance


# Results


def _metrics(task: ReadoutTask, files: _Files, held_out: FeatureStore) -> dict[str, Metrics]:
    """Figures of the trained file, of its first weights and, for tracks, of the tracker that needs no training."""
    save_readout(task.make_head().eval(), files.start)  # type: ignore[arg-type]
    which: dict[str, Path | None] = {"trained": files.out, "before training": files.start}
    if task.task in ("points", "boxes"):
        which["training-free tracker"] = None
    try:
        with tqdm(
            total=len(which) * len(held_out.usable), unit="clip", desc="measuring", disable=None, leave=False
        ) as bar:
            return {
                name: measure(task.task, path, held_out, task.grid, advance=bar.update) for name, path in which.items()
            }
    finally:
        files.start.unlink(missing_ok=True)


def _write(files: _Files, trained: Trained, summary: Mapping[str, Any]) -> None:
    curve = trained.progress.curve
    write_curve(files.out.with_suffix(".csv"), curve)
    write_summary(files.out.with_suffix(".json"), summary)
    try:
        title = f"{summary['task']['task']}, {summary['encoder']['name']}"
        draw_curve(files.out.with_suffix(".png"), curve, title)
    except PlotError as error:
        print(f"rvm-train: {error}", file=sys.stderr)


def _show(
    files: _Files,
    trained: Trained,
    stores: list[FeatureStore],
    metrics: Mapping[str, Metrics],
    summary: Mapping[str, Any],
) -> None:
    print(f"{len(stores[0].usable)} clips, held out {len(stores[1].usable)}; best rate {trained.best_rate:g}")
    for store, what in zip(stores, ("training", "held-out"), strict=True):
        if store.skipped:
            print(f"{store.skipped} {what} clips could not be read and were left out")
    for result in trained.progress.results:
        loss = (
            f"stopped at step {result.stopped_at}"
            if result.held_out is None
            else f"held-out loss {result.held_out:.4g}"
        )
        print(f"  rate {result.learning_rate:g}: {loss}")
    keys = list(dict.fromkeys(key for values in metrics.values() for key in values))
    for key in keys:
        values = ", ".join(f"{name} {figures.get(key, math.nan):.4g}" for name, figures in metrics.items())
        print(f"{_METRIC_TEXT[key]} on held-out clips: {values}")
    print("seconds: " + ", ".join(f"{what} {value}" for what, value in summary["seconds"].items()))
    written = [files.out, *(files.out.with_suffix(suffix) for suffix in (".csv", ".json", ".png"))]
    print("written: " + ", ".join(str(path) for path in written if path.is_file()))


def _plain(values: Metrics) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}

"""The frame memory task of TRecViT (arXiv 2412.14294): paint the 16th frame of a clip after many more have been seen.

The paper trains with 64 frames and tests with 96. Here small models are compared of which only the recurrent encoder is
different, with equal clips, steps, optimiser and readout; sizes, readout, clips and the schedule (single frames first,
then ever longer clips) are ours. The folder of a
comparison: plan.json says what is compared, SOURCE/MODEL/seed_K holds a training and its result.json. The same command
goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.atomic import atomic_file
from rvm_core.config import check_image_size
from rvm_training.frame_memory_clips import load_clips
from rvm_training.frame_memory_model import MODELS, Rememberer
from rvm_training.objective import to_unit
from rvm_training.readout_state import Progress, load_state, save_state

UInt8Array = npt.NDArray[np.uint8]
Result = dict[str, Any]

RESULT, PLAN, STATE = "result.json", "plan.json", "state.safetensors"
LAST, MEAN = "last frame", "mean frame"
"""What needs no training: the newest frame, and the mean of all frames so far."""
_LEAST_ERROR = 1e-10
"""Of a perfect copy, so that its PSNR is 100 dB and not infinite."""


class FrameMemoryError(ValueError):
    """The settings make no sense, or the folder holds another comparison."""


@dataclass(frozen=True, kw_only=True)
class FrameMemory:
    """What is compared. Raises `FrameMemoryError` at construction."""

    sources: Mapping[str, str]
    """Folders of shards or videos, or "scenes", by the names that reports have for them."""
    models: tuple[str, ...] = MODELS
    """Of `MODELS`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights and of the order of the clips."""
    remembered: int = 16
    """Number of the frame that is to be painted; the first one is 1."""
    train_frames: int = 64
    """Frames seen before it is painted, in training."""
    test_frames: tuple[int, ...] = (32, 64, 80, 96)
    """The same in the test, ascending."""
    image_size: int = 64
    """Height and width in pixels."""
    width: int = 64
    """Channels of the models."""
    train_clips: int = 128
    """Of each source."""
    test_clips: int = 32
    """Of each source, that no model learns from."""
    steps: int = 2400
    """Of each training."""
    single: float = 0.25
    """Share of the steps, at the beginning, in which a model paints the only frame that it has seen: what stands for
    the pretrained weights with which the paper begins."""
    grown: float = 0.6
    """Share of the steps after which clips are whole; until then they get longer, from `remembered` frames."""
    batch_size: int = 8
    """Clips of a step; as many frames as they have until the remembered one, where it paints single ones."""
    learning_rate: float = 3e-3
    """The highest of the schedule: a linear warm-up over a twentieth of the steps, then a cosine to zero."""

    def __post_init__(self) -> None:
        counts = ("remembered", "image_size", "width", "train_clips", "test_clips", "steps", "batch_size")
        for name in counts:
            if getattr(self, name) < 1:
                raise FrameMemoryError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.sources or not self.models or not self.seeds or not self.test_frames:
            raise FrameMemoryError("expected at least one source, one model, one seed and one number of test frames")
        if unknown := sorted(set(self.models) - set(MODELS)):
            raise FrameMemoryError(f"unknown models {', '.join(unknown)}; known models: {', '.join(MODELS)}")
        if min(self.train_frames, *self.test_frames) < self.remembered:
            raise FrameMemoryError(f"frame {self.remembered} must have been seen: fewer frames are asked for")
        if list(self.test_frames) != sorted(set(self.test_frames)):
            raise FrameMemoryError(f"test_frames must rise, got {self.test_frames}")
        if not 0 <= self.single <= self.grown <= 1:
            raise FrameMemoryError(f"expected 0 <= single <= grown <= 1, got {self.single} and {self.grown}")
        if not 0 < self.learning_rate < math.inf:
            raise FrameMemoryError(f"learning_rate must be positive, got {self.learning_rate}")
        try:
            check_image_size(self.image_size, self.image_size)
        except ValueError as error:
            raise FrameMemoryError(str(error)) from error

    def frames_of_step(self, step: int) -> int:
        """Length of the clips of a step in training; the first step is 0."""
        first, whole = self.single * self.steps, self.grown * self.steps
        if step < first:
            return 1
        if step >= whole:
            return self.train_frames
        return self.remembered + int((self.train_frames - self.remembered) * (step - first) / (whole - first))

    @property
    def clip_frames(self) -> int:
        """Frames of a clip in memory."""
        return max(self.train_frames, *self.test_frames)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class Task:
    """One training."""

    source: str
    model: str
    seed: int

    def folder(self, root: Path) -> Path:
        return root / self.source / self.model / f"seed_{self.seed}"


def tasks(memory: FrameMemory) -> list[Task]:
    """All trainings, seed by seed, so that an interrupted comparison has whole seeds."""
    return [Task(source, model, s) for s in memory.seeds for source in memory.sources for model in memory.models]


def open_folder(memory: FrameMemory, root: Path) -> None:
    """Writes the plan, or checks that the folder has the same one. Raises `FrameMemoryError` otherwise."""
    path = root / PLAN
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise FrameMemoryError(f"{root} is not empty and holds no frame memory task; give another folder")
        root.mkdir(parents=True, exist_ok=True)
        write_json(path, memory.plain())
    elif json.loads(path.read_text(encoding="utf-8")) != memory.plain():
        raise FrameMemoryError(f"{root} holds another comparison, see {path}; give another folder or equal arguments")


def read_results(memory: FrameMemory, root: Path) -> list[Result]:
    """Of all that is done."""
    paths = [task.folder(root) / RESULT for task in tasks(memory)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


@dataclass(frozen=True)
class Clips:
    """Of a source: uint8 (clips, T, H, W, 3)."""

    train: UInt8Array
    test: UInt8Array


def source_clips(memory: FrameMemory, source: str) -> Clips:
    """The first clips are for the test, which no clip to learn from shares a frame with. Raises `MemoryClipError`."""
    test, path = memory.test_clips, memory.sources[source]
    frames, size = memory.clip_frames, memory.image_size
    clips = load_clips(path, test + memory.train_clips, apart=test, frames=frames, size=size)
    return Clips(train=clips[test:], test=clips[:test])


def run_task(
    memory: FrameMemory,
    task: Task,
    clips: Clips,
    root: Path,
    *,
    device: torch.device,
    is_stopped: Callable[[], bool] = lambda: False,
    show: Callable[[int, float], None] = lambda step, loss: None,
) -> bool:
    """Trains and tests. Returns False if it was interrupted: then its state is saved, and it goes on next time.

    show: is told, after each step, its number and loss. Raises `FrameMemoryError` if the loss is not finite.
    """
    folder = task.folder(root)
    if (folder / RESULT).is_file():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    model = Rememberer(task.model, width=memory.width, image_size=memory.image_size, seed=task.seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=memory.learning_rate, betas=(0.9, 0.95), weight_decay=0)
    identity, progress = asdict(task) | {"plan": memory.plain()}, Progress()
    if (folder / STATE).is_file():
        saved = load_state(folder / STATE, identity)
        saved.restore(model, optimizer)
        progress = saved.progress
    while progress.step < memory.steps:
        if is_stopped():
            save_state(folder / STATE, identity, progress, model, optimizer, None)
            return False
        loss = _train_step(memory, task, clips.train, progress.step, model, optimizer, device)
        progress.step += 1
        show(progress.step, loss)
        if progress.step % 200 == 0:
            save_state(folder / STATE, identity, progress, model, optimizer, None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scores = _test(memory, model, clips.test, device)
    write_json(folder / RESULT, {**asdict(task), "parameters": parameters, "psnr": scores})
    (folder / STATE).unlink(missing_ok=True)
    return True


def _train_step(
    memory: FrameMemory,
    task: Task,
    clips: UInt8Array,
    step: int,
    model: Rememberer,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> float:
    # Drawn from the number of the step, so that one that goes on draws the same, and all models see the same clips.
    random = np.random.default_rng([task.seed, step])
    count = memory.frames_of_step(step)
    remembered = min(memory.remembered, count)
    batch_size = memory.batch_size * memory.remembered // remembered
    chosen = random.integers(len(clips), size=batch_size)
    starts = random.integers(clips.shape[1] - count + 1, size=batch_size)
    pieces = [clips[clip, start : start + count] for clip, start in zip(chosen, starts, strict=True)]
    frames = to_unit(torch.from_numpy(np.stack(pieces)).to(device))
    for group in optimizer.param_groups:
        group["lr"] = _rate(memory, step)
    optimizer.zero_grad()
    painted = model(frames, (count,))[:, 0]
    loss = (painted - frames[:, remembered - 1]).square().mean()
    value = loss.item()
    if not math.isfinite(value):
        raise FrameMemoryError(f"{task.model} on {task.source}: loss {value} in step {step + 1}; a lower rate may help")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value


def _rate(memory: FrameMemory, step: int) -> float:
    warmup = max(memory.steps // 20, 1)
    if step < warmup:
        return memory.learning_rate * (step + 1) / warmup
    return memory.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(memory.steps - warmup, 1))) / 2


@torch.inference_mode()
def _test(memory: FrameMemory, model: Rememberer, clips: UInt8Array, device: torch.device) -> dict[str, float]:
    """Mean PSNR over the clips, dB, by the number of frames seen."""
    scores: list[Tensor] = []
    for frames in _batches(clips, memory.batch_size, device):
        painted = model(frames, memory.test_frames)
        scores.append(psnr(painted, frames[:, memory.remembered - 1].unsqueeze(1)).cpu())
    return _by_frames(memory, torch.cat(scores))


@torch.inference_mode()
def baseline_scores(memory: FrameMemory, clips: UInt8Array) -> dict[str, dict[str, float]]:
    """The same of `LAST` and `MEAN`."""
    scores: dict[str, list[Tensor]] = {LAST: [], MEAN: []}
    for frames in _batches(clips, memory.batch_size, torch.device("cpu")):
        truth = frames[:, memory.remembered - 1]
        for name, found in scores.items():
            guesses = [
                frames[:, count - 1] if name == LAST else frames[:, :count].mean(dim=1) for count in memory.test_frames
            ]
            found.append(psnr(torch.stack(guesses, dim=1), truth.unsqueeze(1)))
    return {name: _by_frames(memory, torch.cat(found)) for name, found in scores.items()}


def _batches(clips: UInt8Array, size: int, device: torch.device) -> Iterator[Tensor]:
    for begin in range(0, len(clips), size):
        yield to_unit(torch.from_numpy(clips[begin : begin + size]).to(device))


def _by_frames(memory: FrameMemory, scores: Tensor) -> dict[str, float]:
    return {str(count): float(score) for count, score in zip(memory.test_frames, scores.mean(dim=0), strict=True)}


def psnr(painted: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (...), dB, of pictures (..., 3, H, W) in the scale of [0, 1], clipped to it."""
    error = (painted.clamp(0, 1) - truth).square().mean(dim=(-3, -2, -1))
    return -10 * torch.log10(error.clamp_min(_LEAST_ERROR))


def write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

"""What every engine is: the contract between a runtime and those who step it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from rvm_core.config import check_image_size
from rvm_core.streaming import State, StreamingEncoder

PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8")

__all__ = ["PRECISIONS", "Backend", "Engine", "EngineError", "EngineSpec", "Progress", "State"]

Progress = Callable[[str], None]
"""Called with a line of text when a stage of a long build begins."""


class EngineError(RuntimeError):
    """An engine cannot be made, or was given frames it was not made for."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What an engine is made for, with nothing left open. Raises `ValueError` for sizes that cannot be."""

    backend: str
    precision: str
    device: str
    """As the backend names it: "cpu", "cuda", "cuda:1"."""
    image_size: tuple[int, int]
    """(height, width) of the frames in pixels, multiples of 16."""
    batch_size: int = 1
    """Number of streams stepped at once."""

    def __post_init__(self) -> None:
        check_image_size(*self.image_size)
        if self.batch_size < 1:
            raise ValueError(f"expected a batch size of 1 or more, got {self.batch_size}")

    def check_frames(self, frames: np.ndarray) -> None:
        """Raises `EngineError` unless frames are uint8 (batch_size, *image_size, 3)."""
        expected = (self.batch_size, *self.image_size, 3)
        if frames.dtype != np.uint8 or frames.shape != expected:
            raise EngineError(
                f"expected uint8 frames {expected} (batch, height, width, RGB), got {frames.dtype} {frames.shape}; "
                "resize them with rvm_core.preprocess, or create an engine for this size"
            )


@runtime_checkable
class Engine(Protocol):
    """A model made ready for one image size, batch size, precision and device.

    `step` never changes the state it is given: a caller that keeps the old state can drop the new one.
    """

    spec: EngineSpec

    def init_state(self) -> State:
        """The state before the first frame, for the whole batch."""

    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        """One recurrent step of every stream in the batch.

        frames uint8 (B, H, W, 3) RGB. Returns (features float32 (B, N+1, D), [CLS] first, and the new state), both
        where the engine computes. Raises `EngineError` if the frames' shape or dtype is another.
        """


class Backend(Protocol):
    """One runtime. The only file that imports it defines a class of this shape."""

    name: str
    precisions: tuple[str, ...]
    """Those it can compute in, a subset of `PRECISIONS`."""
    builds_files: bool
    """Whether an engine is built into files, which are worth keeping."""

    def missing(self) -> str | None:
        """Why this runtime cannot be used on this machine, and what to install; None if it can."""

    def devices(self) -> tuple[str, ...]:
        """Devices present, the best first. Called only if nothing is missing."""

    def native_precision(self, device: str) -> str:
        """The fastest floating-point precision that the device computes natively and that passes for exact."""

    def runtime(self) -> str:
        """Name and version of the runtime: another one needs other files."""

    def hardware(self, device: str) -> str:
        """What of the device built files depend on, e.g. a GPU's name and compute capability."""

    def build(self, model: StreamingEncoder, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        """Writes the engine's files into an empty folder. Raises `EngineError` where the runtime cannot."""

    def load(self, model: StreamingEncoder, spec: EngineSpec, folder: Path | None) -> Engine:
        """The engine, from the files of `build` (None where `builds_files` is false).

        Raises `EngineError` if the files cannot be used, or the device is not there.
        """

"""Engines for the processes of a pool that end in the middle of a recording, or cannot be made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvm_perception import replay
from rvm_perception.parameters import NodeParameters
from rvm_perception.replay import Stepper
from rvm_perception.replay_job import make_stepper

LAST_STEP = 13
"""The process ends instead of it: in the second of several recordings of 8 frames, each with a warm-up."""


class DeadlyEngine:
    """Ends its process in a late step, as the kernel does where memory is short."""

    def __init__(self, engine: Any, may_kill: Callable[[], bool]) -> None:
        self.spec = engine.spec
        self._engine, self._may_kill, self._steps = engine, may_kill, 0

    def init_state(self) -> Any:
        return self._engine.init_state()

    def step(self, frames: np.ndarray, state: Any) -> tuple[torch.Tensor, Any]:
        self._steps += 1
        if self._steps == LAST_STEP and self._may_kill():
            os.kill(os.getpid(), signal.SIGKILL)
        features, state = self._engine.step(frames, state)
        return features, state


def deadly_once(mark: Path, parameters: NodeParameters, log: Callable[[str], None]) -> Stepper:
    """The first process that comes so far ends; `mark` tells the others. Every frame is kept as soon as it is done."""
    replay.PART_SECONDS = 0.0

    def may_kill() -> bool:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    return _deadly(parameters, log, may_kill)


def deadly(parameters: NodeParameters, log: Callable[[str], None]) -> Stepper:
    """Every process ends that comes so far."""
    return _deadly(parameters, log, lambda: True)


def dead_at_once(parameters: NodeParameters, log: Callable[[str], None]) -> Stepper:
    """Whoever makes an engine ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def no_engine(parameters: NodeParameters, log: Callable[[str], None]) -> Stepper:
    raise ValueError("the engine is sold out")


def _deadly(parameters: NodeParameters, log: Callable[[str], None], may_kill: Callable[[], bool]) -> Stepper:
    stepper = make_stepper(parameters, log)
    engine: Any = DeadlyEngine(stepper.engine, may_kill)
    return Stepper(engine=engine, identity=stepper.identity, tracker=stepper.tracker)

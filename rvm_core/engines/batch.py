"""Steps the streams of several cameras: those that have a frame at once where that pays, otherwise in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineError, State
from rvm_core.streaming import state_like, state_tensors

_TIMED_STEPS = 3


@dataclass(frozen=True)
class Stepped:
    """What the step of one stream gave."""

    tokens: np.ndarray
    """float32 (N+1, D), [CLS] first."""
    state: State
    milliseconds: float
    """Time of the step, which those of a batch share."""


class BatchStepper:
    """An engine for one stream and, where given, one for several, of the same model and image size.

    A stream's state is always that of the engine for one; states are joined and taken apart around a step.

    Args:
        single: of batch size 1.
        batched: of the batch size of all streams; None: they are always stepped one after the other.
    """

    def __init__(self, single: Engine, batched: Engine | None = None) -> None:
        self._single, self._batched = single, batched
        self.single_ms = self.batched_ms = float("nan")
        self._always = True

    @property
    def size(self) -> int:
        """Most streams in one step; 1 again once a batch has failed though each of its streams stepped alone."""
        return 1 if self._batched is None else self._batched.spec.batch_size

    def pays(self, count: int) -> bool:
        """Whether `count` streams are stepped at once."""
        if not 1 < count <= self.size:
            return False
        return self._always or self.batched_ms < count * self.single_ms

    def warm_up(self, frame: np.ndarray, *, always: bool = True) -> None:
        """Takes steps from the initial state and drops them, so that the first real ones do not pay for first use.

        frame: uint8 (H, W, 3) RGB. always: False measures from how many streams on a batch pays. Raises `EngineError`
        if the states of the two engines do not fit.
        """
        self._step_single(frame, None)
        if self._batched is None:
            return
        initial = self._single.init_state()
        shapes = [tensor.shape for tensor in state_tensors(_join([initial] * self.size))]
        expected = [tensor.shape for tensor in state_tensors(self._batched.init_state())]
        if shapes != expected:
            raise EngineError(f"the states of {self.size} streams joined are {shapes}, the batch needs {expected}")
        self._step_batch([frame] * self.size, [None] * self.size)
        self._always = always
        if not always:
            self.single_ms = min(self._step_single(frame, None).milliseconds for _ in range(_TIMED_STEPS))
            frames = [frame] * self.size
            timed = [self._step_batch(frames, [None] * self.size)[0].milliseconds for _ in range(_TIMED_STEPS)]
            self.batched_ms = min(timed)

    def step(self, frames: Sequence[np.ndarray], states: Sequence[State | None]) -> list[Stepped | Exception]:
        """One step of each stream, and of each what it gave or what the engine raised.

        frames: uint8 (H, W, 3) RGB of each. states: None stands for the initial one.
        """
        if self.pays(len(frames)):
            try:
                return list(self._step_batch(frames, states))
            except Exception:  # one of them may be the cause: alone, the others go on
                alone = self._step_each(frames, states)
                if not any(isinstance(outcome, Exception) for outcome in alone):
                    self._batched = None  # no camera is the cause
                return alone
        return self._step_each(frames, states)

    def _step_each(self, frames: Sequence[np.ndarray], states: Sequence[State | None]) -> list[Stepped | Exception]:
        return [self._try_single(frame, state) for frame, state in zip(frames, states, strict=True)]

    def _try_single(self, frame: np.ndarray, state: State | None) -> Stepped | Exception:
        try:
            return self._step_single(frame, state)
        except Exception as error:  # runtimes raise whatever they like
            return error

    def _step_single(self, frame: np.ndarray, state: State | None) -> Stepped:
        start = time.perf_counter()
        features, state = self._single.step(frame[None], self._single.init_state() if state is None else state)
        tokens = features[0].cpu().numpy()
        return Stepped(tokens, state, (time.perf_counter() - start) * 1e3)

    def _step_batch(self, frames: Sequence[np.ndarray], states: Sequence[State | None]) -> list[Stepped]:
        assert self._batched is not None
        start = time.perf_counter()
        missing = self.size - len(frames)
        given = [self._single.init_state() if state is None else state for state in states]
        given += [self._single.init_state()] * missing
        filled = np.stack([*frames, *[np.zeros_like(frames[0])] * missing])
        features, state = self._batched.step(filled, _join(given))
        tokens = features[: len(frames)].cpu().numpy()
        parts = _split(state, self.size)[: len(frames)]
        took = (time.perf_counter() - start) * 1e3
        return [Stepped(row.copy(), part, took) for row, part in zip(tokens, parts, strict=True)]


def _join(states: Sequence[State]) -> State:
    tensors = zip(*map(state_tensors, states), strict=True)
    return state_like(states[0], tuple(torch.cat(parts) for parts in tensors))


def _split(state: State, count: int) -> list[State]:
    """The states of the streams, each in memory of its own, so that none keeps the others' alive."""
    parts = [[part.clone() for part in tensor.chunk(count)] for tensor in state_tensors(state)]
    return [state_like(state, tuple(part[i] for part in parts)) for i in range(count)]

"""Training of a readout on frozen features: AdamW, warm-up and cosine, several rates of which the best is kept.

The same settings give the same readout: what step s sees depends on the seed and s alone, so a training that was
stopped and resumed ends, on one machine's CPU, in the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rvm_training.feature_cache import Examples, FeatureStore
from rvm_training.readout_state import CurvePoint, Progress, RateResult, load_state, save_state
from rvm_training.readouts.tasks import Loss

_POINTS = 200
"""Points of a curve."""
_MEASURED = 20
"""Points of a curve with the held-out loss."""


class TrainingError(RuntimeError):
    """The training came to nothing; says at which step and what to do."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a readout is trained; the defaults are the protocol of 4DS (arXiv 2412.15212)."""

    steps: int = 40_000
    """For each rate."""
    batch_size: int = 32
    """Clips."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Each is trained with; the one with the least held-out loss is kept."""
    warmup_steps: int = 1_000
    """The rate rises in a straight line from 0."""
    end_learning_rate: float = 1e-7
    """Where the cosine ends."""
    weight_decay: float = 1e-4
    """Of AdamW, for all parameters."""
    clip_norm: float | None = None
    """Longest gradient; None: it is not cut."""
    seed: int = 0
    """Of the order of clips and of the queries."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainingConfig.{name} must be 1 or more, got {getattr(self, name)}")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"TrainingConfig.learning_rates must be above 0, got {self.learning_rates}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"TrainingConfig.warmup_steps must be 0 to {self.steps} (the steps), got {self.warmup_steps}"
            )
        for name in ("end_learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"TrainingConfig.{name} must be 0 or more, got {getattr(self, name)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"TrainingConfig.clip_norm must be above 0, got {self.clip_norm}")

    def rate(self, peak: float, step: int) -> float:
        """Learning rate of a step, from 0."""
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.end_learning_rate + (peak - self.end_learning_rate) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of a training."""

    head: nn.Module | None
    """The best, in eval mode, on the CPU; None where the training was stopped before its end."""
    progress: Progress
    best_rate: float | None
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a training needs."""

    make_head: Callable[[], nn.Module]
    loss: Loss
    clips: FeatureStore
    held_out: FeatureStore
    config: TrainingConfig
    identity: Mapping[str, Any]
    """Plain JSON: what a resumed training must agree with, besides the configuration."""
    state_file: Path
    """Where a stopped training is kept."""
    device: torch.device = torch.device("cpu")
    stop: Callable[[], bool] = lambda: False
    """Asked before each step; true: the state is saved and the training ends."""
    save_now: Callable[[], bool] = lambda: False
    """Asked after each step; true: the state is saved, and the training goes on."""
    advance: Callable[[str, int], None] = lambda text, done: None
    """Told how it goes, and how many more steps are done."""
    measured: Callable[[CurvePoint], None] = lambda point: None
    """Told each point of the curve that has the held-out loss."""


def train(training: Training, *, resume: bool = False) -> Trained:
    """Trains with every rate, from the same first weights.

    Raises `TrainingError` where no rate gives finite losses, `StateError` for a stopped training that does not fit.
    """
    run = _Run(training)
    if resume:
        run.resume()
    rates = training.config.learning_rates
    while run.progress.rate_index < len(rates):
        if not run.train_rate(rates[run.progress.rate_index]):
            return Trained(head=None, progress=run.progress, best_rate=None, finished=False)
    if run.best is None:
        stopped = ", ".join(f"{result.learning_rate:g} at step {result.stopped_at}" for result in run.progress.results)
        raise TrainingError(f"the loss stopped being finite with every learning rate ({stopped}); use a lower one")
    head = training.make_head()
    head.load_state_dict(run.best)
    return Trained(head=head.eval(), progress=run.progress, best_rate=run.best_rate, finished=True)


class _Run:
    """The moving parts of a training."""

    def __init__(self, training: Training) -> None:
        self._training, self._config = training, training.config
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self._new_head()

    @property
    def best_rate(self) -> float | None:
        """The rate with the least held-out loss so far."""
        known = [result for result in self.progress.results if result.held_out is not None]
        return min(known, key=lambda result: result.held_out or 0.0).learning_rate if known else None

    def resume(self) -> None:
        """Goes to where the stopped training was."""
        saved = load_state(self._training.state_file, self._identity())
        self.progress = saved.progress
        self.best = saved.restore(self._head, self._optimizer)
        done = self.progress.rate_index * self._config.steps + self.progress.step
        self._training.advance("resumed", done)

    def train_rate(self, peak: float) -> bool:
        """Trains with one rate to its end. Returns False if it was stopped."""
        training, config, progress = self._training, self._config, self.progress
        if sum(point.step == 0 for point in progress.curve) <= progress.rate_index:
            self._mark(peak, measure=True)
        every, measure_every = max(1, config.steps // _POINTS), max(1, config.steps // _MEASURED)
        for examples in self._batches(progress.step):
            if training.stop():
                self._save()
                return False
            loss = self._step(peak, examples)
            if loss is None:
                self._end_rate(peak, held_out=None, stopped_at=progress.step)
                return True
            progress.step += 1
            progress.loss_sum, progress.loss_count = progress.loss_sum + loss, progress.loss_count + 1
            training.advance(f"rate {peak:g}, loss {loss:.4g}", 1)
            measure = progress.step % measure_every == 0 or progress.step == config.steps
            if measure or progress.step % every == 0:
                self._mark(peak, measure=measure)
            if training.save_now():
                self._save()
        self._end_rate(peak, held_out=progress.curve[-1].held_out, stopped_at=None)
        return True

    def _step(self, peak: float, examples: Examples) -> float | None:
        """One step; None, with nothing changed, if the loss or its gradient is not finite."""
        step, config = self.progress.step, self._config
        for group in self._optimizer.param_groups:
            group["lr"] = config.rate(peak, step)
        loss = self._training.loss(self._head, examples, np.random.default_rng([config.seed, 1, step]))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._head.parameters(), config.clip_norm or math.inf)
        value = float(loss.detach())
        if not (math.isfinite(value) and bool(norm.isfinite())):
            return None
        self._optimizer.step()
        return value

    def _batches(self, first_step: int) -> Iterator[Examples]:
        """Batches of the steps from here on; the next one is read while the last one is worked on."""
        steps, device = range(first_step, self._config.steps), self._training.device
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._read, first_step) if steps else None
            for step in steps:
                assert following
                examples = following.result()
                following = pool.submit(self._read, step + 1) if step + 1 in steps else None
                yield _to(examples, device)

    def _read(self, step: int) -> Examples:
        usable, size = self._training.clips.usable, self._config.batch_size
        numbers = range(step * size, (step + 1) * size)
        orders = {n // len(usable): _order(self._config.seed, n // len(usable), len(usable)) for n in numbers}
        return self._training.clips.batch([usable[orders[n // len(usable)][n % len(usable)]] for n in numbers])

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean over all held-out clips, with the same queries each time."""
        usable, size = self._training.held_out.usable, self._config.batch_size
        total = 0.0
        for start in range(0, len(usable), size):
            chosen = usable[start : start + size]
            examples = _to(self._training.held_out.batch(chosen.tolist()), self._training.device)
            rng = np.random.default_rng([self._config.seed, 2, start])
            total += float(self._training.loss(self._head, examples, rng)) * len(chosen)
        return total / len(usable)

    def _mark(self, peak: float, *, measure: bool) -> None:
        progress = self.progress
        progress.curve.append(
            CurvePoint(
                learning_rate=peak,
                step=progress.step,
                loss=progress.loss_sum / progress.loss_count if progress.loss_count else None,
                held_out=_finite(self._held_out_loss()) if measure else None,
            )
        )
        progress.loss_sum, progress.loss_count = 0.0, 0
        if measure:
            self._training.measured(progress.curve[-1])

    def _end_rate(self, peak: float, *, held_out: float | None, stopped_at: int | None) -> None:
        progress = self.progress
        progress.results.append(RateResult(learning_rate=peak, held_out=held_out, stopped_at=stopped_at))
        if held_out is not None and self.best_rate == peak:
            self.best = {name: value.detach().cpu().clone() for name, value in self._head.state_dict().items()}
        if stopped_at is not None:
            self._training.advance(f"rate {peak:g} ended at step {stopped_at}", self._config.steps - stopped_at)
        progress.rate_index, progress.step = progress.rate_index + 1, 0
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._new_head()
        self._save()

    def _new_head(self) -> None:
        self._head = self._training.make_head().to(self._training.device).train()
        self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=0.0, weight_decay=self._config.weight_decay)

    def _save(self) -> None:
        save_state(self._training.state_file, self._identity(), self.progress, self._head, self._optimizer, self.best)

    def _identity(self) -> dict[str, Any]:
        return {**self._training.identity, **asdict(self._config)}


def _order(seed: int, epoch: int, count: int) -> Any:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def _to(examples: Examples, device: torch.device) -> Examples:
    return Examples(
        features=examples.features.to(device),
        truth={name: values.to(device) for name, values in examples.truth.items()},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""The numeric gate: an engine against float32 torch over many recurrent steps of a real clip, before its first use."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from rvm_core.engines.base import Engine, EngineError, EngineSpec, Progress, State
from rvm_core.engines.clip import GATE_STEPS, gate_frames, unseen_frames
from rvm_core.streaming import StreamingEncoder

WORST_SHARE = 0.01
"""Of all tokens of all steps: small enough to see single broken tokens, large enough not to be one token's luck."""

REPORT_FORMAT = 2
"""Grows when clip, figures or their meaning change: older reports are then no longer believed."""

CALIBRATED = ("int8",)
"""Precisions in which an engine depends on frames that were played when it was built. It must also pass on others."""

_REMIND_S = 10.0
_STREAM_OFFSET = 7
"""Frames by which each further stream of a batch is ahead. It is mirrored too: mixed-up streams must be noticed."""


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What an engine may differ from the reference."""

    mean_cosine: float
    """Of all tokens of all steps, at least."""
    worst_cosine: float
    """Mean of the worst `WORST_SHARE` of them, at least; of the last quarter of the steps too."""
    relative_error: float
    """Norm of the difference by the norm of the reference, at most. Unlike a cosine it sees a wrong scale."""
    rounding: float
    """1 - cosine of the worst tokens that the precision alone costs: errors below it are not tested for growth."""


LIMITS: dict[str, GateLimits] = {
    "fp32": GateLimits(mean_cosine=0.9999999, worst_cosine=0.999999, relative_error=1e-4, rounding=1e-9),
    "bf16": GateLimits(mean_cosine=0.999, worst_cosine=0.99, relative_error=0.05, rounding=4e-5),
    "fp16": GateLimits(mean_cosine=0.9999, worst_cosine=0.999, relative_error=0.01, rounding=5e-7),
    "int8": GateLimits(mean_cosine=0.99, worst_cosine=0.95, relative_error=0.15, rounding=6e-4),
}
"""By precision. Measured over 64 steps with the tests' tiny model and with S, both with random weights: relative error,
mean and worst 1 - cosine are up to 0.008, 3e-5, 4e-5 in bf16; 0.0008, 3e-7, 5e-7 in fp16; 0.03, 4e-4, 6e-4 with weights
and inputs of every product rounded to 8 bits. Trained weights may have larger outliers, so the limits are 5 to 13 times
that error. That is still far from any fault: a state that is ignored gives a relative error of 0.7, one that is halved
0.4. The limits for fp32 leave room for another order of sums, and none for factors rounded to TF32."""

MAX_GROWTH = 4.0
"""How much larger 1 - cosine (worst share) may be in the last quarter of the steps than in the second. By then errors
have settled: the measured ratio lies between 0.9 and 1.2, by what the frames show. An error that grows in proportion
to the number of steps gives about 5."""


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """How an engine's features compare with those of float32 torch, with the state carried by each on its own."""

    spec: EngineSpec
    steps: int
    mean_cosine: float
    """Of a token's features with the reference's, mean over all tokens of all steps."""
    worst_cosine: float
    """Mean over the worst `WORST_SHARE` of them."""
    quarter_cosines: tuple[float, float, float, float]
    """`worst_cosine` of each quarter of the steps in turn: drift shows as a fall."""
    relative_error: float
    """Norm of the difference of all features by the norm of the reference."""
    max_abs_difference: float
    """Between any two values. For information: it depends on the scale of the features."""
    replay_error: float
    """Relative error of a step repeated, from a state kept meanwhile, to the same step before. Tells whether `step` is
    a function of frames and state alone."""
    not_finite_step: int | None = None
    """First step that gave NaN or infinity, where the comparison ended; such features count as zeros."""
    unseen: GateReport | None = None
    """The same over frames unlike those of the calibration, if the engine was calibrated."""

    @property
    def passed(self) -> bool:
        """By the limits in force now, not those when the report was made."""
        return not self.failures()

    def failures(self) -> list[str]:
        """What is beyond its limit, with the figures."""
        limits = LIMITS[self.spec.precision]
        found = []
        if self.not_finite_step is not None:
            found.append(f"NaN or infinity in step {self.not_finite_step}")
        for name, value, limit in (
            ("mean cosine", self.mean_cosine, limits.mean_cosine),
            ("worst 1% cosine", self.worst_cosine, limits.worst_cosine),
            ("worst 1% cosine in the last quarter", self.quarter_cosines[-1], limits.worst_cosine),
        ):
            if not value >= limit:
                found.append(f"{name} {value:.6f}, at least {limit} is needed")
        for name, value in (("relative error", self.relative_error), ("error of a repeated step", self.replay_error)):
            if not value <= limits.relative_error:
                found.append(f"{name} {value:.2g}, at most {limits.relative_error} is allowed")
        if not self.growth <= MAX_GROWTH:
            found.append(f"the error grows: {self.growth:.1f} times from the second quarter to the last")
        if self.unseen:
            found += [f"on frames unlike the calibration's: {failure}" for failure in self.unseen.failures()]
        return found

    @property
    def growth(self) -> float:
        """Ratio of 1 - cosine (worst share) in the last quarter to the second, 1 where both are but rounding."""
        rounding = LIMITS[self.spec.precision].rounding
        second, last = (max(rounding, 1 - self.quarter_cosines[quarter]) for quarter in (1, 3))
        return last / second

    def figures(self) -> str:
        """One line for people."""
        text = self._measured()
        if self.unseen:
            text += f"; on frames unlike the calibration's {self.unseen._measured()}"
        return f"{text}; {'passed' if self.passed else 'REFUSED: ' + '; '.join(self.failures())}"

    def _measured(self) -> str:
        quarters = ", ".join(f"{cosine:.6f}" for cosine in self.quarter_cosines)
        return (
            f"{self.steps} steps: cosine mean {self.mean_cosine:.6f}, worst 1% {self.worst_cosine:.6f} (by quarters "
            f"{quarters}), relative error {self.relative_error:.2g}, largest difference {self.max_abs_difference:.2g}"
        )

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps({"format": REPORT_FORMAT} | asdict(self) | {"passed": self.passed}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> GateReport:
        """Raises `ValueError` if the text is not a report of this version's format."""
        try:
            values: dict[str, Any] = json.loads(text)
            version = values.pop("format")
            if version != REPORT_FORMAT:
                raise ValueError(f"expected format {REPORT_FORMAT}, found {version!r}")
            values.pop("passed")
            report = cls._from_values(values)
            report.failures()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a gate report: {type(error).__name__}: {error}") from error
        return report

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> GateReport:
        spec, quarters, unseen = dict(values["spec"]), tuple(map(float, values["quarter_cosines"])), values["unseen"]
        if len(quarters) != 4:
            raise ValueError("expected four quarters")
        return cls(
            **values
            | {
                "spec": EngineSpec(**spec | {"image_size": tuple(spec["image_size"])}),
                "quarter_cosines": quarters,
                "unseen": cls._from_values(unseen) if unseen else None,
            }
        )


def check_engine(
    engine: Engine,
    model: StreamingEncoder,
    *,
    frames: Iterable[np.ndarray] | None = None,
    steps: int = GATE_STEPS,
    progress: Progress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> GateReport:
    """Steps an engine and its model beside each other, each with its own state, and compares their features.

    The reference computes in float32 where the engine does, on its GPU or else on the CPU.

    Args:
        engine: made from `model`.
        model: in float32; left as it is.
        frames: uint8 (H, W, 3) RGB of the engine's image size; played again from the start if they are fewer than the
            steps. None: `gate_frames` and, where the engine was calibrated, then as many `unseen_frames`. Each further
            stream of a batch starts some frames later, every other mirrored.
        steps: at least 4, one for each quarter.
        progress: is told when it begins and, where it takes long, how far it is.
        on_step: is told after each step how many are done and how many there will be.

    Raises:
        EngineError: the engine returned features of another shape or type than the contract says.
    """
    if steps < 4:
        raise ValueError(f"expected at least 4 steps, got {steps}")
    spec = engine.spec
    count = steps + _STREAM_OFFSET * (spec.batch_size - 1)
    clips = [list(frames) if frames is not None else list(gate_frames(spec.image_size, count))]
    if frames is None and spec.precision in CALIBRATED:
        clips.append(list(unseen_frames(spec.image_size, count)))
    total = steps * len(clips)
    if progress:
        progress(f"comparing {_describe(spec)} with float32 torch over {total} steps")
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if progress and time.monotonic() - told > _REMIND_S:
            told = time.monotonic()
            progress(f"{done} of {total} steps compared")
        if on_step:
            on_step(done, total)

    reference = _reference(model, spec)
    report = _compare(engine, reference, clips[0], steps, tell)
    if len(clips) > 1:
        report = replace(report, unseen=_compare(engine, reference, clips[1], steps, lambda n: tell(steps + n)))
    return report


def _compare(
    engine: Engine, reference: StreamingEncoder, clip: list[np.ndarray], steps: int, tell: Callable[[int], None]
) -> GateReport:
    spec = engine.spec

    def batch(step: int) -> np.ndarray:
        frames = [clip[(step + _STREAM_OFFSET * b) % len(clip)] for b in range(spec.batch_size)]
        return np.stack([frame[:, ::-1] if b % 2 else frame for b, frame in enumerate(frames)])

    comparison, device = _Comparison(), next(reference.parameters()).device
    kept: tuple[int, State, torch.Tensor] | None = None
    with torch.inference_mode():
        expected_state, state = reference.init_state(spec.batch_size, *spec.image_size), engine.init_state()
        for step in range(steps):
            with _exact_products():
                expected, expected_state = reference(_to_input(batch(step), device), expected_state)
            before = state
            features, state = engine.step(batch(step), before)
            features = _on_cpu(features, expected.shape)
            comparison.add(features, expected.cpu())
            if step == steps // 2:
                kept = step, before, features
            tell(step + 1)
            if comparison.not_finite_step is not None:
                break
        replay_error = 0.0
        if kept is not None:
            again = _on_cpu(engine.step(batch(kept[0]), kept[1])[0], expected.shape)
            replay_error = _relative(again, kept[2])
    return comparison.report(spec, replay_error)


class _Comparison:
    """Gathers the figures step by step."""

    def __init__(self) -> None:
        self._deficits: list[np.ndarray] = []
        self._squares = np.zeros(2)
        self._max_abs_difference = 0.0
        self.not_finite_step: int | None = None

    def add(self, features: torch.Tensor, expected: torch.Tensor) -> None:
        """Both float32 (B, N+1, D) on the CPU."""
        if not torch.isfinite(features).all():
            self.not_finite_step = len(self._deficits)
            features = torch.zeros_like(features)
        found, right = features.double(), expected.double()
        cosine = torch.nn.functional.cosine_similarity(found, right, dim=-1)
        difference = found - right
        self._deficits.append((1 - cosine).flatten().numpy())
        self._squares += [float(difference.square().sum()), float(right.square().sum())]
        self._max_abs_difference = max(self._max_abs_difference, float(difference.abs().max()))

    def report(self, spec: EngineSpec, replay_error: float) -> GateReport:
        deficits = np.stack(self._deficits)
        # A comparison that ended early may have fewer steps than quarters: the last one then stands for the rest.
        padded = deficits if len(deficits) >= 4 else np.concatenate([deficits, *[deficits[-1:]] * (4 - len(deficits))])
        first, second, third, last = (1 - _worst(quarter) for quarter in np.array_split(padded, 4))
        return GateReport(
            spec=spec,
            steps=len(deficits),
            mean_cosine=1 - float(deficits.mean()),
            worst_cosine=1 - _worst(deficits),
            quarter_cosines=(first, second, third, last),
            relative_error=float(np.sqrt(self._squares[0] / max(self._squares[1], np.finfo(np.float64).tiny))),
            max_abs_difference=self._max_abs_difference,
            replay_error=replay_error,
            not_finite_step=self.not_finite_step,
        )


def _worst(deficits: np.ndarray) -> float:
    count = max(1, round(deficits.size * WORST_SHARE))
    return float(np.partition(deficits.ravel(), -count)[-count:].mean())


def _relative(found: torch.Tensor, right: torch.Tensor) -> float:
    difference = torch.nan_to_num(found.double() - right.double(), nan=np.inf).norm()
    return float(min(difference / right.double().norm().clamp_min(np.finfo(np.float64).tiny), torch.tensor(1e9)))


def _on_cpu(features: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A copy, as an engine might reuse the memory, which would be one of the faults to be found."""
    if features.shape != shape or features.dtype != torch.float32:
        raise EngineError(
            f"expected float32 features {tuple(shape)}, the engine returned {features.dtype} {tuple(features.shape)}"
        )
    return features.detach().to("cpu", copy=True)


def _to_input(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).to(torch.float32) / 255.0


def _reference(model: StreamingEncoder, spec: EngineSpec) -> StreamingEncoder:
    """The model in float32 where the engine computes: itself if it is there already, else a copy."""
    device = torch.device(spec.device if spec.device.startswith("cuda") and torch.cuda.is_available() else "cpu")
    parameters = list(model.parameters())
    if not model.training and all(p.device == device and p.dtype == torch.float32 for p in parameters):
        return model
    return copy.deepcopy(model).to(device, torch.float32).eval()


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32, where a GPU or CPU would be allowed to round their factors."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def _describe(spec: EngineSpec) -> str:
    height, width = spec.image_size
    return f"{spec.backend} on {spec.device} in {spec.precision} at {height}x{width}"

"""The numeric gate: what it measures, and that every kind of broken engine is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine_faults import AlteredEngine
from rvm_core import RVM, EngineError
from rvm_core.engines import EngineSpec, GateReport, check_engine, gate_frames
from rvm_core.engines.gate import GATE_STEPS, LIMITS
from rvm_core.engines.torch import TorchEngine

SIZE = (64, 96)
FP32_ERROR = 1e-5
"""Relative, over 64 steps: another order of sums in float32."""


def spec_of(precision: str = "bf16", batch_size: int = 1, backend: str = "torch") -> EngineSpec:
    return EngineSpec(backend=backend, precision=precision, device="cpu", image_size=SIZE, batch_size=batch_size)


def sound_report(**changes: Any) -> GateReport:
    report = GateReport(
        spec=spec_of(),
        steps=64,
        mean_cosine=0.99998,
        worst_cosine=0.99996,
        quarter_cosines=(0.99996, 0.99997, 0.99995, 0.99996),
        relative_error=0.006,
        max_abs_difference=0.02,
        replay_error=0.0,
    )
    return replace(report, **changes)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(gate_frames(SIZE, 64))


def test_frames_are_a_real_clip_without_cuts() -> None:
    frames = [frame.astype(float) for frame in gate_frames((128, 160), 200)]
    assert len(frames) == 200 and frames[0].shape == (128, 160, 3)
    assert all(frame.std() > 20 for frame in frames)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:], strict=False)]
    # Frames always move; a cut would change most of the image, as between frames far apart.
    assert 0.5 < min(steps) and max(steps) < 25
    # Blue and red are not swapped: taillights and sign are red.
    assert frames[0][..., 0].mean() > frames[0][..., 2].mean()


def test_a_missing_clip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("rvm_core.engines.clip.CLIP", tmp_path / "none.mp4")
    with pytest.raises(EngineError, match="cannot read the clip.*none.mp4.*reinstall"):
        next(gate_frames(SIZE))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fp32_torch_equals_the_reference(tiny_model: RVM, frames: list[np.ndarray], batch_size: int) -> None:
    report = check_engine(TorchEngine(tiny_model, spec_of("fp32", batch_size)), tiny_model, frames=frames)
    assert report.passed, report.figures()
    assert report.steps == GATE_STEPS >= 64
    assert report.relative_error < FP32_ERROR


def test_bf16_torch_passes_with_its_rounding_seen(tiny_model: RVM, frames: list[np.ndarray]) -> None:
    report = check_engine(TorchEngine(tiny_model, spec_of("bf16")), tiny_model, frames=frames)
    assert report.passed, report.figures()
    assert report.relative_error > FP32_ERROR
    assert report.worst_cosine < report.mean_cosine < 1
    assert report.worst_cosine == pytest.approx(np.mean(report.quarter_cosines), abs=1e-5)


def test_figures_are_those_of_numpy(tiny_model: RVM) -> None:
    """A constant in one token of each step gives figures that can be worked out by hand."""

    def shift(features: torch.Tensor, step: int) -> torch.Tensor:
        features[0, 3] = -features[0, 3]
        return features

    engine = AlteredEngine(tiny_model, spec_of("int8"), features=shift)
    report = check_engine(engine, tiny_model, steps=8)
    tokens = 4 * 6 + 1
    assert report.mean_cosine == pytest.approx((tokens - 2) / tokens, abs=1e-5)
    assert report.worst_cosine == pytest.approx(-1, abs=1e-5)
    assert report.quarter_cosines == pytest.approx((-1, -1, -1, -1), abs=1e-5)
    assert report.relative_error == pytest.approx(2 / np.sqrt(tokens), rel=0.1)


def noise(scale: float) -> Callable[[torch.Tensor, int], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda x, step: x + scale * torch.randn(x.shape, generator=generator)


def growing(scale: float) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda x, step: x + scale * step * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def with_nan_at(position: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    def alter(features: torch.Tensor, step: int) -> torch.Tensor:
        if step == position:
            features[0, 0, 0] = torch.nan
        return features

    return alter


def one_bad_token(features: torch.Tensor, step: int) -> torch.Tensor:
    features[:, -1] = features[:, 0]
    return features


@pytest.mark.parametrize(
    ("precision", "alter", "expected"),
    [
        ("bf16", {"features": noise(0.2)}, "mean cosine"),
        ("fp32", {"features": noise(1e-2)}, "mean cosine"),
        ("bf16", {"features": lambda x, step: 1.2 * x}, "relative error"),
        ("fp32", {"features": lambda x, step: 1.001 * x}, "relative error"),
        ("bf16", {"features": one_bad_token}, "worst 1% cosine"),
        ("bf16", {"features": growing(6e-4)}, "the error grows"),
        ("bf16", {"features": with_nan_at(0)}, "NaN or infinity in step 0"),
        ("bf16", {"features": with_nan_at(40)}, "NaN or infinity in step 40"),
        ("int8", {"features": lambda x, step: x / 0}, "NaN or infinity in step 0"),
        ("int8", {"state": lambda state, step: torch.zeros_like(state)}, "mean cosine"),
        ("int8", {"state": lambda state, step: 0.5 * state}, "relative error"),
        ("bf16", {"state": lambda state, step: state.roll(1, dims=1)}, "mean cosine"),
        ("bf16", {"features": lambda x, step: torch.zeros_like(x)}, "mean cosine"),
    ],
    ids=[
        "noise",
        "a little noise in fp32",
        "wrong scale",
        "slightly wrong scale in fp32",
        "one bad token",
        "drift",
        "NaN at once",
        "NaN late",
        "infinity",
        "state ignored",
        "state halved",
        "state shifted",
        "zeros",
    ],
)
def test_broken_engines_are_refused(
    tiny_model: RVM, frames: list[np.ndarray], precision: str, alter: dict[str, Any], expected: str
) -> None:
    report = check_engine(AlteredEngine(tiny_model, spec_of(precision), **alter), tiny_model, frames=frames)
    assert not report.passed
    assert any(expected in failure for failure in report.failures()), report.figures()
    assert "REFUSED" in report.figures() and expected in report.figures()
    assert GateReport.from_json(report.to_json()) == report


def test_slow_drift_passes_every_other_limit(tiny_model: RVM, frames: list[np.ndarray]) -> None:
    """The drift above is seen by its growth alone: that limit is not idle."""
    engine = AlteredEngine(tiny_model, spec_of("bf16"), features=growing(6e-4))
    report = check_engine(engine, tiny_model, frames=frames)
    assert [failure.split(":")[0] for failure in report.failures()] == ["the error grows"]


class HiddenStateEngine(TorchEngine):
    """Keeps the state inside and ignores the one it is given."""

    def init_state(self) -> torch.Tensor:
        self._kept = super().init_state()
        return self._kept

    def step(self, frames: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, self._kept = super().step(frames, self._kept)
        return features, features


class ReusedBufferEngine(TorchEngine):
    """Has two buffers for all states, so that a state kept for longer than a step changes."""

    def step(self, frames: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, _ = super().step(frames, state)
        if not hasattr(self, "_buffers"):
            self._buffers = [torch.empty_like(features), torch.empty_like(features)]
        self._buffers.reverse()
        return features, self._buffers[0].copy_(features)


@pytest.mark.parametrize("engine_class", [HiddenStateEngine, ReusedBufferEngine])
def test_step_that_is_no_function_of_its_arguments_is_refused(
    tiny_model: RVM, frames: list[np.ndarray], engine_class: type[TorchEngine]
) -> None:
    report = check_engine(engine_class(tiny_model, spec_of("fp32")), tiny_model, frames=frames)
    assert [failure.split(" 0.")[0] for failure in report.failures()] == ["error of a repeated step"]


def test_streams_of_a_batch_that_are_mixed_up_are_refused(tiny_model: RVM, frames: list[np.ndarray]) -> None:
    engine = AlteredEngine(tiny_model, spec_of("bf16", batch_size=2), features=lambda x, step: x.flip(0))
    assert not check_engine(engine, tiny_model, frames=frames).passed


@pytest.mark.parametrize(
    "alter", [lambda x, step: x[:, 1:], lambda x, step: x.double()], ids=["without [CLS]", "float64"]
)
def test_other_features_than_the_contract_says_are_an_error(tiny_model: RVM, alter: Any) -> None:
    with pytest.raises(EngineError, match=r"expected float32 features \(1, 25, 64\), the engine returned"):
        check_engine(AlteredEngine(tiny_model, spec_of(), features=alter), tiny_model, steps=4)


def test_progress_counts_the_steps(tiny_model: RVM) -> None:
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    check_engine(
        TorchEngine(tiny_model, spec_of("fp32")),
        tiny_model,
        steps=5,
        progress=lines.append,
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert lines == ["comparing torch on cpu in fp32 at 64x96 with float32 torch over 5 steps"]
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_too_few_steps_are_refused(tiny_model: RVM) -> None:
    with pytest.raises(ValueError, match="at least 4 steps, got 3"):
        check_engine(TorchEngine(tiny_model, spec_of("fp32")), tiny_model, steps=3)


def test_model_is_left_as_it_is(tiny_model: RVM) -> None:
    kept = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    precision = torch.get_float32_matmul_precision()
    check_engine(TorchEngine(tiny_model, spec_of("bf16")), tiny_model, steps=4)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tiny_model.state_dict().items())
    assert torch.get_float32_matmul_precision() == precision


def test_limits_fall_with_the_precision() -> None:
    order = [LIMITS[precision] for precision in ("fp32", "fp16", "bf16", "int8")]
    for finer, coarser in zip(order, order[1:], strict=False):
        assert finer.mean_cosine > coarser.mean_cosine
        assert finer.worst_cosine > coarser.worst_cosine
        assert finer.relative_error < coarser.relative_error
        assert finer.rounding < coarser.rounding < 1 - coarser.worst_cosine


def test_calibrated_engine_must_pass_on_other_frames_too(tiny_model: RVM) -> None:
    precisions = {"bf16": TorchEngine(tiny_model, spec_of("bf16")), "int8": AlteredEngine(tiny_model, spec_of("int8"))}
    for precision, engine in precisions.items():
        done: list[tuple[int, int]] = []
        report = check_engine(engine, tiny_model, steps=8, on_step=lambda *steps, done=done: done.append(steps))
        assert report.passed and (report.unseen is not None) == (precision == "int8")
        total = 16 if precision == "int8" else 8
        assert done == [(step + 1, total) for step in range(total)]


def test_calibrated_engine_that_fails_on_other_frames_is_refused(tiny_model: RVM) -> None:
    steps = 8

    def wrong_later(features: torch.Tensor, step: int) -> torch.Tensor:
        # After the clip, one of its steps is repeated.
        return 1.5 * features if step > steps else features

    report = check_engine(AlteredEngine(tiny_model, spec_of("int8"), features=wrong_later), tiny_model, steps=steps)
    assert replace(report, unseen=None).passed and not report.passed
    failure = "on frames unlike the calibration's: relative error 0.5, at most 0.15 is allowed"
    assert report.failures() == [failure]
    assert report.figures().count("8 steps: cosine mean") == 2 and failure in report.figures()
    assert GateReport.from_json(report.to_json()) == report


def test_report_survives_json() -> None:
    report = sound_report(not_finite_step=None)
    assert report.passed
    assert GateReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["passed"] is True


def test_verdict_is_not_read_from_the_file() -> None:
    bad = sound_report(mean_cosine=0.5)
    text = bad.to_json().replace('"passed": false', '"passed": true')
    assert not GateReport.from_json(text).passed


@pytest.mark.parametrize(
    "change",
    [{"format": 0}, {"spec": None}, {"quarter_cosines": [1, 1]}, {"mean_cosine": "high"}, {"colour": 1}],
    ids=str,
)
def test_other_reports_are_not_read(change: dict[str, Any]) -> None:
    text = json.dumps(json.loads(sound_report().to_json()) | change)
    with pytest.raises(ValueError):
        GateReport.from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{"])
def test_other_text_is_no_report(text: str) -> None:
    with pytest.raises(ValueError):
        GateReport.from_json(text)


def test_not_a_number_fails_every_limit() -> None:
    assert len(sound_report(mean_cosine=float("nan"), relative_error=float("nan")).failures()) == 2

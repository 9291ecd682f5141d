"""Quantising to int8 with NNCF: ranges of all values that enter a product, measured over the calibration's frames.

Only building needs NNCF; an engine that was built runs without it.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from rvm_core.engines.base import EngineError, EngineSpec, Progress
from rvm_core.engines.clip import calibration_frames
from rvm_core.streaming import StreamingEncoder

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Frames uint8 (B, H, W, 3) and state float32 (B, N+1, D) to the features, computed in float32."""

_STREAM_OFFSET = 9
"""Frames by which each further stream of a batch is ahead: they see different kinds of frames."""


def check_nncf(*others: str) -> None:
    """Raises `EngineError` if NNCF, or one of the other packages named, is not installed."""
    for name in ("nncf", *others):
        if find_spec(name) is None:
            raise EngineError(f"building an engine in int8 needs {name}: pip install rvm_perception[int8]")


def check_int8(model: StreamingEncoder) -> None:
    """Raises `EngineError` for a model of which no int8 engine is made: which products must not have 8 bits was only
    found out for RVM."""
    if not model.features_are_state:
        raise EngineError(f"int8 is for RVM only, not for {model.config.name}; choose another precision")


def calibration_inputs(
    spec: EngineSpec, state_shape: tuple[int, ...], step: Step
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and the state before each, from a first state of zeros on, as float32 carries it."""
    clip = list(calibration_frames(spec.image_size))
    state = np.zeros(state_shape, np.float32)
    inputs = []
    for number in range(len(clip)):
        frames = np.stack([clip[(number + _STREAM_OFFSET * b) % len(clip)] for b in range(spec.batch_size)])
        inputs.append((frames, state))
        state = step(frames, state)
    return inputs


def quantize(
    graph: Any,
    inputs: Sequence[dict[str, np.ndarray]],
    *,
    without_names: Sequence[str],
    without_types: Sequence[str],
    symmetric: bool = False,
    progress: Progress,
) -> Any:
    """A copy of a float32 graph of a runtime that NNCF knows, with 8-bit weights and inputs in its products.

    Args:
        inputs: of all calibration steps, by name.
        without_names, without_types: operators that are left as they are.
        symmetric: whether zero is the middle of all ranges, not only of those of weights.
    """
    check_nncf()
    nncf = _nncf()
    ranges = import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    passes, stdout = 0, sys.stdout

    def tell(item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal passes
        if item is inputs[0]:
            passes += 1
            with redirect_stdout(stdout):
                progress(f"int8: playing {len(inputs)} frames to measure what enters the products, time {passes}")
        return item

    with _quiet(logging.getLogger("nncf")):
        return nncf.quantize(
            graph,
            nncf.Dataset(inputs, tell),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            # Evens out channels of different size between activations and weights, and leaves residuals as they are.
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=list(without_names), types=list(without_types)),
            # The extremes over all frames. NNCF's default, their mean, cuts off what only some kinds of frames reach.
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges.MINMAX),
        )


def _nncf() -> Any:
    """The module, which is imported only where it is used."""
    # As OpenVINO does, it would report its use over the network to its maker; without this module it does not.
    name = "openvino_telemetry"
    if "nncf" in sys.modules:
        return import_module("nncf")
    kept = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        return import_module("nncf")
    finally:
        if kept is not None:
            sys.modules[name] = kept


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without what the library logs and draws on stdout, which is for what a command was asked for."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)

"""An engine that fails as the pictures order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core import create_engine, load_checkpoint
from rvm_core.preprocess import Preprocess
from rvm_perception.faulty_engine import LONGEST_S, Fault, FaultyEngine, order, ordered

WEIGHTS = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
SIZE = (32, 48)


def picture(seed: int, size: tuple[int, int] = (96, 144)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (*size, 3), np.uint8)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("policy", ["letterbox", "center_crop", "stretch"])
@pytest.mark.parametrize("size", [(480, 640), (33, 71), (1080, 1920), (17, 16)])
def test_orders_survive_preprocessing(fault: Fault, policy: Any, size: tuple[int, int]) -> None:
    image = picture(1, size)
    frame = Preprocess(height=32, width=48, policy=policy)(order(image, fault, seconds=0.1))
    found = ordered(frame)
    assert found is not None and found[0] == fault
    assert ordered(Preprocess(height=32, width=48, policy=policy)(image)) is None


def test_times_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to"):
        order(picture(1), Fault.SLOW, seconds=LONGEST_S + 1)


@pytest.fixture(scope="module")
def engine() -> FaultyEngine:
    return FaultyEngine(
        create_engine(load_checkpoint(WEIGHTS), backend="torch", precision="fp32", image_size=SIZE, device="cpu")
    )


def test_without_orders_it_is_the_engine_inside(engine: FaultyEngine) -> None:
    frame = picture(2, SIZE)[None]
    features, state = engine.step(frame, engine.init_state())
    expected, expected_state = engine._engine.step(frame, engine.init_state())
    assert torch.equal(features, expected) and torch.equal(state, expected_state)


def test_slow_steps_are_right(engine: FaultyEngine) -> None:
    frame = order(picture(2, SIZE), Fault.SLOW, seconds=0.02)[None]
    features, _ = engine.step(frame, engine.init_state())
    assert torch.equal(features, engine._engine.step(frame, engine.init_state())[0])


@pytest.mark.parametrize("fault", [Fault.RAISE, Fault.MEMORY])
def test_errors(engine: FaultyEngine, fault: Fault) -> None:
    with pytest.raises(MemoryError if fault == Fault.MEMORY else RuntimeError, match="told to"):
        engine.step(order(picture(2, SIZE), fault)[None], engine.init_state())


@pytest.mark.parametrize("fault", [Fault.NAN, Fault.INFINITE])
def test_spoiled_numbers_leave_what_was_given_alone(engine: FaultyEngine, fault: Fault) -> None:
    before = engine.init_state()
    features, state = engine.step(order(picture(2, SIZE), fault)[None], before)
    for values in (features, state):
        (bad,) = values[~torch.isfinite(values)]
        assert math.isnan(bad) == (fault == Fault.NAN)
    assert not before.any()

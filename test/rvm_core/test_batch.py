"""Streams stepped at once give what they give one after the other, and a broken one does not touch the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core import RVM, create_engine
from rvm_core.engines import Engine, EngineError, EngineSpec, backends
from rvm_core.engines.batch import BatchStepper, Stepped

SIZE = (32, 48)
CAMERAS, FRAMES = 3, 4

TOLERANCES = {"fp32": 2e-5, "bf16": 0.02}
"""Largest difference between features of one stream in a batch and alone: sums in another order, by precision."""


def make(model: RVM, backend: str, precision: str, batch_size: int = 1) -> Engine:
    return create_engine(
        model, backend=backend, precision=precision, image_size=SIZE, batch_size=batch_size, device="cpu", checked=False
    )


def clips() -> np.ndarray:
    """uint8 (FRAMES, CAMERAS, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (FRAMES, CAMERAS, *SIZE, 3), np.uint8)


def stepped(outcome: Stepped | Exception) -> Stepped:
    assert isinstance(outcome, Stepped), outcome
    return outcome


@pytest.mark.parametrize(("backend", "precision"), [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32")])
def test_a_batch_gives_what_its_streams_give_alone(tiny_model: RVM, backend: str, precision: str) -> None:
    if missing := backends()[backend].missing():
        pytest.skip(missing)
    single = make(tiny_model, backend, precision)
    alone, batched = BatchStepper(single), BatchStepper(single, make(tiny_model, backend, precision, CAMERAS))
    states: dict[str, list[Any]] = {"alone": [None] * CAMERAS, "batched": [None] * CAMERAS}
    for count, frames in enumerate(clips()):
        # The batch is not always full: two of three have a frame in every second round.
        waiting = [0, 1, 2] if count % 2 == 0 else [2, 0]
        for name, stepper in (("alone", alone), ("batched", batched)):
            assert stepper.pays(len(waiting)) == (name == "batched")
            outcomes = stepper.step([frames[i] for i in waiting], [states[name][i] for i in waiting])
            for i, outcome in zip(waiting, outcomes, strict=True):
                states[name][i] = stepped(outcome).state
                frames_of = states.setdefault(f"tokens of {name}", [None] * CAMERAS)
                frames_of[i] = stepped(outcome).tokens
        for i in waiting:
            one, other = states["tokens of alone"][i], states["tokens of batched"][i]
            assert one.shape == other.shape == (7, 64) and other.dtype == np.float32
            assert np.abs(one - other).max() < TOLERANCES[precision]
    assert np.abs(states["tokens of batched"][0] - states["tokens of batched"][1]).max() > 0.1, "they are different"


class Counting:
    """An engine whose state is a tuple, the sum of what it saw; it fails at frames of 255, in a batch with them."""

    def __init__(self, batch_size: int = 1) -> None:
        self.spec = EngineSpec(
            backend="torch", precision="fp32", device="cpu", image_size=(16, 16), batch_size=batch_size
        )
        self.steps = 0
        self.broken = False

    def init_state(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(self.spec.batch_size), torch.zeros(self.spec.batch_size * 2, 3)

    def step(self, frames: np.ndarray, state: Any) -> tuple[torch.Tensor, Any]:
        self.steps += 1
        if self.broken or (frames == 255).any():
            raise RuntimeError("the engine is broken")
        assert frames.shape[0] == self.spec.batch_size
        seen = torch.from_numpy(frames[:, 0, 0, 0].astype(np.float32))
        total = state[0] + seen
        return total[:, None, None].expand(-1, 2, 4), (total, state[1] + seen.repeat_interleave(2)[:, None])


def frames(*values: int) -> list[np.ndarray]:
    return [np.full((16, 16, 3), value, np.uint8) for value in values]


def test_states_of_tuples_are_joined_and_taken_apart() -> None:
    stepper = BatchStepper(Counting(), Counting(4))
    stepper.warm_up(frames(0)[0])
    outcomes = [stepped(o) for o in stepper.step(frames(1, 2, 3), [None, None, None])]
    again = [stepped(o) for o in stepper.step(frames(10, 20), [outcomes[2].state, outcomes[0].state])]
    assert [float(o.tokens[0, 0]) for o in again] == [13.0, 21.0]
    assert [o.state[1].tolist() for o in again] == [[[13.0] * 3] * 2, [[21.0] * 3] * 2]
    assert outcomes[2].state[0].tolist() == [3.0], "what was given is not changed"


def test_one_that_fails_does_not_touch_the_others() -> None:
    batched = Counting(3)
    stepper = BatchStepper(Counting(), batched)
    stepper.warm_up(frames(0)[0])
    outcomes = stepper.step(frames(1, 255, 3), [None, None, None])
    assert isinstance(outcomes[1], RuntimeError)
    assert [float(stepped(outcomes[i]).tokens[0, 0]) for i in (0, 2)] == [1.0, 3.0]
    assert stepper.size == 3, "the frame was the cause, not the batch"
    batched.broken = True
    assert [float(stepped(o).tokens[0, 0]) for o in stepper.step(frames(1, 2, 3), [None] * 3)] == [1.0, 2.0, 3.0]
    assert stepper.size == 1, "a batch that fails although each stream steps alone is not tried again"


def test_a_batch_is_used_from_where_it_pays() -> None:
    stepper = BatchStepper(Counting(), Counting(4))
    stepper.warm_up(frames(0)[0], always=False)
    assert stepper.single_ms > 0 and stepper.batched_ms > 0
    stepper.single_ms, stepper.batched_ms = 10.0, 25.0
    assert [stepper.pays(count) for count in range(6)] == [False, False, False, True, True, False]


def test_states_that_do_not_fit_are_refused() -> None:
    odd = Counting(2)
    odd.init_state = lambda: (torch.zeros(2), torch.zeros(2, 7))  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="states of 2 streams"):
        BatchStepper(Counting(), odd).warm_up(frames(0)[0])


def test_an_engine_for_one_steps_one_after_the_other() -> None:
    single = Counting()
    stepper = BatchStepper(single)
    stepper.warm_up(frames(0)[0])
    assert (stepper.size, stepper.pays(2), single.steps) == (1, False, 1)
    assert replace(single.spec, batch_size=1) == single.spec
    stepper.step(frames(1, 2), [None, None])
    assert single.steps == 3

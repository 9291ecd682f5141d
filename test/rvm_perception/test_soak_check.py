"""The comparison of what a node published with what its accepted frames give: it must find every silent change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvm_core import create_engine, load_checkpoint
from rvm_core.preprocess import Preprocess
from rvm_perception.soak_check import Checker, Output, digest_of

WEIGHTS = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
ENGINE = create_engine(load_checkpoint(WEIGHTS), backend="torch", precision="fp32", image_size=(32, 32), device="cpu")
PREPROCESS = Preprocess(height=32, width=32, policy="letterbox")
IMAGES = {stamp: [np.random.default_rng(stamp).integers(0, 255, (40, 48, 3), np.uint8)] for stamp in range(1, 13)}
RESETS = {5, 9}


def outputs() -> list[Output]:
    """What a faultless node publishes of frames 1 to 12, with resets before two of them."""
    published: list[Output] = []
    state, epoch, index = ENGINE.init_state(), 0, 0
    for stamp, (image,) in IMAGES.items():
        if stamp in RESETS:
            state, epoch, index = ENGINE.init_state(), epoch + 1, 0
        features, state = ENGINE.step(PREPROCESS(image)[None], state)
        tokens = features[0].numpy()
        published.append(
            Output(
                stamp_ns=stamp,
                epoch=epoch,
                index=index,
                skipped=0,
                digest=digest_of(tokens[0].tobytes(), tokens[1:].tobytes()),
                image_size=(40, 48),
                received_ns=stamp + 5_000_000,
            )
        )
        index += 1
    return published


GOOD: list[Output] = []
CHECKER = Checker(ENGINE, PREPROCESS)


@pytest.fixture(scope="module", autouse=True)
def computed() -> None:
    """Not at import: with the number of threads that other tests leave, the last bits are others."""
    GOOD[:] = outputs()


def test_a_faultless_node_passes() -> None:
    verdict = CHECKER.check(GOOD, IMAGES)
    assert (verdict.compared, verdict.different, verdict.unknown) == (12, [], 0)
    assert GOOD[0].age_ms == 5


def test_of_several_frames_of_one_stamp_the_accepted_one_is_found() -> None:
    others = [np.zeros((40, 48, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    images = {stamp: [*others, *image] for stamp, image in IMAGES.items()}
    assert not CHECKER.check(GOOD, images).different


def planted(change: Callable[[list[Output]], object]) -> list[Output]:
    given = list(GOOD)
    change(given)
    return given


def swap_features(given: list[Output]) -> None:
    given[6] = replace(given[6], digest=given[7].digest)


def a_step_that_a_rejected_frame_took(given: list[Output]) -> None:
    """The state went on over a frame that is said not to have been stepped."""
    del given[6]
    given[6:8] = [replace(output, index=output.index - 1) for output in given[6:8]]


def a_reset_that_is_not_told(given: list[Output]) -> None:
    given[4:8] = [replace(output, epoch=0, index=output.index + 4) for output in given[4:8]]


def a_reset_that_did_not_happen(given: list[Output]) -> None:
    given[2:4] = [replace(output, epoch=1, index=output.index - 2) for output in given[2:4]]
    given[4:] = [replace(output, epoch=output.epoch + 1) for output in given[4:]]


def an_epoch_that_falls(given: list[Output]) -> None:
    given[8:] = [replace(output, epoch=0) for output in given[8:]]


def a_frame_stepped_twice(given: list[Output]) -> None:
    given.insert(3, replace(given[2], index=3))


def an_unknown_stamp(given: list[Output]) -> None:
    given[2] = replace(given[2], stamp_ns=99)


@pytest.mark.parametrize(
    "change",
    [
        swap_features, a_step_that_a_rejected_frame_took, a_reset_that_is_not_told, a_reset_that_did_not_happen,
        an_epoch_that_falls, a_frame_stepped_twice, an_unknown_stamp,
    ],
)  # fmt: skip
def test_planted_changes_are_found(change: Callable[[list[Output]], object]) -> None:
    assert CHECKER.check(planted(change), IMAGES).different


def test_an_output_that_got_lost_is_no_silent_change() -> None:
    given = planted(lambda outputs: outputs.pop(2))
    verdict = CHECKER.check(given, IMAGES)
    assert (verdict.compared, verdict.different, verdict.unknown) == (10, [], 1)

"""The camera of the soak test."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rvm_perception.faulty_engine import Fault, ordered
from rvm_perception.soak_frames import ACTIONS, ENGINE_FAULTS, INPUT_FAULTS, PERIOD_NS, Shot, SoakCamera

START_NS = 1_000 * 10**9


def shots(count: int, seed: int = 1, **options: tuple[str, ...]) -> list[Shot]:
    return list(SoakCamera(seed=seed, start_ns=START_NS, rate=0.3).shots(count, **options))


def test_a_seed_tells_everything() -> None:
    first, again, other = shots(300), shots(300), shots(300, seed=2)
    for one, two in zip(first, again, strict=True):
        assert (one.fault, one.stamp_ns, one.frame_id) == (two.fault, two.stamp_ns, two.frame_id)
        assert np.array_equal(one.image, two.image)
    assert [shot.fault for shot in first] != [shot.fault for shot in other]


def test_every_fault_comes_in_a_soak_of_ci() -> None:
    found = Counter(shot.fault for shot in shots(2000))
    assert found.keys() == {"", *INPUT_FAULTS, *ENGINE_FAULTS, *ACTIONS}
    assert 1200 < found[""] < 1600


def test_faults_can_be_left_out() -> None:
    assert not {shot.fault for shot in shots(2000, without=("corrupt", "pause"))} & {"corrupt", "pause"}


def test_shots_are_what_their_fault_says() -> None:
    newest, before = START_NS, None
    for shot in shots(2000):
        step = shot.stamp_ns - newest
        expected = {
            "duplicate": {0},
            "late": {-i * PERIOD_NS for i in range(1, 10)},
            "drop": {i * PERIOD_NS for i in range(2, 10)},
            "gap": {100 * PERIOD_NS},
            "backward": {-i * PERIOD_NS for i in range(50, 500)},
        }
        assert step in expected.get(shot.fault, {PERIOD_NS})
        newest = newest if shot.fault == "late" else shot.stamp_ns
        if before is not None:
            assert (shot.frame_id != before.frame_id) == (shot.fault == "frame_id")
            assert (shot.image.shape != before.image.shape) == (shot.fault == "resolution")
        found = ordered(shot.image)
        assert (found[0] if found else None) == {**ENGINE_FAULTS, "slow": Fault.SLOW}.get(shot.fault)
        before = shot

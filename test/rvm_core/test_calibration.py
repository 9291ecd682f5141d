"""What int8 is calibrated with, and that NNCF keeps to itself."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvm_core.engines.base import EngineSpec
from rvm_core.engines.calibration import calibration_inputs
from rvm_core.engines.clip import CALIBRATION_STEPS, calibration_frames, gate_frames, unseen_frames

SIZE = (64, 96)
needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="needs NNCF: pip install rvm_perception[int8]"
)


def test_frames_are_the_same_every_time_and_of_every_brightness() -> None:
    frames = np.stack(list(calibration_frames(SIZE)))
    assert frames.shape == (CALIBRATION_STEPS, *SIZE, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, np.stack(list(calibration_frames(SIZE))))
    means = frames.mean(axis=(1, 2, 3))
    assert means.min() == 0 and means.max() == 255
    assert len(np.unique(np.digitize(means, np.arange(0, 256, 32)))) >= 7


def test_frames_that_check_are_unlike_those_that_calibrate() -> None:
    """By more than frames of the clip are unlike each other by its motion; each relative to its contrast."""
    seen = np.stack(list(calibration_frames(SIZE))).astype(float)
    clip = np.stack(list(gate_frames(SIZE))).astype(float)
    motion = np.abs(clip[1:] - clip[:-1]).mean() / clip.std()
    unseen = np.stack(list(unseen_frames(SIZE, 64)))
    assert unseen.shape == (64, *SIZE, 3) and unseen.dtype == np.uint8
    for frame in unseen:
        assert np.abs(seen - frame).mean(axis=(1, 2, 3)).min() / frame.std() > 2 * motion


def test_state_is_carried_from_frame_to_frame_and_streams_differ() -> None:
    spec = EngineSpec(backend="openvino", precision="int8", device="cpu", image_size=SIZE, batch_size=2)
    inputs = calibration_inputs(spec, (2, 1, 1), lambda frames, state: state + 1)
    assert [state.max() for _, state in inputs] == list(range(CALIBRATION_STEPS))
    clip = list(calibration_frames(SIZE))
    for number, (frames, _) in enumerate(inputs):
        assert np.array_equal(frames[0], clip[number])
        assert not np.array_equal(frames[0], frames[1])


@needs_nncf
@pytest.mark.parametrize("before", ["import sys", "import openvino, openvino_telemetry"])
def test_nothing_is_reported_over_the_network(before: str) -> None:
    code = (
        f"{before}; from rvm_core.engines.calibration import _nncf; _nncf();"
        "import nncf.telemetry.wrapper as used; print(type(used.telemetry).__module__)"
    )
    root = Path(__file__).parents[2]
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert used.stdout.strip() == "unittest.mock"

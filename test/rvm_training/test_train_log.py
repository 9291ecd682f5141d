"""The log after an interruption, and numbers that JSON has no name for."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from rvm_training.run_folder import RunFolder
from rvm_training.train_log import TrainLog, read_scalars


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with TrainLog(folder, start=0) as log:
        for step in (1, 2, 3):
            log.scalars(step, {"loss": float(step)})
    with folder.scalars.open("a") as file:
        file.write('{"step": 4, "lo')
    with TrainLog(folder, start=2) as log:
        log.scalars(3, {"loss": 30.0})
    assert read_scalars(folder.scalars) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]


def test_tensorboard_reads_scalars_and_pictures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="for reading")
    folder = RunFolder(tmp_path)
    with TrainLog(folder, start=0) as log:
        log.scalars(7, {"loss": 0.5})
        log.picture(7, np.full((6, 5, 3), (255, 0, 0), np.uint8))
    events = accumulator.EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]
    assert [event.step for event in events.Images("reconstruction")] == [7]
    written = cv2.imread(str(folder.pictures / "00000007.png"))
    assert written is not None
    np.testing.assert_array_equal(written, np.full((6, 5, 3), (0, 0, 255), np.uint8))


def test_numbers_that_are_not_finite_leave_the_file_readable(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with TrainLog(folder, start=0) as log:
        log.scalars(1, {"loss": math.nan, "mfu": 0.5})
    assert read_scalars(folder.scalars) == [{"step": 1, "mfu": 0.5}]


def test_no_log_yet(tmp_path: Path) -> None:
    assert read_scalars(tmp_path / "scalars.jsonl") == []

"""Runs that are interrupted, killed, go on, diverge or find the disk full; a stand-in takes the place of the model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pretrain_stand_ins import StandInLoader, StandInTrainer, make_stand_in_loader, tiny_config
from rvm_core.exit_codes import is_disk_full
from rvm_training import pretrain as pretrain_module
from rvm_training.objective import PretrainBatch
from rvm_training.peaks import Peak
from rvm_training.pretrain import DivergedError, Hooks, Outcome, RunOptions, pretrain
from rvm_training.pretrain_config import DataConfig, PretrainConfig, SamplingConfig, SourceConfig
from rvm_training.run_folder import RunFolder, RunFolderError
from rvm_training.train_checkpoint import TrainCheckpointError, read_parameters
from rvm_training.train_log import read_scalars
from rvm_training.train_step import Metrics, TrainState

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
TIMED = {"examples_per_s", "data_wait", "mfu", "training_s"}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_module, "Trainer", StandInTrainer)


def options(folder: Path, **changes: Any) -> RunOptions:
    peak = Peak("test", 1e12)
    return RunOptions(folder=RunFolder(folder), make_loader=make_stand_in_loader, peak=peak, **changes)


def weights(folder: Path, step: int) -> dict[str, np.ndarray]:
    return read_parameters(RunFolder(folder).checkpoints / str(step))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    found = read_scalars(RunFolder(folder).scalars)
    return [{key: value for key, value in row.items() if key not in TIMED} for row in found]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_module, "Trainer", StandInTrainer)
        assert pretrain(tiny_config(), options(folder)) == Outcome(6, interrupted=False)
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other)
    for name, value in weights(other, 6).items():
        np.testing.assert_array_equal(weights(folder, 6)[name], value)


def test_a_run_leaves_checkpoints_log_picture_and_curve(uninterrupted: Path) -> None:
    folder = RunFolder(uninterrupted)
    assert folder.steps() == [4, 6]
    assert folder.read_config() == tiny_config()
    assert [row["step"] for row in read_scalars(folder.scalars)] == [1, 2, 3, 4, 5, 6]
    losses = [row["loss"] for row in rows(uninterrupted)]
    assert losses == sorted(losses, reverse=True)
    assert all(row.keys() >= TIMED for row in read_scalars(folder.scalars)[1:])
    picture = cv2.imread(str(folder.pictures / "00000006.png"))
    assert picture is not None and picture.shape == (2 * 32 + 4, 4 * 32 + 3 * 4, 3)
    assert cv2.imread(str(folder.curve)) is not None
    assert list(folder.tensorboard.glob("events.*"))


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, uninterrupted: Path, at: int) -> None:
    steps: list[int] = []
    hooks = Hooks(is_stopped=lambda: len(steps) >= at - 1, show=lambda step, last, row: steps.append(step))
    assert pretrain(tiny_config(), options(tmp_path, hooks=hooks)) == Outcome(at, interrupted=True)
    assert RunFolder(tmp_path).steps()[-1] == at
    assert pretrain(tiny_config(), options(tmp_path, resume=True)) == Outcome(6, interrupted=False)
    assert_same_run(tmp_path, uninterrupted)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, uninterrupted: Path) -> None:
    process = start(f"run_and_die({str(tmp_path)!r}, 5)")
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL, errors
    folder = RunFolder(tmp_path)
    # The checkpoint of step 4 may have been on its way.
    assert folder.steps()[-1] in (2, 4)
    assert [row["step"] for row in read_scalars(folder.scalars)] == [1, 2, 3, 4, 5]
    assert cv2.imread(str(folder.pictures / "00000004.png")) is not None
    assert cv2.imread(str(folder.curve)) is not None
    assert pretrain(tiny_config(), options(tmp_path, resume=True)) == Outcome(6, interrupted=False)
    assert_same_run(tmp_path, uninterrupted)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["4", "6"]


def start(call: str, before: str = "") -> subprocess.Popen[str]:
    """Calls a function of pretrain_stand_ins in a process of its own, after a statement."""
    program = f"{before}\nimport pretrain_stand_ins; pretrain_stand_ins.{call}"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'test'}", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_share_a_run_and_end_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = f"coordinator='localhost:{port}', processes=2, process="
    processes = [
        start(
            f"run_as_one_of_two({str(tmp_path)!r}, {number})",
            f"from rvm_training import train_devices; train_devices.join(train_devices.Hosts({hosts}{number}))",
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            out, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
            assert json.loads(out.splitlines()[-1]) == {"step": 3, "interrupted": True}
    finally:
        for process in processes:
            process.kill()
    folder = RunFolder(tmp_path)
    assert folder.steps() == [2, 3]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    progress = json.loads((folder.checkpoints / "3" / "progress" / "metadata").read_text())
    assert progress["loaders"] == [{"given": 3}, {"given": 3}]
    # Another number of processes can go on with it.
    assert pretrain(tiny_config(), options(tmp_path, resume=True)) == Outcome(6, interrupted=False)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_going_on_with_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    pretrain(tiny_config(), options(tmp_path))
    before = weights(tmp_path, 6)
    assert pretrain(tiny_config(), options(tmp_path, resume=True)) == Outcome(6, interrupted=False)
    np.testing.assert_array_equal(weights(tmp_path, 6)["colour"], before["colour"])


def test_stop_after_leaves_the_schedule(tmp_path: Path, uninterrupted: Path) -> None:
    assert pretrain(tiny_config(), options(tmp_path, stop_after=3)) == Outcome(3, interrupted=False)
    assert rows(tmp_path) == rows(uninterrupted)[:3]


def test_another_run_in_the_folder_is_not_overwritten(uninterrupted: Path) -> None:
    with pytest.raises(RunFolderError, match="up to step 6: go on with --resume"):
        pretrain(tiny_config(), options(uninterrupted))


def test_clips_that_cannot_be_read_are_counted_in_the_log(tmp_path: Path) -> None:
    class Damaged(StandInLoader):
        def __next__(self) -> PretrainBatch:
            batch = super().__next__()
            self.skipped = {"clips": self._given // 3, "others": 0}
            return batch

    def make(data: DataConfig, sampling: SamplingConfig, *, batch_size: int, seed: int, **_: Any) -> StandInLoader:
        return Damaged(data, sampling, batch_size, seed)

    pretrain(tiny_config(), replace(options(tmp_path), make_loader=make))
    assert [row.get("skipped_clips") for row in rows(tmp_path)] == [None, None, 1, 1, 1, 2]


def test_two_runs_do_not_train_in_one_folder(tmp_path: Path, uninterrupted: Path) -> None:
    with RunFolder(tmp_path).alone(), pytest.raises(RunFolderError, match="another process trains in"):
        pretrain(tiny_config(), options(tmp_path))
    pretrain(tiny_config(), options(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_going_on_with_another_configuration_names_the_differences(uninterrupted: Path) -> None:
    sampling = replace(tiny_config().sampling, flip=0.0)
    other = replace(tiny_config(), batch_size=4, sampling=sampling, log_every=2)
    with pytest.raises(RunFolderError) as caught:
        pretrain(other, options(uninterrupted, resume=True))
    assert "batch_size: 2 -> 4" in str(caught.value) and "sampling.flip: 0.5 -> 0.0" in str(caught.value)
    assert "log_every" not in str(caught.value)


def test_resume_begins_where_there_is_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    pretrain(tiny_config(), options(tmp_path, resume=True))
    assert_same_run(tmp_path, uninterrupted)


def test_held_out_clips_are_evaluated_with_fixed_masks(tmp_path: Path) -> None:
    data = DataConfig(sources=tiny_config().data.sources, held_out=(SourceConfig(name="held out", path="there"),))
    trained: list[Any] = []
    pretrain(replace(tiny_config(), data=data), options(tmp_path, hooks=Hooks(show=lambda *said: trained.append(said))))
    evaluated = [row for row in rows(tmp_path) if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6]
    losses = [row["eval_loss"] for row in evaluated]
    assert losses == sorted(losses, reverse=True)
    # Evaluating changes neither the weights nor the order of the data.
    assert [row["loss"] for row in rows(tmp_path)] != losses
    assert RunFolder(tmp_path).read_config().data.held_out


class Diverging(StandInTrainer):
    """Its numbers are not finite in one step."""

    wrong: Callable[[TrainState, Metrics], tuple[TrainState, Metrics]]
    at = 5

    def step(self, state: TrainState, batch: PretrainBatch) -> tuple[TrainState, Metrics]:
        step = int(state.step) + 1
        done = super().step(state, batch)
        return type(self).wrong(*done) if step == self.at else done


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda state, metrics: (state, metrics._replace(loss=metrics.loss * np.nan)), "step 5: loss nan"),
        (
            lambda state, metrics: (state, metrics._replace(gradient_norm=metrics.loss + np.inf)),
            "step 5: gradient norm inf",
        ),
    ],
)
def test_a_number_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, message: str, uninterrupted: Path
) -> None:
    monkeypatch.setattr(pretrain_module, "Trainer", Diverging)
    monkeypatch.setattr(Diverging, "wrong", wrong, raising=False)
    with pytest.raises(DivergedError, match=message):
        pretrain(tiny_config(), options(tmp_path))
    assert RunFolder(tmp_path).steps() == [2, 4]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    monkeypatch.setattr(pretrain_module, "Trainer", StandInTrainer)
    pretrain(tiny_config(), options(tmp_path, resume=True))
    assert_same_run(tmp_path, uninterrupted)


def test_a_broken_state_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and the gradients of the step before are finite."""

    def break_weights(state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        return state._replace(parameters={k: v * np.nan for k, v in state.parameters.items()}), metrics

    monkeypatch.setattr(pretrain_module, "Trainer", Diverging)
    monkeypatch.setattr(Diverging, "wrong", break_weights, raising=False)
    monkeypatch.setattr(Diverging, "at", 6)
    with pytest.raises(DivergedError, match="step 6: a weight or a moment"):
        pretrain(tiny_config(), options(tmp_path))
    assert RunFolder(tmp_path).steps() == [2, 4]


def test_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    fill_disk(monkeypatch, tmp_path, at=4)
    with pytest.raises(OSError) as caught:
        pretrain(tiny_config(), options(tmp_path))
    assert is_disk_full(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(pretrain_module, "Trainer", StandInTrainer)
    folder = RunFolder(tmp_path)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["2"]
    pretrain(tiny_config(), options(tmp_path, resume=True))
    assert_same_run(tmp_path, uninterrupted)


def fill_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, *, at: int) -> None:
    """Fails as tensorstore does on a full disk, in the thread that writes the checkpoint of one step."""
    from orbax.checkpoint._src.serialization import serialization

    write = serialization.async_serialize_from_host

    async def write_until_full(*args: Any, **kwargs: Any) -> Any:
        if list((folder / "checkpoints").glob(f"{at}.orbax*")):
            raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")
        return await write(*args, **kwargs)

    monkeypatch.setattr(serialization, "async_serialize_from_host", write_until_full)


def test_a_disk_without_room_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(pretrain_module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="a checkpoint needs .* are free in"):
        pretrain(tiny_config(), options(tmp_path))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    pretrain(tiny_config(), options(tmp_path, stop_after=3))
    progress = RunFolder(tmp_path).checkpoints / "3" / "progress" / "metadata"
    progress.write_text("{")
    with pytest.raises(TrainCheckpointError, match=r"checkpoints/3 cannot be read .*; without its folder"):
        pretrain(tiny_config(), options(tmp_path, resume=True))


def test_what_was_found_is_said_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(tiny_config(), options(tmp_path, stop_after=1, hooks=Hooks(say=said.append)))
    text = "\n".join(said)
    for expected in ("devices: ", "mesh: data 1", "peak of a device: test, 1 TFLOP/s", "model: rvm_custom, ",
                     "step: 2 examples, 2 a device; 6 steps", "checkpoints: every 2 steps, the newest 2 kept",
                     "data: clips (clips, 1)", "begins with step 1"):  # fmt: skip
        assert expected in text


def test_configuration_in_the_folder_is_plain_json(uninterrupted: Path) -> None:
    values = json.loads(RunFolder(uninterrupted).config.read_text())
    assert values["optimizer"]["steps"] == 6 and isinstance(tiny_config(), PretrainConfig)

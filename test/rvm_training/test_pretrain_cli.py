"""`rvm-train pretrain` and `rvm-train export` with the real model, loader and checkpoints, and their errors."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from pretrain_stand_ins import tiny_config
from rvm_core import load_checkpoint
from rvm_core.exit_codes import DISK_FULL, DIVERGED, DONE, ERROR, INTERRUPTED, USAGE
from rvm_training import objective, pretrain_cli, train_step
from rvm_training import pretrain as pretrain_module
from rvm_training.data.loader import make_loader
from rvm_training.pretrain_cli import parse_source
from rvm_training.pretrain_config import PretrainConfig, to_dict
from rvm_training.pretrain_loader import training_loader
from rvm_training.run_folder import RunFolder
from rvm_training.train_cli import main
from rvm_training.train_log import read_scalars
from training_clips import numbered_clips, write_shards

STEPS = 4
LOSS_TOLERANCE = 1e-5
"""Of float32 sums in torch's and in jax's order."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "clips", numbered_clips(5))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    values = to_dict(tiny_config(optimizer={"learning_rate": 1e-3, "warmup_steps": 1, "steps": STEPS}))
    values["data"] = {"sources": [{"name": "clips", "path": str(shards)}]}
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled_once(config_file: Path) -> Iterator[None]:
    """Compiling takes most of the time; all runs here have steps of one shape."""
    from rvm_training.config_files import load_config

    config = load_config(str(config_file))
    trainer = train_step.Trainer(config, jax.devices()[:1])

    def shared(asked: PretrainConfig) -> train_step.Trainer:
        assert (asked.model, asked.sampling, asked.optimizer) == (config.model, config.sampling, config.optimizer)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_module, "Trainer", shared)
        yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, config_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["pretrain", "--config", str(config_file), "--out", str(folder), "--peak", "h200"]) == DONE
    return folder


def losses(folder: Path) -> list[tuple[int, float, float]]:
    rows = read_scalars(RunFolder(folder).scalars)
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows]


def test_a_run_in_two_parts_is_that_in_one_bit_for_bit(
    tmp_path: Path, config_file: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights = tmp_path / "parts", [tmp_path / "parts.npz", tmp_path / "whole.npz"]
    assert main(["pretrain", "--config", str(config_file), "--out", str(folder), "--steps", "3"]) == DONE
    assert "step 3/3: loss " in capsys.readouterr().out
    assert main(["pretrain", "--out", str(folder), "--resume"]) == DONE
    assert "goes on after step 3" in capsys.readouterr().out
    assert losses(folder) == losses(whole_run) and len(losses(folder)) == STEPS
    for run, path in zip((folder, whole_run), weights, strict=True):
        assert main(["export", str(run), "--out", str(path)]) == DONE
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_weights_load_and_have_the_loss_of_the_run(
    tmp_path: Path, whole_run: Path, config_file: Path, suffix: str
) -> None:
    """The model after a step has the loss that the run logged for the next one."""
    path = tmp_path / f"model{suffix}"
    assert main(["export", str(whole_run), "--step", "2", "--out", str(path)]) == DONE
    model = load_checkpoint(path, decoder=True)
    config = RunFolder(whole_run).read_config()
    assert model.config == config.model
    loader = training_loader(make_loader, config, 0, 1)
    batch = [next(loader) for _ in range(3)][-1]
    with torch.inference_mode():
        loss = objective.loss(model, objective.PretrainBatch(*(torch.from_numpy(np.asarray(part)) for part in batch)))
    assert float(loss) == pytest.approx(losses(whole_run)[2][1], rel=LOSS_TOLERANCE)


def test_export_without_decoder_and_over_a_file(
    tmp_path: Path, whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.npz"
    assert main(["export", str(whole_run), "--out", str(path), "--no-decoder"]) == DONE
    assert "of step 4, without decoder, hash " in capsys.readouterr().out
    assert load_checkpoint(path).config.decoder is None
    before = path.read_bytes()
    assert main(["export", str(whole_run), "--out", str(path)]) == ERROR
    assert "exists; replace it with --force" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main(["export", str(whole_run), "--out", str(path), "--force"]) == DONE
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "model.txt"], "ends with .npz or .safetensors"),
        (["--out", "nowhere/model.npz"], "there is no folder nowhere"),
        (["--out", "model.npz", "--step", "3"], "no checkpoint of step 3; there are 2, 4"),
    ],
)
def test_export_explains_what_cannot_be(
    whole_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(whole_run), *arguments]) == ERROR
    assert message in capsys.readouterr().err


def test_export_of_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "model.npz")]) == ERROR
    assert "there is no checkpoint in" in capsys.readouterr().err


def test_ctrl_c_and_sigterm_save(
    tmp_path: Path,
    config_file: Path,
    whole_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        folder, sent = tmp_path / number.name, iter([number])

        def send(row: object, sent: Iterator[signal.Signals] = sent) -> str:
            for once in sent:
                signal.raise_signal(once)
            return ""

        with monkeypatch.context() as patch:
            # It is called when step 1 is shown.
            patch.setattr(pretrain_cli, "_numbers", send)
            assert main(["pretrain", "--config", str(config_file), "--out", str(folder)]) == INTERRUPTED
        newest = RunFolder(folder).steps()[-1]
        assert 1 < newest < STEPS
        assert f"interrupted after step {newest}; --resume goes on from there" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(folder), "--resume"]) == DONE
    assert losses(folder) == losses(whole_run)


def test_exit_codes_of_what_ends_a_run(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--config", str(config_file), "--out", str(tmp_path / "run")]
    for error, code, message in (
        (
            pretrain_module.DivergedError(7, "loss nan"),
            DIVERGED,
            "stopped at step 7: loss nan. There is no checkpoint.",
        ),
        (OSError(28, "No space left on device"), DISK_FULL, "the disk is full"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(pretrain_module, "pretrain", fail)
        assert main(command) == code
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], USAGE, "--config is missing"),
        (["--resume"], USAGE, "--config is missing"),
        (["--config", "rvm_nano", "--steps", "0"], USAGE, "--steps must be positive"),
        (["--config", "rvm_nanu"], ERROR, "did you mean rvm_nano?"),
        (["--config", "rvm_nano", "--coordinator", "here:1"], ERROR, "are given together or not at all"),
        (["--config", "rvm_nano", "--peak", "v9"], ERROR, "unknown peak 'v9'"),
    ],
)
def test_wrong_usage_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["pretrain", "--out", str(tmp_path / "run"), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rvm_training.pretrain")
    monkeypatch.delitem(sys.modules, "rvm_training.train_checkpoint")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert main(["pretrain", "--config", "rvm_nano", "--out", str(tmp_path)]) == ERROR
    assert "orbax is missing; pip install 'rvm_perception[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/ssv2", ("ssv2", "data/ssv2", 1.0)),
        ("a=data/ssv2:0.5", ("a", "data/ssv2", 0.5)),
        ("b=C:/clips", ("b", "C:/clips", 1.0)),
        ("synthetic:", ("synthetic:", "synthetic:", 1.0)),
    ],
)
def test_sources_on_the_command_line(text: str, expected: tuple[str, str, float]) -> None:
    source = parse_source(text)
    assert (source.name, source.path, source.weight) == expected


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("pretrain", "export", "shards", "plan", "readout", "ablate"):
        assert command in shown

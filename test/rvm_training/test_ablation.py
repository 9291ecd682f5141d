"""Ablations: equal budgets, the runs and what is measured of them, resuming, and the verdicts on findings."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain_examples import tiny_clip_config
from pretrain_stand_ins import tiny_config
from rvm_core.exit_codes import INTERRUPTED
from rvm_training.ablation import (
    RAW_PIXELS,
    RESULT,
    UNTRAINED,
    Ablation,
    AblationError,
    missing,
    open_folder,
    read_results,
    run_task,
    tasks,
)
from rvm_training.ablation_measures import copy_loss, model_encoder, pixel_encoder
from rvm_training.ablation_report import COLUMNS, make_report, make_table
from rvm_training.objective import PretrainBatch
from rvm_training.pretrain_config import DataConfig, OptimizerConfig, PretrainConfig, SourceConfig, to_dict
from rvm_training.pretrain_model import build_model
from rvm_training.run_folder import RunFolder
from rvm_training.train_cli import main
from training_clips import numbered_clips, write_shards

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
FEATURE_TOLERANCE = 1e-5
"""Of float32 sums over batches of different size."""


def config_of(shards: Path, **changes: object) -> PretrainConfig:
    source = SourceConfig(name="clips", path=str(shards))
    config = tiny_config()
    config = replace(
        config,
        sampling=replace(config.sampling, source_frames=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, steps=2),
        data=DataConfig(sources=(source,), held_out=(source,)),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "clips", numbered_clips(4))


def test_budgets_must_be_equal(shards: Path) -> None:
    config = config_of(shards)
    longer = replace(config, optimizer=replace(config.optimizer, steps=3))
    with pytest.raises(AblationError, match="b and a cannot be compared"):
        Ablation(variants={"a": config, "b": longer}, seeds=(0,))


def test_only_rvm_is_compared() -> None:
    with pytest.raises(AblationError, match="only configurations of RVM can be compared; b is of 4ds_mae"):
        Ablation(variants={"b": tiny_clip_config("4ds_mae")}, seeds=(0,))


def test_held_out_clips_are_needed(shards: Path) -> None:
    config = config_of(shards)
    with pytest.raises(AblationError, match="held_out"):
        Ablation(variants={"a": replace(config, data=replace(config.data, held_out=()))}, seeds=(0,))


def test_a_folder_holds_one_ablation(shards: Path, tmp_path: Path) -> None:
    config = config_of(shards)
    open_folder(Ablation(variants={"a": config}, seeds=(0,)), tmp_path / "out")
    open_folder(Ablation(variants={"a": config}, seeds=(0,)), tmp_path / "out")
    with pytest.raises(AblationError, match="another ablation"):
        open_folder(Ablation(variants={"a": config}, seeds=(0,), scenes=11), tmp_path / "out")
    open_folder(Ablation(variants={"a": config}, seeds=(0, 1)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["seeds"] == [0, 1]
    # A plan of before there were other objectives is still the same one.
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    del plan["variants"]["a"]["objective"]
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    open_folder(Ablation(variants={"a": config}, seeds=(0,)), tmp_path / "out")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").touch()
    with pytest.raises(AblationError, match="not empty"):
        open_folder(Ablation(variants={"a": config}, seeds=(0,)), tmp_path / "letters")


def test_a_recurrent_model_carries_its_state_and_self_attention_its_newest_frames(shards: Path) -> None:
    config = config_of(shards)
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    recurrent = build_model(config, seed=0).eval()
    encoded = list(model_encoder("core", recurrent, source_frames=2).encode(frames, (32, 32)))
    state = recurrent.init_state(1, 32, 32)
    for frame in frames:
        with torch.inference_mode():
            features, state = recurrent(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255, state)
    torch.testing.assert_close(encoded[-1], features[0], atol=FEATURE_TOLERANCE, rtol=0)

    attending = build_model(replace(config, aggregator="self_attention"), seed=0).eval()
    encoder = model_encoder("attention", attending, source_frames=2)
    whole = list(encoder.encode(frames, (32, 32)))
    newest = list(encoder.encode(frames[2:], (32, 32)))
    torch.testing.assert_close(whole[-1], newest[-1], atol=FEATURE_TOLERANCE, rtol=0)
    alone = list(encoder.encode(frames[3:], (32, 32)))
    assert not torch.allclose(whole[-1], alone[-1], atol=FEATURE_TOLERANCE)


def test_reset_every_frame_forgets(shards: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    encoder = model_encoder("core", build_model(config_of(shards), seed=0).eval(), source_frames=2)
    reset = list(encoder.encode(frames, (32, 32), reset_every_frame=True))[1]
    torch.testing.assert_close(reset, next(iter(encoder.encode(frames[1:], (32, 32)))), atol=FEATURE_TOLERANCE, rtol=0)


def test_copying_the_last_source_frame_costs_the_mean_square_of_what_moved() -> None:
    source = np.zeros((1, 2, 16, 16, 3), np.uint8)
    source[:, 1] = 51
    batch = PretrainBatch(source, np.full((1, 1, 16, 16, 3), 102, np.uint8), np.ones((1, 1)), np.zeros((1, 1, 1)))
    assert copy_loss([batch]) == pytest.approx(0.04, rel=1e-5)


def test_raw_pixels_have_one_token_more_than_patches() -> None:
    tokens, _ = pixel_encoder().step(np.zeros((32, 48, 3), np.uint8), None)
    assert tokens.shape == (7, 768)


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ablation, Path]:
    config = config_of(shards)
    variants = {
        "tiny_4_frames": config,
        "tiny_self_attention": replace(config, aggregator="self_attention"),
    }
    ablation = Ablation(variants=variants, seeds=(0,), scenes=1, frames=3)
    root = tmp_path_factory.mktemp("ablation") / "out"
    open_folder(ablation, root)
    for task in tasks(ablation):
        assert run_task(ablation, task, root)
    return ablation, root


def test_everything_is_measured_of_everything(finished: tuple[Ablation, Path]) -> None:
    ablation, root = finished
    results = read_results(ablation, root)
    assert set(results) == {*ablation.variants, UNTRAINED, RAW_PIXELS}
    for found in results.values():
        assert set(found[0]["scores"]) == {column.key for column in COLUMNS}
        assert found[0]["scores"]["loss"] > 0
    assert not missing(ablation, root)
    losses = {name: found[0]["scores"]["loss"] for name, found in results.items()}
    assert len(set(losses.values())) == len(losses)
    report = make_report(ablation, results, {})
    assert report["complete"]
    assert "self attention" in make_table(report)


def test_a_result_is_not_measured_again(finished: tuple[Ablation, Path]) -> None:
    ablation, root = finished
    path = tasks(ablation)[-1].folder(root) / RESULT
    before = path.stat().st_mtime_ns
    assert run_task(ablation, tasks(ablation)[-1], root)
    assert path.stat().st_mtime_ns == before


def test_an_interrupted_run_leaves_no_result_and_goes_on(shards: Path, tmp_path: Path) -> None:
    ablation = Ablation(variants={"a": config_of(shards)}, seeds=(0,), scenes=1, frames=3)
    task = tasks(ablation)[-1]
    assert not run_task(ablation, task, tmp_path, is_stopped=lambda: True)
    assert task in missing(ablation, tmp_path)
    assert run_task(ablation, task, tmp_path)
    assert task not in missing(ablation, tmp_path)


def _result(seed: int, **scores: float | None) -> dict[str, object]:
    return {"seed": seed, "scores": {column.key: scores.get(column.key) for column in COLUMNS}}


def test_a_finding_is_seen_only_where_no_seed_contradicts(shards: Path) -> None:
    config = config_of(shards)
    ablation = Ablation(variants={"x_4_frames": config, "x_2_frames": config}, seeds=(0, 1))
    results = {
        "x_4_frames": [
            _result(0, loss=1.0, average_jaccard=0.5, box_iou=0.1),
            _result(1, loss=2.0, average_jaccard=0.6, box_iou=0.9),
        ],
        "x_2_frames": [
            _result(0, loss=3.0, average_jaccard=0.6, box_iou=0.2),
            _result(1, loss=4.0, average_jaccard=0.7, box_iou=0.3),
        ],
    }
    report = make_report(ablation, results, {})
    verdicts = report["findings"][0]["verdicts"]
    assert verdicts["loss"] == "seen"
    assert verdicts["average_jaccard"] == "not seen"
    assert verdicts["box_iou"] == "within the spread of the seeds"
    assert verdicts["mask_iou"] == "not measured"
    assert not report["complete"]
    table = make_table(report)
    assert "NOT COMPLETE" in table
    assert "1500.0 (1000.0..2000.0)" in table
    assert math.isclose(report["rows"][0]["scores"]["loss"]["mean"], 1.5)


def test_the_command_runs_and_writes_its_report(
    finished: tuple[Ablation, Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(to_dict(config_of(shards))))
    argv = ["ablate", "--configs", str(file), "--seeds", "1", "--scenes", "1", "--steps", "2", "--out"]
    assert main([*argv, str(tmp_path / "out")]) == 0
    assert "untrained" in capsys.readouterr().out
    assert {"ablation.json", "ablation.md", "ablation.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main([*argv, str(tmp_path / "out"), "--set", "optimizer.learning_rate=1e-2", "eval_every=7"]) == 1
    assert "another ablation" in capsys.readouterr().err


def test_runs_at_once_save_and_stop_when_asked(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    long = replace(config_of(shards), checkpoint_every=10**6, eval_every=10**6, log_every=1)
    file.write_text(json.dumps(to_dict(long)))
    process = subprocess.Popen(
        [sys.executable, "-m", "rvm_training.train_cli", "ablate", "--configs", str(file), "--steps", "1000000",
         "--seeds", "2", "--scenes", "1", "--jobs", "2", "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    runs = [RunFolder(tmp_path / "out" / "tiny" / f"seed_{seed}" / "run") for seed in range(2)]
    try:
        end = time.monotonic() + TIMEOUT_S
        while not all(run.scalars.is_file() and run.scalars.stat().st_size for run in runs):
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, errors
    assert "NOT COMPLETE" in out
    assert all(run.steps() for run in runs)

"""The noise square: features that see motion find it, the same ones without memory do not, nor do random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rvm_core.cli
from mini_datasets import ColourEncoder
from rvm_core.cli import main
from rvm_training.data.moving_noise import NoiseConfig
from rvm_training.evaluation.runner import run
from rvm_training.evaluators.noise_square import (
    LinearProbe,
    NoiseSquareBenchmark,
    area_under_roc,
    mostly_inside,
    ranked_hits,
)

CHANCE = 0.1
"""How far from 0.5 the area under the ROC curve is at most, by chance, in so few clips."""
CONFIG = NoiseConfig(size=128, square=64, num_frames=16)


def test_motion_shows_the_square_and_single_frames_do_not(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    benchmark = NoiseSquareBenchmark(encoder, CONFIG, clips=3, groups=2)
    done = run(benchmark, encoder, tmp_path)
    rows = benchmark.aggregate({video: result.scores for video, result in done.results.items()}).rows
    assert [row.name for row in rows] == ["", "colours, state reset every frame", "chance"]
    seen, blind, chance = (row.values for row in rows)
    assert seen["auc"] > 0.95 and seen["ranked"] > 0.8  # type: ignore[operator]
    assert abs(blind["auc"] - 0.5) < CHANCE and blind["kmeans"] <= 0.25 < 0.5 < seen["kmeans"]  # type: ignore[operator]
    assert chance == {"auc": 0.5, "ranked": 0.25}
    assert all(len(result.pictures) == 1 for result in done.results.values())


def test_a_cluster_is_the_square_if_most_of_it_is_inside() -> None:
    assigned = np.array([0, 0, 0, 1, 1, 2, 3])
    truth = np.array([True, True, False, True, False, False, True])
    assert mostly_inside(assigned, truth).tolist() == [True, False, False, True, False]


def test_the_same_clip_gives_the_same_scores(tmp_path: Path) -> None:
    scores = []
    for order in (["clip_000", "clip_001"], ["clip_001", "clip_000"]):
        benchmark = NoiseSquareBenchmark(ColourEncoder(), CONFIG, clips=2, groups=1)
        done = {v: benchmark.evaluate(v, pictures=False, advance=lambda share: None).scores for v in order}
        scores.append({video: done[video] for video in sorted(done)})
    assert scores[0] == scores[1]


def test_area_under_roc() -> None:
    truth = np.array([False, False, True, True])
    assert area_under_roc(np.array([1.0, 2, 3, 4]), truth) == 1
    assert area_under_roc(np.array([4.0, 3, 2, 1]), truth) == 0
    assert area_under_roc(np.array([1.0, 3, 2, 4]), truth) == 0.75
    assert area_under_roc(np.zeros(4), truth) == 0.5
    assert area_under_roc(np.array([0.0, 1, 1, 2]), truth) == 0.875
    assert area_under_roc(np.arange(4.0), np.ones(4, bool)) == 0.5


def test_ranked_hits_counts_as_many_as_there_are() -> None:
    truth = np.array([[[True, False, False]], [[True, True, False]]])
    ranks = np.array([[[3.0, 2, 1]], [[3.0, 1, 2]]])
    assert ranked_hits(ranks, truth) == pytest.approx(2 / 3)


def test_a_probe_finds_what_is_linear_from_parts_of_the_data() -> None:
    random = np.random.default_rng(0)
    features = random.normal(5, 2, (400, 6)).astype(np.float32)
    truth = features @ np.array([1, -2, 0, 0, 3, 0]) > 10
    whole, parts = LinearProbe(), LinearProbe()
    whole.learn(features, truth)
    for part in (slice(0, 150), slice(150, 400)):
        parts.learn(features[part], truth[part])
    np.testing.assert_allclose(parts.rank(features), whole.rank(features), rtol=1e-9, atol=0)
    assert area_under_roc(whole.rank(features), truth) > 0.98


def test_clips_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="expected more than 8 frames, got 8"):
        NoiseSquareBenchmark(ColourEncoder(), NoiseConfig(num_frames=8))


def test_by_the_command(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = rvm_core.cli.EntryPoint("eval", "rvm_training.eval_cli:register", rvm_core.cli.GROUP)
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [entry])
    options = ["--clips", "1", "--groups", "1", "--frames", "12", "--precision", "fp32"]
    code = main(["eval", "noise_square", "--weights", str(tiny_path), "--out", str(tmp_path), *options])
    assert code == 0
    report = json.loads((tmp_path / "noise_square/report.json").read_text())
    assert len(report["rows"]) == 3 and report["published"] == [] and len(report["videos"]) == 1
    # Random weights show no more than chance, with and without a state.
    assert all(abs(row["values"]["auc"] - 0.5) < 2 * CHANCE for row in report["rows"])
    assert "state reset every frame" in capsys.readouterr().out

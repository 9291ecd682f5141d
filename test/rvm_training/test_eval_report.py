"""The report of an evaluation, from scores made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvm_training.data.scenes import SceneConfig
from rvm_training.eval_report import make_report, make_table, write_json
from rvm_training.evaluators.synthetic import Cases, Evaluation, SceneScores
from rvm_training.evaluators.tap_vid import TapVidMetrics

POINTS = TapVidMetrics(
    average_jaccard=0.4, position_accuracy=0.5, occlusion_accuracy=0.9, jaccard=(0.2,) * 5, within=(0.3,) * 5
)
SURE = Cases(confidence=np.array([1.0, 1.0]), truth=np.array([True, False]))
NONE = Cases(confidence=np.zeros(0), truth=np.zeros(0, bool))
SCENE = SceneScores(
    points=POINTS, box_iou=0.6, mask_iou=0.8, point_cases=SURE, box_cases=SURE, mask_cases=NONE,
    encode_ms=np.array([90.0, 2.0, 4.0]), track_ms=np.array([70.0, 1.0, 1.0]),
)  # fmt: skip
OTHER = replace(
    SCENE, points=replace(POINTS, average_jaccard=0.6), box_iou=math.nan, mask_iou=0.4,
    point_cases=Cases(confidence=np.array([0.0, 0.0]), truth=np.array([False, False])),
)  # fmt: skip


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(SceneConfig(), ["one", "another"], [7, 8], [[SCENE, SCENE], [OTHER, SCENE]])


def test_means_over_scenes(evaluation: Evaluation) -> None:
    report = make_report(evaluation, {"cpu": "a"}, {"weights": None}, interrupted=False)
    first, second = report["rows"]
    assert first["average_jaccard"] == pytest.approx(0.5) and second["average_jaccard"] == pytest.approx(0.4)
    # A scene that says nothing of boxes does not count for them.
    assert first["box_iou"] == pytest.approx(0.6) and first["mask_iou"] == pytest.approx(0.6)
    # Medians, without each scene's first frame.
    assert first["features_ms"] == 3 and first["tracking_ms"] == 1
    # Of two sure cases one is wrong; of two more that deny, none.
    assert second["point_calibration_error"] == pytest.approx(0.5)
    assert first["point_calibration_error"] == pytest.approx(0.25)
    assert first["mask_calibration_error"] is None
    assert report["seeds"] == [7, 8] and report["scene"]["num_frames"] == 24


def test_the_table(evaluation: Evaluation) -> None:
    lines = make_table(make_report(evaluation, {}, {}, interrupted=False)).splitlines()
    assert lines[0].split()[:3] == ["AJ", "<d_avg", "OA"] and len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["one", "50.0", "50.0", "90.0", "60.0", "60.0", "3.00", "1.00", "25.0", "50.0", "-"]


def test_json_has_no_nan(evaluation: Evaluation, tmp_path: Path) -> None:
    write_json(make_report(evaluation, {}, {}, interrupted=True), tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    report = json.loads(text)
    assert report["interrupted"] and report["rows"][0]["scenes"][1]["box_iou"] is None


def test_without_scenes_there_are_no_figures() -> None:
    report = make_report(Evaluation(SceneConfig(), ["one"]), {}, {}, interrupted=True)
    assert set(make_table(report).splitlines()[1].split()) == {"one", "-"}

"""What `rvm compare` measures in synthetic scenes and on the user's videos, by encoders whose quality is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from rvm_training.baselines import pixel_tokens
from rvm_training.compare_measures import (
    FIRST_SEED,
    ScenePropagation,
    SceneTracking,
    VideoStrips,
    curve_lengths,
    find_user_videos,
    shown_indices,
    stability_curve,
)
from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluation.frame_encoder import FrameEncoder

CONFIG = SceneConfig(height=96, width=96, num_frames=18, num_objects=2, num_points=8, object_size=0.3)
GRID = (6, 6)
CLIP = Path(__file__).parents[2] / "rvm_core" / "data" / "clip.mp4"


class Oracle:
    """Knows which object is in each cell of the scene: what features could show at best."""

    name, random, width = "oracle", False, 4

    def __init__(self) -> None:
        self.labels = generate_scene(CONFIG, FIRST_SEED).labels

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        return {"name": self.name}

    def encode(self, frames: Iterable[Any], image_size: tuple[int, int], **options: Any) -> Iterator[torch.Tensor]:
        for labels, _ in zip(self.labels, frames, strict=True):
            planes = [(labels == number).astype(np.float32) for number in range(self.width)]
            cells = np.stack([cv2.resize(plane, GRID, interpolation=cv2.INTER_AREA).ravel() for plane in planes], -1)
            yield torch.from_numpy(np.concatenate([cells.mean(axis=0, keepdims=True), cells]))


def blind() -> FrameEncoder:
    """Sees nothing: other noise in every frame."""
    noise = torch.Generator().manual_seed(0)
    return FrameEncoder("blind", 4, lambda frame, state: (torch.randn(37, 4, generator=noise), state))


def told() -> tuple[list[float], Any]:
    shares: list[float] = []
    return shares, shares.append


def test_propagation_tells_good_features_from_none() -> None:
    jf = {}
    for encoder in (Oracle(), blind()):
        benchmark = ScenePropagation(encoder, CONFIG, scenes=1)
        shares, advance = told()
        result = benchmark.evaluate(f"scene_{FIRST_SEED}", pictures=False, advance=advance)
        values = benchmark.aggregate({f"scene_{FIRST_SEED}": result.scores}).rows[0].values
        jf[encoder.name] = values["jf"]
        assert shares[-1] == 1 and shares == sorted(shares)
        assert len(result.scores["j"][0]) == CONFIG.num_frames - 2
    assert jf["oracle"] is not None and jf["blind"] is not None
    assert jf["oracle"] > jf["blind"] + 0.2


def test_tracking_tells_good_features_from_none() -> None:
    iou = {}
    for encoder in (Oracle(), blind()):
        benchmark = SceneTracking(encoder, CONFIG, scenes=1)
        shares, advance = told()
        result = benchmark.evaluate(benchmark.videos()[0], pictures=False, advance=advance)
        iou[encoder.name] = benchmark.aggregate({"a": result.scores, "b": result.scores}).rows[0].values["mask_iou"]
        assert shares[-1] == 1
        assert result.scores["mask_iou"] == pytest.approx(iou[encoder.name])
    assert iou["oracle"] is not None and iou["blind"] is not None
    assert iou["oracle"] > iou["blind"] + 0.2


def test_a_figure_that_is_not_known_in_a_scene_does_not_count() -> None:
    benchmark = SceneTracking(blind(), CONFIG, scenes=2)
    scores = {"average_jaccard": 0.5, "box_iou": None, "mask_iou": 0.25}
    values = benchmark.aggregate({"a": scores, "b": scores | {"average_jaccard": None}}).rows[0].values
    assert values == {"average_jaccard": 0.5, "box_iou": None, "mask_iou": 0.25}


def test_stability_rests_on_the_same_videos_at_every_length() -> None:
    long = {"j": [[1.0] * 14 + [0.0] * 16], "f": [[1.0] * 14 + [0.0] * 16]}
    short = {"j": [[0.0] * 14], "f": [[0.0] * 14]}
    points = stability_curve({"long": long, "short": short}, [16, 32]).lines["J&F"]
    assert points == [(16.0, 1.0), (32.0, pytest.approx(14 / 30))]
    assert stability_curve({"short": short}, [16, 32]).lines["J&F"] == []
    assert curve_lengths(50) == [16, 32, 48]
    assert curve_lengths(5) == [5]


def pixels() -> FrameEncoder:
    return FrameEncoder("raw pixels", 768, lambda frame, state: (pixel_tokens(frame), state))


def test_strips_of_a_video() -> None:
    benchmark = VideoStrips(pixels(), {"clip": CLIP}, size=(64, 96), frames=7, stride=2)
    shares, advance = told()
    result = benchmark.evaluate("clip", pictures=True, advance=advance)
    assert result.scores["frames"] == 7
    assert 0 < result.scores["changes"] < 1
    assert 0 < result.scores["similarity"] < 1
    assert [picture.name for picture in result.pictures] == ["input", "pca", "kmeans"]
    assert len({picture.image.shape for picture in result.pictures}) == 1
    height, width, _ = result.pictures[0].image.shape
    assert (height, width) == (112, 6 * 168 + 5 * 2)
    # Cells of a cluster have its colour, and nothing else is in the strip but the gaps between the frames.
    colours = {tuple(colour) for colour in result.pictures[2].image[56].tolist()}
    assert 1 < len(colours) <= 5 + 1


def test_a_still_video_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr("rvm_training.compare_measures.read_video", lambda path, **options: iter([still] * 5))
    benchmark = VideoStrips(pixels(), {"still": CLIP}, size=(64, 64), frames=5, stride=1)
    values = benchmark.evaluate("still", pictures=False, advance=lambda share: None).scores
    assert values["changes"] == 0
    assert values["similarity"] == pytest.approx(1, abs=1e-5)


def test_videos_that_cannot_be_used(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video")
    benchmark = VideoStrips(pixels(), {"damaged": damaged, "clip": CLIP}, size=(64, 64), frames=2, stride=1)
    with pytest.raises(DatasetError, match="damaged: "):
        benchmark.evaluate("damaged", pictures=False, advance=lambda share: None)
    with pytest.raises(DatasetError, match="expected 3 frames or more, found 2"):
        benchmark.evaluate("clip", pictures=False, advance=lambda share: None)


def test_videos_are_found_in_files_and_folders(tmp_path: Path) -> None:
    for name in ("a/one.mp4", "b/one.mp4", "b/two.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_user_videos([tmp_path / "a" / "one.mp4", tmp_path / "b"])
    assert list(found) == [str(tmp_path / "a/one.mp4"), str(tmp_path / "b/one.mp4"), "two.webm"]
    assert len(find_user_videos([tmp_path / "b"], limit=1)) == 1
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is no video"):
        find_user_videos([tmp_path / "notes.txt"])
    with pytest.raises(ValueError, match="there is nothing at"):
        find_user_videos([tmp_path / "nowhere"])


def test_shown_frames_are_spread_over_the_video() -> None:
    assert shown_indices(48) == [0, 9, 19, 28, 38, 47]
    assert shown_indices(3) == [0, 1, 2]

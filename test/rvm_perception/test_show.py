"""What the pictures of `rvm show` show, with features that are known."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rvm_core.clustering import cluster_colors
from rvm_core.preprocess import Preprocess
from rvm_core.reconstruction import choose_visible
from rvm_perception.show import (
    PANEL,
    ClipTooShort,
    ClusterView,
    PCAView,
    ReconstructionView,
    SimilarityView,
    Spot,
    write_view,
)
from rvm_perception.show_clip import EncodedClip, Frame, StoredFeatures
from rvm_perception.video import VideoError, read_frames

HEIGHT, WIDTH, ROWS, COLS = 64, 128, 8, 8
"""Letterboxed into 128x128: two rows of cells above and below the image are padding."""


class Stub:
    """A clip of grey frames."""

    name, rate, recovered = "stub", 10.0, ""

    def __init__(self, frames: int, size: tuple[int, int] = (HEIGHT, WIDTH), starts: Iterable[int] = ()) -> None:
        self.expected: int | None = frames
        self._size, self._starts = size, set(starts)

    def frames(self) -> Iterator[Frame]:
        for number in range(self.expected or 0):
            yield Frame(number / 10, np.full((*self._size, 3), 100 + number % 50, np.uint8), number in self._starts)


def encoded(
    features: npt.NDArray[Any], size: tuple[int, int] = (HEIGHT, WIDTH), starts: Iterable[int] = ()
) -> EncodedClip:
    preprocess = Preprocess(height=128, width=128, policy="letterbox")
    return EncodedClip(
        clip=Stub(len(features), size, starts),
        features=features.astype(np.float16),
        seconds=[number / 10 for number in range(len(features))],
        starts=[0, *starts],
        frame_map=preprocess.map(*size),
    )


def halves(frames: int = 12) -> npt.NDArray[Any]:
    """Features that differ between a left part, which grows, and a right one; padding is something else."""
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 16))
    features = np.empty((frames, ROWS, COLS, 16))
    for number in range(frames):
        column = np.arange(COLS)[None, :, None] < 2 + number // 4
        features[number] = np.where(column, left, right)
    features[:, :2] = features[:, 6:] = 50 * random.normal(size=16)
    return features + 0.01 * random.normal(size=features.shape)


def panels(view: Any, count: int = 2) -> list[list[npt.NDArray[Any]]]:
    """Of each picture the images beside each other."""
    pictures = [picture.image for picture in view.pictures()]
    width = (pictures[0].shape[1] - (count - 1) * 4) // count
    return [[image[:, i * (width + 4) : i * (width + 4) + width] for i in range(count)] for image in pictures]


@pytest.mark.parametrize("running", [False, True])
def test_principal_components_show_the_parts(running: bool) -> None:
    """And padding, which differs from all else, does not decide about the colours."""
    pictures = panels(PCAView(encoded=encoded(halves()), running=running))
    assert len(pictures) == 12
    for image, painted in pictures:
        assert (image == image[0, 0]).all() and image.shape == painted.shape == (HEIGHT, WIDTH, 3)
        left, right = painted[:, 4:12].astype(int), painted[:, -12:-4].astype(int)
        assert np.abs(left.mean((0, 1)) - right.mean((0, 1))).max() > 100
        assert left.std((0, 1)).max() < 60


def test_clusters_have_a_colour_for_each_part() -> None:
    view = ClusterView(encoded=encoded(halves()), clusters=2)
    assert view.summary()["shares"] == [0.625, 0.375]
    for number, (image, painted) in enumerate(panels(view)):
        grey = float(image[0, 0, 0])
        expected = cluster_colors(2) * 0.8 + grey * 0.2
        edge = 16 * (2 + number // 4)
        np.testing.assert_allclose(
            painted[:, :edge].reshape(-1, 3), expected[1][None].repeat(HEIGHT * edge, 0), atol=1.5
        )
        np.testing.assert_allclose(painted[:, edge:].reshape(-1, 3)[0], expected[0], atol=1.5)
    with pytest.raises(VideoError, match="has 32 cells, too few for 33 clusters"):
        ClusterView(encoded=encoded(halves(1)), clusters=33)


def test_similarity_is_bright_where_the_points_part_is() -> None:
    view = SimilarityView(encoded=encoded(halves()), spots=[Spot(x=10, y=30), Spot(x=120, y=30, seconds=0.5)])
    assert view.moments == [0, 5]
    pictures = panels(view, 3)
    for _, first, second in pictures:
        left, right = (slice(None), slice(4, 12)), (slice(None), slice(-12, -4))
        assert first[left].mean() > first[right].mean() + 60
        assert second[right].mean() > second[left].mean() + 60
    marked = [(panel[30, 10] == (0, 255, 255)).all() for panel, _, _ in pictures]
    assert marked == [True] + 11 * [False], "the cross is in the frame that was asked for"
    assert [p["frame"] for p in view.summary()["points"]] == [0, 5]
    captions = [picture.caption for picture in view.pictures()]
    assert captions[0] == "0.00 s: point 10,30" and captions[1] == "0.10 s"


def test_spots_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="outside of the image"):
        SimilarityView(encoded=encoded(halves()), spots=[Spot(x=129, y=3)])
    with pytest.raises(VideoError, match="no frame at 1.2 s"):
        SimilarityView(encoded=encoded(halves()), spots=[Spot(x=1, y=3, seconds=1.2)])


class Imagined:
    """In place of a reconstructor: says which frames it was given."""

    def encode(self, frame: npt.NDArray[Any]) -> int:
        return int(frame[64, 64, 0]) - 100

    def reconstruct(self, sources: list[int], target: npt.NDArray[Any], gap: int) -> npt.NDArray[Any]:
        self.seen.append((sources, self.encode(target), gap))
        return np.full_like(target, 7)

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], int, int]] = []


def test_four_frames_before_the_gap_reconstruct_one() -> None:
    imagined = Imagined()
    preprocess = Preprocess(height=128, width=128, policy="letterbox")
    visible = choose_visible(ROWS, COLS, 0.05)
    clip = encoded(halves(), starts=[8])
    view = ReconstructionView(
        encoded=clip, reconstructor=imagined, visible=visible, preprocess=preprocess, gap=2  # type: ignore[arg-type]
    )  # fmt: skip
    pictures = panels(view, 4)
    assert imagined.seen == [([0, 1, 2, 3], 5, 2), ([1, 2, 3, 4], 6, 2), ([2, 3, 4, 5], 7, 2)], "not across the reset"
    assert view.count == len(pictures) == 3
    source, shown, image, target = pictures[0]
    assert source.shape == (64, 128, 3), "without padding"
    assert (source == 103).all() and (image == 7).all() and (target == 105).all()
    assert set(np.unique(shown)) <= {105, 110}
    assert view.summary()["visible_patches"] == len(visible) == 3 and view.summary()["patches"] == 64
    with pytest.raises(ClipTooShort, match="at least 9 frames without a reset"):
        ReconstructionView(
            encoded=clip, reconstructor=imagined, visible=visible, preprocess=preprocess, gap=5  # type: ignore[arg-type]
        )  # fmt: skip


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    view = PCAView(encoded=encoded(halves(), size=(720, 1440)))
    told: list[str] = []

    def progress(pictures: Iterable[Any], text: str) -> Iterable[Any]:
        told.append(text)
        return pictures

    write_view(view, tmp_path, 10.0, 12, progress)
    film = list(read_frames(tmp_path / "pca.mp4"))
    assert told == ["PCA"] and len(film) == 12 and film[0].shape == (PANEL // 2, 2 * PANEL + 4, 3)
    sheet = cv2.imread(str(tmp_path / "pca.png"))
    assert sheet is not None and sheet.shape[1] < 1400 and sheet.std() > 20


def test_features_are_kept_on_the_disk() -> None:
    """Memory does not grow with the clip."""
    random = np.random.default_rng(0)
    peaks = []
    for frames in (20, 200):
        with tempfile.TemporaryFile() as file:
            stored = StoredFeatures(file)
            tracemalloc.start()
            for _ in range(frames):
                stored.append(random.normal(size=(16, 16, 64)).astype(np.float32))
            array = stored.array()
            total = sum(float(features.astype(np.float32).mean()) for features in array)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert array.shape == (frames, 16, 16, 64) and np.isfinite(total)
    assert peaks[1] < 1.5 * peaks[0]


def test_stored_features_are_those_given() -> None:
    given = np.array([[[1.5, -2.0, 1e6, -1e6]]], np.float32)
    with tempfile.TemporaryFile() as file:
        stored = StoredFeatures(file)
        stored.append(given)
        assert stored.array().tolist() == [[[[1.5, -2.0, 65504.0, -65504.0]]]]
        with pytest.raises(ValueError, match="expected features of shape"):
            stored.append(np.zeros((2, 1, 4), np.float32))

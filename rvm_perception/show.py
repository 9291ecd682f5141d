"""What `rvm show` makes of a clip and its features: for each way of looking a video and a contact sheet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.clustering import fit_clusters
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_core.reconstruction import SOURCES, Reconstructor, hide_patches
from rvm_core.similarity import cosine_similarity, feature_at, heat_colors
from rvm_core.tracking.pixels import point_query
from rvm_core.visualize import RunningPCA, contact_sheet, fit_pca, overlay, sample_cells, side_by_side
from rvm_perception.show_clip import EncodedClip, Frame
from rvm_perception.video import VideoError, write_video

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

PANEL = 640
"""Longest side of a panel of the films, pixels; larger images are made smaller."""

_STILLS = 8
_STILL_WIDTH = 640
_HEAT_PERCENTILE = 5.0
"""Of the similarities of the clip's cells; a heat map is black up to the middle between it and 1."""
_MARK = (0, 255, 255)

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iteration over frames and its description, as tqdm does."""


class ClipTooShort(VideoError):
    """There are not enough frames to reconstruct one."""


class Picture(NamedTuple):
    """One picture of a film."""

    seconds: float
    image: UInt8Array
    caption: str


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place in a recording."""

    x: float
    """Pixels."""
    y: float
    seconds: float | None = None
    """When; None: at the start of what is shown."""

    def __str__(self) -> str:
        return f"{self.x:g},{self.y:g}" + ("" if self.seconds is None else f"@{self.seconds:g}")


class View(Protocol):
    """A way of looking."""

    name: str
    """Of its files."""
    description: str
    """What a progress bar says."""
    moments: Sequence[int]
    """Numbers of pictures that the contact sheet must show, beside those at equal steps."""

    def pictures(self) -> Iterator[Picture]:
        """The film, picture by picture."""

    def summary(self) -> dict[str, Any]:
        """What decided how the pictures look, for summary.json."""


def write_view(view: View, folder: Path, rate: float, frames: int, progress: Progress) -> None:
    """Writes <name>.mp4 and <name>.png. No more than a few small pictures are held."""
    wanted = {*view.moments, *np.linspace(0, frames - 1, _STILLS).round().astype(int).tolist()}
    stills: list[tuple[UInt8Array, str]] = []

    def film() -> Iterator[tuple[int, UInt8Array]]:
        first, last = None, -1
        for number, picture in enumerate(progress(view.pictures(), view.description)):
            if number in wanted:
                stills.append((_fitted(picture.image, _STILL_WIDTH), picture.caption))
            first = picture.seconds if first is None else first
            last = max(last + 1, round((picture.seconds - first) * 1000))
            yield last, picture.image

    write_video(folder / f"{view.name}.mp4", film(), rate=rate)
    sheet = contact_sheet([image for image, _ in stills], 2, [caption for _, caption in stills])
    encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1]
    (folder / f"{view.name}.png").write_bytes(encoded.tobytes())


@dataclass(kw_only=True)
class PCAView:
    """Three principal components as red, green and blue: of the whole clip, or as a stream has them."""

    encoded: EncodedClip
    running: bool = False
    name: str = field(default="pca", init=False)
    description: str = field(default="PCA", init=False)
    moments: Sequence[int] = field(default=(), init=False)

    def pictures(self) -> Iterator[Picture]:
        valid = self.encoded.frame_map.valid_cells()
        if self.running:
            pca = RunningPCA()

            def paint(features: Float32Array) -> UInt8Array:
                pca.update(features, valid)
                return pca.color(features)
        else:
            paint = fit_pca(self.encoded.features, valid).color
        return _painted(self.encoded, paint)

    def summary(self) -> dict[str, Any]:
        return {"basis": "running" if self.running else "of the whole clip"}


@dataclass(kw_only=True)
class ClusterView:
    """Clusters of the features of the whole clip. Raises `VideoError` at construction for a clip with too few cells."""

    encoded: EncodedClip
    clusters: int = 5
    seed: int = 0
    name: str = field(default="kmeans", init=False)
    description: str = field(default="k-means", init=False)
    moments: Sequence[int] = field(default=(), init=False)

    def __post_init__(self) -> None:
        vectors = _sample(self.encoded)
        if len(vectors) < self.clusters:
            name = self.encoded.clip.name
            raise VideoError(f"{name} has {len(vectors)} cells, too few for {self.clusters} clusters")
        self._fitted = fit_clusters(vectors, self.clusters, seed=self.seed)
        counts = np.bincount(self._fitted.assign(vectors), minlength=self.clusters)
        self._shares = [round(float(share), 4) for share in counts / len(vectors)]

    def pictures(self) -> Iterator[Picture]:
        return _painted(self.encoded, self._fitted.color, smooth=False)

    def summary(self) -> dict[str, Any]:
        return {"clusters": self.clusters, "seed": self.seed, "shares": self._shares}


@dataclass(kw_only=True)
class SimilarityView:
    """How similar every place is to given ones: a heat map for each.

    Raises `VideoError` or `ValueError` at construction for a spot outside of the clip or of its images.
    """

    encoded: EncodedClip
    spots: Sequence[Spot]
    name: str = field(default="similarity", init=False)
    description: str = field(default="similarity", init=False)
    moments: Sequence[int] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self.moments = [self.encoded.frame_at(spot.seconds) for spot in self.spots]
        self._vectors = []
        for spot, number in zip(self.spots, self.moments, strict=True):
            on_grid = point_query(1, spot.x, spot.y, self.encoded.frame_map)
            self._vectors.append(feature_at(self.encoded.features[number], on_grid.x, on_grid.y))
        sample = _sample(self.encoded)
        least = [np.percentile(cosine_similarity(sample, vector), _HEAT_PERCENTILE) for vector in self._vectors]
        self._lows = [(float(value) + 1) / 2 for value in least]

    def pictures(self) -> Iterator[Picture]:
        for number, (frame, features) in enumerate(self.encoded.frames()):
            image, affine = _panel(frame.image, self.encoded.frame_map)
            panels = [image.copy()]
            for spot, at, vector, low in zip(self.spots, self.moments, self._vectors, self._lows, strict=True):
                heat = heat_colors(cosine_similarity(features, vector), low, 1.0)
                painted = overlay(image, heat, affine, alpha=0.75)
                if number == at:
                    _mark(panels[0], spot, frame.image)
                    _mark(painted, spot, frame.image)
                panels.append(painted)
            here = ", ".join(f"point {spot.x:g},{spot.y:g}" for spot, at in zip(self.spots, self.moments, strict=True)
                             if at == number)  # fmt: skip
            yield Picture(frame.seconds, side_by_side(panels), f"{frame.seconds:.2f} s" + (here and f": {here}"))

    def summary(self) -> dict[str, Any]:
        return {
            "points": [
                {"x": spot.x, "y": spot.y, "frame": at, "seconds": self.encoded.seconds[at], "black_below": low}
                for spot, at, low in zip(self.spots, self.moments, self._lows, strict=True)
            ]
        }


@dataclass(kw_only=True)
class ReconstructionView:
    """Frames as the decoder imagines them from four earlier frames and a few patches, as in pretraining.

    From left to right: the last source frame, what is shown of the target, the reconstruction, the target. Raises
    `ClipTooShort` at construction.
    """

    encoded: EncodedClip
    reconstructor: Reconstructor
    visible: npt.NDArray[np.int64]
    preprocess: Preprocess
    gap: int
    """Frames from the last source to the target."""
    name: str = field(default="reconstruction", init=False)
    description: str = field(default="reconstruction", init=False)
    moments: Sequence[int] = field(default=(), init=False)
    _errors: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.count:
            name, frames = self.encoded.clip.name, len(self.encoded.seconds)
            raise ClipTooShort(
                f"with a gap of {self.gap} frames it needs at least {self.before + 1} frames without a reset, and "
                f"{name} has {frames} here; a smaller --gap needs fewer"
            )

    @property
    def before(self) -> int:
        """How many frames there are before the first target."""
        return self.gap + SOURCES - 1

    @property
    def count(self) -> int:
        """How many pictures there are."""
        ends = [*self.encoded.starts[1:], len(self.encoded.seconds)]
        runs = (end - start for start, end in zip(self.encoded.starts, ends, strict=True))
        return sum(max(0, run - self.before) for run in runs)

    def pictures(self) -> Iterator[Picture]:
        self._errors.clear()
        past: deque[tuple[Frame, UInt8Array, Any]] = deque(maxlen=self.before)
        for frame in self.encoded.clip.frames():
            if frame.starts:
                past.clear()
            prepared = self.preprocess(frame.image)
            if len(past) == self.before:
                sources = [past[i] for i in range(SOURCES)]
                image = self.reconstructor.reconstruct([tokens for _, _, tokens in sources], prepared, self.gap)
                yield self._picture(frame, prepared, image, sources[-1][1], sources[-1][0].seconds)
            past.append((frame, prepared, self.reconstructor.encode(prepared)))

    def summary(self) -> dict[str, Any]:
        patches = self.preprocess.map(1, 1).rows * self.preprocess.map(1, 1).cols
        error = float(np.mean(self._errors)) if self._errors else None
        return {
            "gap_frames": self.gap,
            "source_frames": SOURCES,
            "visible_patches": len(self.visible),
            "patches": patches,
            "mean_squared_error": error,
        }

    def _picture(
        self, frame: Frame, target: UInt8Array, image: UInt8Array, source: UInt8Array, source_seconds: float
    ) -> Picture:
        seen = self.preprocess.map(*frame.image.shape[:2]).target_box.slices
        difference = (image[seen].astype(np.float32) - target[seen]) / 255
        self._errors.append(float((difference**2).mean()))
        panels = [source[seen], hide_patches(target, self.visible)[seen], image[seen], target[seen]]
        caption = f"{frame.seconds:.2f} s, source {frame.seconds - source_seconds:.2f} s before"
        return Picture(frame.seconds, side_by_side(panels), caption)


def _painted(
    encoded: EncodedClip, paint: Callable[[Float32Array], UInt8Array], *, smooth: bool = True
) -> Iterator[Picture]:
    """Each frame beside itself with the colours of its cells."""
    for frame, features in encoded.frames():
        image, affine = _panel(frame.image, encoded.frame_map)
        painted = overlay(image, paint(features), affine, alpha=0.8, smooth=smooth)
        yield Picture(frame.seconds, side_by_side([image, painted]), f"{frame.seconds:.2f} s")


def _panel(image: UInt8Array, frame_map: FrameMap) -> tuple[UInt8Array, npt.NDArray[np.float64]]:
    """An image no larger than a panel, and the affine from grid coordinates to its pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, PANEL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    fitted = image if scale == 1 else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return fitted, frame_map.grid_to_image * np.array([[size[0] / width], [size[1] / height]])


def _fitted(image: UInt8Array, width: int) -> UInt8Array:
    """A copy no wider than that."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    if image.shape[1] <= width:
        return image.copy()
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _mark(panel: UInt8Array, spot: Spot, image: UInt8Array) -> None:
    """Draws a cross into a panel at a spot in pixels of the image."""
    scale = panel.shape[1] / image.shape[1]
    at = round(spot.x * scale - 0.5), round(spot.y * scale - 0.5)
    cv2.drawMarker(panel, at, (0, 0, 0), cv2.MARKER_CROSS, 18, 4, cv2.LINE_AA)
    cv2.drawMarker(panel, at, _MARK, cv2.MARKER_CROSS, 16, 2, cv2.LINE_AA)


def _sample(encoded: EncodedClip) -> Float32Array:
    """Features (n, D) of cells spread over the clip, without padding."""
    rows, cols, width = encoded.features.shape[1:]
    inside = np.flatnonzero(encoded.frame_map.valid_cells())
    number, cell = sample_cells(len(encoded.features), inside)
    return np.asarray(encoded.features.reshape(-1, rows * cols, width)[number, cell], np.float32)

"""Pictures of feature maps: PCA colours that do not flicker, overlays on the source image, contact sheets.

Arrays in, images out. Images are uint8 (H, W, 3); feature maps are (rows, cols, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

MAX_TURN = 5.0
"""Degrees by which a direction of a running PCA turns from one frame to the next at most: where the picture suddenly
changes, its colours get there in under a second instead of at once."""

COMPONENTS = 3
"""Principal components shown, one for each of red, green and blue."""

PERCENTILES = (2.0, 98.0)
"""Share of the cells, in percent, at which a colour channel is 0 and 255; cells beyond are clipped."""

MAX_CELLS_TO_FIT = 8192
"""As many cells of a long clip stand for all of them."""

_GREY = 127.5
# A component that varies this much less than the first is shown as nearly constant instead of as amplified rounding.
_LEAST_RELATIVE_RANGE = 1e-3
_TINY = 1e-12
_CAPTION_HEIGHT = 20
_CAPTION_COLOR = (32, 32, 32)
_WHITE = 255


@dataclass(frozen=True, kw_only=True)
class PCAColors:
    """A fixed map from feature vectors to colours: the same vector always gets the same colour."""

    mean: Float32Array
    """(D,)"""
    basis: Float32Array
    """(D, K) orthonormal columns, K = min(D, 3), one for each colour channel in order."""
    low: Float32Array
    """(K,) projection shown as 0."""
    high: Float32Array
    """(K,) projection shown as 255."""

    def color(self, features: FloatArray) -> UInt8Array:
        """(..., D) -> uint8 (..., 3). A component that does not vary, or does not exist as D < 3, is shown as grey."""
        if features.shape[-1] != len(self.mean):
            raise ValueError(f"expected features of {len(self.mean)} channels, got shape {features.shape}")
        projected = (features.astype(np.float32, copy=False) - self.mean) @ self.basis
        span = self.high - self.low
        least = max(_LEAST_RELATIVE_RANGE * float(span.max(initial=0.0)), _TINY)
        centred = (projected - (self.low + self.high) / 2) / np.maximum(span, least)
        colors = np.full((*features.shape[:-1], COMPONENTS), _GREY, np.float32)
        colors[..., : centred.shape[-1]] += centred * 255
        return np.clip(colors + 0.5, 0, 255).astype(np.uint8)


class RunningPCA:
    """PCA colours of a stream of feature maps, updated frame by frame without flicker.

    Keeps a mean, three directions and a colour range, each a running average over about 1 / (1 - decay) frames. The
    directions are those in which the cells of one frame differ most from each other; what all cells of a frame share
    moves only the mean. They follow the decayed covariance by one step of orthogonal iteration a frame: started from
    where they are, orthonormalised in order, so they turn a little at a time and cannot swap or change sign between
    frames. The covariance itself (D x D) is never formed; a frame costs O(rows * cols * D).

    Args:
        decay: weight of the past after each frame, in [0, 1). Smaller follows faster and flickers more. The first
            frames count more, so that the start is forgotten quickly.
    """

    def __init__(self, *, decay: float = 0.97) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be at least 0 and under 1, got {decay}")
        self._decay = decay
        self._updates = 0
        self._variances = np.zeros(0, np.float32)
        self._colors: PCAColors | None = None

    def update(self, features: FloatArray, valid: BoolArray | None = None) -> None:
        """Takes one feature map (rows, cols, D) into account.

        valid (rows, cols), true where a cell is not padding; None: all are. A map without valid cells changes nothing.
        Raises `ValueError` if a value is not finite or D differs from that of the maps before.
        """
        cells = _cells(features, valid)
        if not len(cells):
            return
        if self._colors is None:
            mean = cells.mean(axis=0)
            basis, self._variances = _principal_directions(cells - mean)
            self._colors = _with_range(mean, basis, cells)
        else:
            if cells.shape[1] != len(self._colors.mean):
                raise ValueError(f"expected features of {len(self._colors.mean)} channels, got {cells.shape[1]}")
            weight = max(1 - self._decay, 1 / (self._updates + 1))
            self._colors = self._step(self._colors, cells, np.float32(weight))
        self._updates += 1

    @property
    def colors(self) -> PCAColors:
        """The map from features to colours as it is after the last `update`. Raises `ValueError` before the first."""
        if self._colors is None:
            raise ValueError("no colours yet: call update(features) first")
        return self._colors

    def color(self, features: FloatArray) -> UInt8Array:
        """(rows, cols, D) -> uint8 (rows, cols, 3). Raises `ValueError` before the first update, or if D differs."""
        return self.colors.color(features)

    def _step(self, old: PCAColors, cells: Float32Array, weight: np.float32) -> PCAColors:
        frame_mean = cells.mean(axis=0)
        centred = cells - frame_mean
        # The decayed covariance times the old basis: its past is known only within the basis, as variances.
        image = (weight / len(cells)) * (centred.T @ (centred @ old.basis))
        # The floor keeps a direction without variance where it is; orthonormalisation would choose one at random.
        floor = 1e-6 * self._variances.max() + _TINY
        image += old.basis * ((1 - weight) * self._variances + floor)
        basis = _turned(old.basis, np.linalg.qr(image)[0])
        now = ((centred @ basis) ** 2).mean(axis=0)
        before = self._variances @ (old.basis.T @ basis) ** 2
        self._variances = weight * now + (1 - weight) * before
        new = _with_range(old.mean + weight * (frame_mean - old.mean), basis, cells)
        return replace(new, low=old.low + weight * (new.low - old.low), high=old.high + weight * (new.high - old.high))


def fit_pca(features: FloatArray, valid: BoolArray | None = None) -> PCAColors:
    """The colours of a whole clip (T, rows, cols, D) at once, for stills: every frame counts the same.

    As in `RunningPCA`, the directions are those in which the cells of one frame differ, and each is scaled by its own
    range, which whitens them; mean and range are the clip's.
    valid (rows, cols), true where a cell is not padding; None: all are. Of long clips a sample of the cells
    is taken; features may be a memory-mapped file, of which no more than a frame and the sample are held.
    Raises `ValueError` if a value is not finite or there is no valid cell.
    """
    if features.ndim != 4:
        raise ValueError(f"expected features (T, rows, cols, D), got shape {features.shape}")
    frames = features.reshape(len(features), -1, features.shape[-1])
    inside = np.arange(frames.shape[1]) if valid is None else np.flatnonzero(valid)
    number, cell = sample_cells(len(frames), inside)
    if not len(number):
        raise ValueError(f"expected at least one valid cell, got none in shape {features.shape}")
    frame_means = np.stack([frame[inside].mean(axis=0, dtype=np.float32) for frame in frames])
    cells = _cells(frames[number, cell])
    basis, _ = _principal_directions(cells - frame_means[number])
    return _with_range(frame_means.mean(axis=0), basis, cells)


def sample_cells(
    frames: int, inside: npt.NDArray[np.intp], most: int = MAX_CELLS_TO_FIT
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Which cells of a clip to fit to: all of them, or `most` spread evenly over its frames; always the same ones.

    inside (n,): the cells of a frame that may be taken. Returns for each taken cell the frame it is of and which of the
    frame's cells it is, both (m,), frame by frame.
    """
    count = frames * len(inside)
    if count <= most:
        chosen = np.arange(count)
    else:
        # One at random in each of `most` equal parts: at equal steps it could be the same cell in every frame.
        random = np.random.default_rng(0)
        chosen = ((np.arange(most) + random.random(most)) * (count / most)).astype(np.intp)
    number, place = np.divmod(chosen, max(1, len(inside)))
    return number, inside[place]


def overlay(
    image: UInt8Array, colors: UInt8Array, grid_to_image: npt.ArrayLike, alpha: float = 0.6, *, smooth: bool = True
) -> UInt8Array:
    """Draws the colours of a grid over the image it was computed from.

    Args:
        image: RGB uint8 (H, W, 3).
        colors: uint8 (rows, cols, 3).
        grid_to_image: (2, 3) affine A from grid coordinates to pixels of the image, (x, y) = A @ (col, row, 1);
            centres of cells and pixels at .5.
        alpha: weight of the colours, 0 to 1.
        smooth: whether colours are interpolated between the cells' centres; otherwise a cell has one colour.

    Returns uint8 (H, W, 3). Pixels that no cell covers keep the image's colour; cells outside the image are not seen.
    Raises `ValueError` for an affine without inverse.
    """
    affine = np.asarray(grid_to_image, np.float64).reshape(2, 3)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:, :2])) < _TINY:
        raise ValueError(f"expected a finite, invertible grid_to_image, got {affine.tolist()}")
    # cv2 has pixel centres at integers, so a half is added before and taken away after the map.
    shifted = affine.copy()
    shifted[:, 2] += affine[:, :2] @ (0.5, 0.5) - 0.5
    size = (image.shape[1], image.shape[0])
    interpolation = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    painted = cv2.warpAffine(colors, shifted, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    covered = cv2.warpAffine(np.ones(colors.shape[:2], np.uint8), shifted, size, flags=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(image, 1 - alpha, painted, alpha, 0)
    return np.where(covered[..., None] != 0, blended, image)


def side_by_side(images: Sequence[UInt8Array], gap: int = 4) -> UInt8Array:
    """Images (H_i, W_i, 3) in one row, each scaled to the height of the first, with a white gap in pixels between."""
    if not images:
        raise ValueError("expected at least one image, got none")
    height = images[0].shape[0]
    parts: list[UInt8Array] = []
    for image in images:
        if parts:
            parts.append(np.full((height, gap, 3), _WHITE, np.uint8))
        parts.append(_scaled(image, height))
    return np.concatenate(parts, axis=1)


def contact_sheet(images: Sequence[UInt8Array], columns: int, captions: Sequence[str] = (), gap: int = 4) -> UInt8Array:
    """Images (H_i, W_i, 3) in rows of `columns`, row by row, on white, with a small caption under each.

    captions: none, or one for each image; ASCII. Every image gets a field of the size of the largest, and starts in its
    upper left corner. Returns uint8 (H, W, 3).
    """
    if not images or columns < 1:
        raise ValueError(f"expected at least one image and one column, got {len(images)} and {columns}")
    if captions and len(captions) != len(images):
        raise ValueError(f"expected no captions or one for each of {len(images)} images, got {len(captions)}")
    columns = min(columns, len(images))
    height = max(image.shape[0] for image in images) + (_CAPTION_HEIGHT if captions else 0) + gap
    width = max(image.shape[1] for image in images) + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + gap, columns * width + gap, 3), _WHITE, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * height, gap + index % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
        if captions:
            at = (left + 2, top + height - gap - 6)
            cv2.putText(sheet, captions[index], at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _CAPTION_COLOR, 1, cv2.LINE_AA)
    return sheet


def _cells(features: FloatArray, valid: BoolArray | None = None) -> Float32Array:
    """(..., D) -> (n, D), the valid ones."""
    cells = features.reshape(-1, features.shape[-1])
    if valid is not None:
        cells = cells[valid.reshape(-1)]
    cells = cells.astype(np.float32, copy=False)
    if not np.isfinite(cells.sum(dtype=np.float64)):
        raise ValueError("expected finite features, got NaN or infinity")
    return cells


def _principal_directions(centred: Float32Array) -> tuple[Float32Array, Float32Array]:
    """(n, D) -> orthonormal (D, K) with K = min(D, 3), and the variances along them, falling."""
    count, width = centred.shape
    if count < width:  # the smaller of the two Gram matrices has the same spectrum
        values, vectors = np.linalg.eigh((centred @ centred.T / count).astype(np.float64))
        directions = centred.T @ vectors[:, : -COMPONENTS - 1 : -1]
    else:
        values, vectors = np.linalg.eigh((centred.T @ centred / count).astype(np.float64))
        directions = vectors[:, : -COMPONENTS - 1 : -1]
    components = min(COMPONENTS, width)
    columns = np.zeros((width, components))
    columns[:, : directions.shape[1]] = directions[:, :components]
    basis = np.linalg.qr(columns)[0]  # completes missing and empty directions to an orthonormal basis
    basis *= np.where(basis[np.abs(basis).argmax(axis=0), np.arange(components)] < 0, -1.0, 1.0)
    variances = np.zeros(components, np.float32)
    known = min(components, len(values))
    variances[:known] = np.maximum(values[::-1][:known], 0.0)
    return basis.astype(np.float32), variances


def _turned(old: Float32Array, new: Float32Array) -> Float32Array:
    """The orthonormal columns of `new` (D, K), each on the side of the old one, or what lies `MAX_TURN` on the way."""
    cosines = (old * new).sum(axis=0)
    new = new * np.where(cosines < 0, np.float32(-1), np.float32(1))
    turn = float(np.arccos(np.clip(np.abs(cosines).min(), 0, 1)))
    most = np.radians(MAX_TURN)
    if turn <= most:
        return new
    # On the line between two unit vectors, where the angle to the first is `most`.
    share = np.float32(np.sin(most) / (np.sin(most) + np.sin(turn - most)))
    left, _, right = np.linalg.svd(old + share * (new - old), full_matrices=False)
    # The orthonormal columns nearest to those on the way.
    return np.asarray(left @ right, np.float32)


def _with_range(mean: Float32Array, basis: Float32Array, cells: Float32Array) -> PCAColors:
    """Colours that span the given cells (n, D)."""
    low, high = np.percentile((cells - mean) @ basis, PERCENTILES, axis=0)
    return PCAColors(mean=mean, basis=basis, low=low.astype(np.float32), high=high.astype(np.float32))


def _scaled(image: UInt8Array, height: int) -> UInt8Array:
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    shrinks = height < image.shape[0]
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
    )

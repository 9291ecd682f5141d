"""From a camera image to the engine's input size, and the exact map from grid cells back to image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.config import PATCH_SIZE

ResizePolicy = Literal["letterbox", "center_crop", "stretch"]
"""How an image of another aspect ratio is fitted: whole image with black bars, largest centred part, or distorted."""

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A rectangle of whole pixels: it covers [left, left + width] x [top, top + height]."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rectangle in an array that starts with (rows, columns)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, kw_only=True)
class FrameMap:
    """Where each cell of the token grid lies in the source image.

    Coordinates are (x, y) or (col, row): right, down, centres of pixels and cells at .5. `source_box` of the source
    image was resized to fill `target_box` of the target image; the rest of the target is padding.
    """

    source_height: int
    """Height of the camera image, pixels."""
    source_width: int
    """Width of the camera image, pixels."""
    target_height: int
    """Height of the engine's input, pixels; a multiple of `patch_size`."""
    target_width: int
    """Width of the engine's input, pixels; a multiple of `patch_size`."""
    source_box: Box
    """The part of the source image that is seen."""
    target_box: Box
    """The part of the target image that shows it."""
    patch_size: int = PATCH_SIZE
    """Pixels of the target along each side of a cell."""

    @property
    def rows(self) -> int:
        """Height of the grid in cells."""
        return self.target_height // self.patch_size

    @property
    def cols(self) -> int:
        """Width of the grid in cells."""
        return self.target_width // self.patch_size

    @cached_property
    def grid_to_image(self) -> Float64Array:
        """Read-only (2, 3) affine A with (x, y) = A @ (col, row, 1), from grid coordinates to source pixels."""
        source, target = self.source_box, self.target_box
        scale_x, scale_y = source.width / target.width, source.height / target.height
        affine = np.array(
            [
                [self.patch_size * scale_x, 0.0, source.left - target.left * scale_x],
                [0.0, self.patch_size * scale_y, source.top - target.top * scale_y],
            ]
        )
        affine.flags.writeable = False
        return affine

    def grid_to_pixels(self, cells: npt.ArrayLike) -> Float64Array:
        """Grid coordinates (..., 2) as (col, row) to source pixels (..., 2) as (x, y)."""
        affine = self.grid_to_image
        return np.asarray(cells, np.float64) * affine.diagonal() + affine[:, 2]

    def pixels_to_grid(self, pixels: npt.ArrayLike) -> Float64Array:
        """Source pixels (..., 2) as (x, y) to grid coordinates (..., 2) as (col, row)."""
        affine = self.grid_to_image
        return (np.asarray(pixels, np.float64) - affine[:, 2]) / affine.diagonal()

    def valid_cells(self) -> npt.NDArray[np.bool_]:
        """Mask (rows, cols), true where the cell's centre lies in the source image, false where it is padding.

        All false if the image is so long and thin that it covers no cell's centre.
        """
        box = self.target_box
        # Twice the centre, so that the comparison is exact for odd patch sizes too.
        x = (2 * np.arange(self.cols) + 1) * self.patch_size
        y = (2 * np.arange(self.rows) + 1) * self.patch_size
        in_x = (x >= 2 * box.left) & (x <= 2 * (box.left + box.width))
        in_y = (y >= 2 * box.top) & (y <= 2 * (box.top + box.height))
        return in_y[:, None] & in_x[None, :]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Fits camera images to one size. A value without state: the same image always gives the same result.

    Raises `ValueError` at construction if a size is not a positive multiple of the patch size or the policy is unknown.
    """

    height: int
    """Height of the result, pixels."""
    width: int
    """Width of the result, pixels."""
    policy: ResizePolicy
    """What to do where the aspect ratios differ."""

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            if size <= 0 or size % PATCH_SIZE:
                lower = max(PATCH_SIZE, size // PATCH_SIZE * PATCH_SIZE)
                raise ValueError(
                    f"{name} must be a positive multiple of {PATCH_SIZE}, got {size}; use for example {lower}"
                )
        if self.policy not in get_args(ResizePolicy):
            raise ValueError(f"policy must be one of {', '.join(get_args(ResizePolicy))}, got {self.policy!r}")

    def map(self, source_height: int, source_width: int) -> FrameMap:
        """Geometry for source images of this size in pixels. Raises `ValueError` if a size is not positive."""
        if source_height <= 0 or source_width <= 0:
            raise ValueError(f"expected an image of at least 1x1 pixels, got {source_width}x{source_height}")
        source_box = Box(0, 0, source_width, source_height)
        target_box = Box(0, 0, self.width, self.height)
        if self.policy == "letterbox":
            target_box = _largest_centred(target_box, source_width, source_height)
        elif self.policy == "center_crop":
            source_box = _largest_centred(source_box, self.width, self.height)
        # Exact halvings have a vectorised routine, four times as fast at 1080p to 256x256 as one area average. So that
        # odd sizes have it too, a margin of less than one target pixel is left out; the map takes that into account.
        source_box = _trimmed(source_box, 2 ** _halvings(source_box, target_box))
        return FrameMap(
            source_height=source_height,
            source_width=source_width,
            target_height=self.height,
            target_width=self.width,
            source_box=source_box,
            target_box=target_box,
        )

    def __call__(self, image: UInt8Array, out: UInt8Array | None = None) -> UInt8Array:
        """Image (H, W, 3) uint8 RGB, any strides, to (height, width, 3) uint8 RGB, contiguous.

        The result is a new array, or `out` (same shape and type, contiguous) where that is given. Padding is black.
        Raises `ValueError` if `image` or `out` has another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        shape = (self.height, self.width, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"expected a contiguous out {shape} of uint8, got {out.shape} of {out.dtype}")
        frame_map = self.map(image.shape[0], image.shape[1])
        source, target = frame_map.source_box, frame_map.target_box
        if (target.height, target.width) != (self.height, self.width):
            out.fill(0)
        out[target.slices] = _resize(
            image[source.slices], width=target.width, height=target.height, halvings=_halvings(source, target)
        )
        return out


def _largest_centred(box: Box, width: int, height: int) -> Box:
    """Largest part of `box`, at its centre, with the aspect ratio of `width` to `height`, to the nearest pixel."""
    if box.width * height > box.height * width:
        fitted_width, fitted_height = max(1, round(box.height * width / height)), box.height
    else:
        fitted_width, fitted_height = box.width, max(1, round(box.width * height / width))
    left, top = (box.width - fitted_width) // 2, (box.height - fitted_height) // 2
    return Box(box.left + left, box.top + top, fitted_width, fitted_height)


def _halvings(source: Box, target: Box) -> int:
    """How often both sides of `source` can be halved before one is smaller than in `target`."""
    return max(0, min(source.width // target.width, source.height // target.height).bit_length() - 1)


def _trimmed(box: Box, multiple: int) -> Box:
    """The centred part of `box` whose sides are multiples of `multiple`."""
    extra_x, extra_y = box.width % multiple, box.height % multiple
    return Box(box.left + extra_x // 2, box.top + extra_y // 2, box.width - extra_x, box.height - extra_y)


def _resize(image: UInt8Array, *, width: int, height: int, halvings: int) -> UInt8Array:
    """Resize to (height, width, 3) with half-pixel centres: area average where it shrinks, bilinear where it grows."""
    for _ in range(halvings):
        image = _cv2_resize(image, image.shape[1] // 2, image.shape[0] // 2, cv2.INTER_AREA)
    # First the axes that shrink: OpenCV averages areas only if no axis grows in the same call.
    image = _cv2_resize(image, min(width, image.shape[1]), min(height, image.shape[0]), cv2.INTER_AREA)
    return _cv2_resize(image, width, height, cv2.INTER_LINEAR)


def _cv2_resize(image: UInt8Array, width: int, height: int, interpolation: int) -> UInt8Array:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)

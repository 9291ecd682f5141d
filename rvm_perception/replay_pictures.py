"""What a replay's features look like over time: how they change from frame to frame, and a strip of stills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.preprocess import FrameMap, Preprocess
from rvm_core.visualize import contact_sheet, fit_pca
from rvm_perception.replay_results import FrameTable, ResultsError
from rvm_perception.replay_summary import CameraSummary
from rvm_perception.video import read_frames

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_STILLS, _COLUMNS, _STILL_WIDTH = 12, 4, 300
_LOW_PERCENTILE = 5.0
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How similar each frame's features are to those of the frame before, T frames; and the strip that was written."""

    median: Float32Array
    """(T,) over the cells, of the cosine; NaN for the first frame of an epoch."""
    low: Float32Array
    """(T,) what all but one in twenty cells exceed, likewise."""
    strip_size: tuple[int, int]
    """(width, height) of the strip, pixels."""


def examine(
    maps: Iterable[Float32Array],
    frames: FrameTable,
    camera: CameraSummary,
    parameters: Mapping[str, Any],
    film: Path | None,
    strip: Path,
) -> Stability:
    """Goes through the feature maps (rows, cols, D) of a camera once, and writes the strip as a PNG.

    parameters: of the node, to know which cells are padding. film: overlay with a picture for each processed frame.
    Raises `ResultsError` if there are more or fewer maps than frames.
    """
    total = len(frames.frame)
    frame_map = _frame_map(camera, parameters)
    valid = None if frame_map is None else frame_map.valid_cells()
    if valid is not None and not valid.any():
        valid = None
    wanted = set(np.linspace(0, total - 1, _STILLS).round().astype(int).tolist())
    stills: list[Float32Array] = []
    median, low = np.full((2, total), np.nan, np.float32)
    before: Float32Array | None = None
    count = 0
    goes_on = frames.goes_on
    for number, features in enumerate(maps):
        count = number + 1
        if count > total:
            break
        if valid is not None and valid.shape != features.shape[:2]:
            raise ResultsError(f"{camera.features} holds maps {features.shape[:2]}, expected {valid.shape}")
        cells = features.reshape(-1, features.shape[-1]) if valid is None else features[valid]
        if before is not None and goes_on[number]:
            cosine = _cosine(cells, before)
            median[number], low[number] = np.median(cosine), np.percentile(cosine, _LOW_PERCENTILE)
        before = cells
        if number in wanted:
            stills.append(features)
    if count != total:
        raise ResultsError(f"{camera.features} does not fit: it should hold {total} feature maps")
    size = _write_strip(strip, stills, sorted(wanted), frames, valid, film)
    return Stability(median=median, low=low, strip_size=size)


def _frame_map(camera: CameraSummary, parameters: Mapping[str, Any]) -> FrameMap | None:
    """Where the cells lie; None where images of several sizes came, so that it was not always the same."""
    if len(camera.image_sizes) != 1:
        return None
    preprocess = Preprocess(height=parameters["height"], width=parameters["width"], policy=parameters["resize_policy"])
    return preprocess.map(*camera.image_sizes[0])


def _cosine(a: Float32Array, b: Float32Array) -> Float32Array:
    """(n, D), (n, D) -> (n,)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("nd,nd->n", a, b) / np.maximum(lengths, _TINY), np.float32)


def _write_strip(
    path: Path,
    stills: list[Float32Array],
    numbers: list[int],
    frames: FrameTable,
    valid: BoolArray | None,
    film: Path | None,
) -> tuple[int, int]:
    colors = fit_pca(np.stack(stills), valid)
    shown = _film_frames(film, set(numbers)) if film is not None else {}
    images, captions = [], []
    for number, features in zip(numbers, stills, strict=True):
        painted = _enlarged(_cropped(colors.color(features), valid))
        above = [_scaled(shown[number])] if number in shown else []
        images.append(np.concatenate([*above, painted]))
        reset = f", {frames.reset[number]}" if frames.reset[number] else ""
        captions.append(f"{frames.seconds[number]:.2f} s{reset}")
    sheet = contact_sheet(images, _COLUMNS, captions)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    return sheet.shape[1], sheet.shape[0]


def _film_frames(film: Path, numbers: set[int]) -> dict[int, UInt8Array]:
    """RGB images of a film by number; those that it does not have are left out."""
    last = max(numbers)
    found = {}
    for number, bgr in enumerate(read_frames(film)):
        if number in numbers:
            found[number] = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        if number >= last:
            break
    return found


def _cropped(colors: UInt8Array, valid: BoolArray | None) -> UInt8Array:
    """Without rows and columns of padding."""
    return colors if valid is None else colors[np.ix_(valid.any(axis=1), valid.any(axis=0))]


def _scaled(image: UInt8Array) -> UInt8Array:
    size = (_STILL_WIDTH, max(1, round(image.shape[0] * _STILL_WIDTH / image.shape[1])))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _enlarged(colors: UInt8Array) -> UInt8Array:
    size = (_STILL_WIDTH, max(1, round(colors.shape[0] * _STILL_WIDTH / colors.shape[1])))
    return np.asarray(cv2.resize(colors, size, interpolation=cv2.INTER_NEAREST), np.uint8)

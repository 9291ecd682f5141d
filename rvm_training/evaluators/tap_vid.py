"""The metrics of TAP-Vid for tracked points, after arXiv 2211.03726: Average Jaccard, position and occlusion accuracy.

T frames of a video, Q queries. Positions are (x, y). Distances are measured as if the image were 256x256 pixels,
whatever its shape. All ratios are of counts over every query and frame of one video; a benchmark's figure is the mean
over its videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

QueryMode = Literal["first", "strided"]
"""first: one query a point, at the first frame it is visible in, and only the frames after that count.
strided: a query at every fifth frame the point is visible in, and all frames but the query's own count."""

THRESHOLDS = (1, 2, 4, 8, 16)
"""A position is right if it is nearer than this, pixels of the 256x256 image."""
RASTER = 256
STRIDE = 5

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class TapVidMetrics:
    """Shares in [0, 1]; NaN where nothing in the video decides, such as positions when no point is ever visible."""

    average_jaccard: float
    """Mean of `jaccard`."""
    position_accuracy: float
    """Mean of `within`: the benchmark's <delta_avg^x."""
    occlusion_accuracy: float
    """Share of frames where occluded or not is said as it is."""
    jaccard: tuple[float, ...]
    """For each threshold, true positives over true positives, false positives and false negatives."""
    within: tuple[float, ...]
    """For each threshold, the share of visible points whose position is right, whatever is said of their visibility."""


def first_queries(visible: BoolArray) -> tuple[IntArray, IntArray]:
    """Queries of mode "first": frames (Q,) and points (Q,), for `visible` (T, P). Points never seen have none."""
    points = np.flatnonzero(visible.any(axis=0))
    return visible[:, points].argmax(axis=0), points


def strided_queries(visible: BoolArray, stride: int = STRIDE) -> tuple[IntArray, IntArray]:
    """Queries of mode "strided": frames (Q,) and points (Q,), for `visible` (T, P)."""
    rows, points = np.nonzero(visible[::stride])
    return rows * stride, points


def evaluated_frames(query_frames: npt.ArrayLike, num_frames: int, query_mode: QueryMode) -> BoolArray:
    """Which frames count for each query: (T, Q)."""
    if query_mode not in get_args(QueryMode):
        raise ValueError(f"expected query mode {' or '.join(get_args(QueryMode))}, got {query_mode!r}")
    queried, frames = np.asarray(query_frames)[None, :], np.arange(num_frames)[:, None]
    return frames > queried if query_mode == "first" else frames != queried


def tap_vid_metrics(
    *,
    query_frames: npt.ArrayLike,
    points: npt.ArrayLike,
    occluded: npt.ArrayLike,
    predicted_points: npt.ArrayLike,
    predicted_occluded: npt.ArrayLike,
    image_size: tuple[int, int],
    query_mode: QueryMode = "first",
) -> TapVidMetrics:
    """The metrics of one video.

    query_frames (Q,) int; points and predicted_points (T, Q, 2) in pixels of an image of `image_size` (height, width);
    occluded and predicted_occluded (T, Q) bool. Where a point is occluded its true position is not looked at. Raises
    `ValueError` for shapes that do not fit.
    """
    truth, guess = np.asarray(points, np.float64), np.asarray(predicted_points, np.float64)
    seen, said_seen = ~np.asarray(occluded, bool), ~np.asarray(predicted_occluded, bool)
    counted = evaluated_frames(query_frames, len(truth), query_mode)
    for name, array, shape in (
        ("points", truth, (*counted.shape, 2)),
        ("predicted_points", guess, (*counted.shape, 2)),
        ("occluded", seen, counted.shape),
        ("predicted_occluded", said_seen, counted.shape),
    ):
        if array.shape != shape:
            raise ValueError(f"expected {name} {shape} for {counted.shape[1]} queries, got {array.shape}")
    height, width = image_size
    offsets = (guess - truth) * (RASTER / width, RASTER / height)
    squared = (offsets**2).sum(axis=2)
    within, jaccard = zip(*(_at(limit, squared, seen, said_seen, counted) for limit in THRESHOLDS), strict=True)
    return TapVidMetrics(
        average_jaccard=float(np.mean(jaccard)),
        position_accuracy=float(np.mean(within)),
        occlusion_accuracy=_ratio(((seen == said_seen) & counted).sum(), counted.sum()),
        jaccard=jaccard,
        within=within,
    )


def mean_metrics(videos: Sequence[TapVidMetrics]) -> TapVidMetrics:
    """The mean over videos of each figure, without videos where it is NaN. Raises `ValueError` if there is no video."""
    if not videos:
        raise ValueError("expected the metrics of at least one video")
    jaccard = [_nanmean([video.jaccard[i] for video in videos]) for i in range(len(THRESHOLDS))]
    within = [_nanmean([video.within[i] for video in videos]) for i in range(len(THRESHOLDS))]
    return TapVidMetrics(
        average_jaccard=_nanmean([video.average_jaccard for video in videos]),
        position_accuracy=_nanmean([video.position_accuracy for video in videos]),
        occlusion_accuracy=_nanmean([video.occlusion_accuracy for video in videos]),
        jaccard=tuple(jaccard),
        within=tuple(within),
    )


def _at(
    limit: float, squared: npt.NDArray[np.float64], seen: BoolArray, said_seen: BoolArray, counted: BoolArray
) -> tuple[float, float]:
    """Position accuracy and Jaccard at one threshold."""
    near = squared < limit**2
    positives = (seen & counted).sum()
    right = (near & seen & counted).sum()
    found = (near & seen & said_seen & counted).sum()
    # Seen elsewhere counts twice, as a false positive and as a false negative: the latter are in `positives`.
    false = (said_seen & (~seen | ~near) & counted).sum()
    return _ratio(right, positives), _ratio(found, positives + false)


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def _nanmean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")

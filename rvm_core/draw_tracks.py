"""Tracks drawn on a frame: points with tails, boxes, segments, each id in a colour of its own.

Arrays in, images out. Images are uint8 (H, W, 3) RGB; positions are pixels, x right, y down, centres at .5. A position
that is not finite is not drawn, one outside of the image as far as it is seen: nothing fails on a number.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.tracking.base import Status
from rvm_core.tracking.pixels import PixelTracks

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Color = tuple[int, int, int]

MASK_ALPHA = 0.5
"""Weight of a segment's colour over the image."""

MOST_POINT_IDS = 64
"""With more points than this their ids would hide the picture, so they are left out."""

_DIAGONAL = 800.0
"""Diagonal in pixels of an image whose lines are one pixel wide."""
_FRACTION_BITS = 3
_DASH = 8.0
_CORNERS = np.array((0, 1, 2, 1, 2, 3, 0, 3, 0, 1))
"""Of (x_min, y_min, x_max, y_max), around and back to the first."""
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4
_GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""2 ** 64 over the golden ratio: its multiples spread evenly however many there are."""


class TrackTails:
    """Where each tracked point was in the last frames. L frames, P points."""

    def __init__(self, length: int = 24) -> None:
        """length: of the tails, in frames."""
        if length < 1:
            raise ValueError(f"expected tails of at least 1 frame, got {length}")
        self._length, self._epoch, self._frames = length, 0, 0
        self._ids = np.zeros(0, np.uint64)
        self._xy = np.zeros((length, 0, 2), np.float32)
        self._visible = np.zeros((length, 0), bool)

    def update(self, tracks: PixelTracks, epoch: int = 0) -> None:
        """Takes the points of the next frame; those that it does not have are forgotten, in a new epoch all before."""
        points = tracks.points
        xy = np.full((self._length, len(points.ids), 2), np.nan, np.float32)
        visible = np.zeros(xy.shape[:2], bool)
        if epoch == self._epoch:
            _, new, old = np.intersect1d(points.ids, self._ids, assume_unique=True, return_indices=True)
            xy[:-1, new], visible[:-1, new] = self._xy[1:, old], self._visible[1:, old]
        xy[-1], visible[-1] = points.xy, points.status == Status.VISIBLE
        self._ids, self._xy, self._visible = points.ids, xy, visible
        self._epoch, self._frames = epoch, self._frames + 1

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """(P,), those of the newest frame."""
        return self._ids

    @property
    def xy(self) -> Float32Array:
        """(L, P, 2), the newest frame last; NaN where there was no such point."""
        return self._xy

    @property
    def drawn(self) -> BoolArray:
        """(L-1, P): whether there is a line from one frame's position to the next one's.

        There is one to where the point is visible, and to where it is not in every second frame, which makes dashes.
        """
        finite = np.isfinite(self._xy[..., 0]) & np.isfinite(self._xy[..., 1])
        even = (np.arange(self._length - 1) + self._frames) % 2 == 0
        drawn: BoolArray = finite[:-1] & finite[1:] & (self._visible[1:] | even[:, None])
        return drawn


def color_of(id: int) -> Color:
    """RGB colour of an id, always the same; ids that follow each other differ clearly."""
    return _color(id % (1 << 64))


def draw_tracks(
    image: UInt8Array,
    tracks: PixelTracks,
    *,
    tails: TrackTails | None = None,
    labels: Mapping[int, str] | None = None,
    segments: UInt16Array | None = None,
) -> UInt8Array:
    """A copy of the image (H, W, 3) with everything tracked on it.

    Points are discs, boxes outlines with a tag, segments translucent; what is occluded is hollow or dashed; what is
    lost is not drawn. Lines and letters grow with the image.

    Args:
        tails: of the points, up to this frame.
        labels: names by id, shown behind the id; any text, of which what is not ASCII is left out.
        segments: label image (H, W) whose values are the ids of the segments.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    canvas = _Canvas(image, labels or {})
    if segments is not None:
        canvas.segments(segments)
    canvas.boxes(tracks)
    if tails is not None:
        canvas.tails(tails)
    canvas.points(tracks)
    if segments is not None:
        canvas.segment_tags(tracks, segments)
    return canvas.image


class _Canvas:
    """An image that is drawn on, and the sizes that fit it."""

    def __init__(self, image: UInt8Array, labels: Mapping[int, str]) -> None:
        self.image: UInt8Array = np.array(image, order="C")
        self._labels = labels
        self._height, self._width = image.shape[:2]
        self._scale = max(1.0, float(np.hypot(self._height, self._width)) / _DIAGONAL)
        self._thickness = round(self._scale)

    def segments(self, segments: UInt16Array) -> None:
        """Tints each segment in its colour."""
        if segments.shape != (self._height, self._width):
            raise ValueError(f"expected segments {(self._height, self._width)}, got {segments.shape}")
        colors = np.zeros((int(segments.max(initial=0)) + 1, 3), np.uint8)
        for value in np.flatnonzero(np.bincount(segments.ravel())).tolist():
            colors[value] = color_of(value)
        tinted = cv2.addWeighted(self.image, 1 - MASK_ALPHA, colors[segments], MASK_ALPHA, 0)
        cv2.copyTo(tinted, (segments != 0).astype(np.uint8), self.image)

    def segment_tags(self, tracks: PixelTracks, segments: UInt16Array) -> None:
        """Names each segment in its middle."""
        masks = tracks.masks
        for id, confidence in zip(masks.ids.tolist(), masks.confidence.tolist(), strict=True):
            moments = cv2.moments((segments == id).astype(np.uint8), binaryImage=True) if id <= 0xFFFF else {"m00": 0}
            if moments["m00"]:
                middle = (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"])
                self._tag(id, middle, self._name(id, confidence))

    def boxes(self, tracks: PixelTracks) -> None:
        """Outlines each box, dashed where it is occluded, with a tag above it."""
        boxes = tracks.boxes
        shown = np.isfinite(boxes.xyxy).all(axis=1) & (boxes.status != Status.LOST)
        fixed = self._fixed(boxes.xyxy[shown].reshape(-1, 2, 2)).reshape(-1, 4)[:, _CORNERS].reshape(-1, 5, 2)
        visible = boxes.status[shown] == Status.VISIBLE
        for id, corners, is_visible in zip(boxes.ids[shown].tolist(), fixed, visible.tolist(), strict=True):
            lines = [corners] if is_visible else list(self._dashes(corners))
            cv2.polylines(self.image, lines, False, color_of(id), self._thickness + 1, cv2.LINE_8, _FRACTION_BITS)
        places = boxes.xyxy[shown, :2].tolist()
        for id, place, confidence in zip(
            boxes.ids[shown].tolist(), places, boxes.confidence[shown].tolist(), strict=True
        ):
            self._tag(id, place, self._name(id, confidence))

    def points(self, tracks: PixelTracks) -> None:
        """A disc at each point, a ring where it is occluded; with few points their ids too."""
        points = tracks.points
        shown = np.isfinite(points.xy).all(axis=1) & (points.status != Status.LOST)
        ids, xy, status = points.ids[shown].tolist(), points.xy[shown], points.status[shown].tolist()
        radius = round(3 * self._scale * 2**_FRACTION_BITS)
        for id, at, is_status in zip(ids, self._fixed(xy).tolist(), status, strict=True):
            thickness = -1 if is_status == Status.VISIBLE else self._thickness
            cv2.circle(self.image, at, radius, color_of(id), thickness, cv2.LINE_8, _FRACTION_BITS)
        if len(points.ids) > MOST_POINT_IDS:
            return
        for id, (x, y) in zip(ids, xy.tolist(), strict=True):
            if 0 <= x <= self._width and 0 <= y <= self._height:
                text, place = f"{id} {self._ascii(id)}".rstrip(), (x + 4 * self._scale, y - 4 * self._scale)
                self._text(text, place, _BLACK, self._thickness + 2)
                self._text(text, place, color_of(id), self._thickness)

    def tails(self, tails: TrackTails) -> None:
        """A line through where each point was; of the time that it was occluded every second step."""
        fixed = np.ascontiguousarray(self._fixed(np.nan_to_num(tails.xy)).transpose(1, 0, 2))
        # Runs of steps that are drawn: +1 where one begins, -1 where it has ended.
        drawn = np.pad(tails.drawn.T.astype(np.int8), ((0, 0), (1, 1)))
        edges = np.diff(drawn, axis=1)
        runs: list[list[npt.NDArray[np.int32]]] = [[] for _ in tails.ids]
        (point, start), (_, end) = np.nonzero(edges == 1), np.nonzero(edges == -1)
        for p, first, last in zip(point.tolist(), start.tolist(), end.tolist(), strict=True):
            runs[p].append(fixed[p, first : last + 1])
        for id, lines in zip(tails.ids.tolist(), runs, strict=True):
            cv2.polylines(self.image, lines, False, color_of(id), self._thickness, cv2.LINE_8, _FRACTION_BITS)

    def _fixed(self, xy: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
        """Positions (..., 2) as OpenCV's fixed-point numbers, in which the centres of pixels are whole.

        Those far outside are held no further than its size from the image, as OpenCV's numbers end somewhere.
        """
        size = np.array((self._width, self._height), np.float32)
        held = np.minimum(np.maximum(xy, -size), 2 * size)
        return np.rint((held - 0.5) * 2**_FRACTION_BITS).astype(np.int32)

    def _dashes(self, corners: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int32]]:
        """Each side between the corners (n, 2), in dashes with gaps of the same length, begun and ended by a dash."""
        for start, end in pairwise(corners):
            length = float(np.abs(end - start).sum()) / 2**_FRACTION_BITS
            pieces = max(1, round(length / (_DASH * self._scale))) // 2 * 2 + 1
            at = start + np.rint((end - start) * np.linspace(0, 1, pieces + 1)[:, None]).astype(np.int32)
            yield from (at[i : i + 2] for i in range(0, pieces, 2))

    def _name(self, id: int, confidence: float) -> str:
        text = f"{id} {self._ascii(id)}".rstrip()
        return f"{text} {confidence:.2f}" if np.isfinite(confidence) else text

    def _ascii(self, id: int) -> str:
        return "".join(c for c in self._labels.get(id, "") if c.isascii() and c.isprintable())[:32]

    def _tag(self, id: int, at: tuple[float, float], text: str) -> None:
        """Text on a field of the id's colour that ends at `at`, below, and lies within the image."""
        color, pad = color_of(id), round(2 * self._scale)
        (width, height), base = cv2.getTextSize(text, _FONT, _FONT_SCALE * self._scale, self._thickness)
        left = int(max(0.0, min(at[0], self._width - 1 - width - 2 * pad)))
        bottom = int(min(self._height - 1, max(at[1], height + base + 2 * pad)))
        upper_left = (left, bottom - height - base - pad)
        cv2.rectangle(self.image, upper_left, (left + width + 2 * pad, bottom), color, -1)
        is_light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 127
        self._text(text, (left + pad, bottom - base), _BLACK if is_light else _WHITE, self._thickness)

    def _text(self, text: str, at: tuple[float, float], color: Color, thickness: int) -> None:
        where = round(at[0]), round(at[1])
        cv2.putText(self.image, text, where, _FONT, _FONT_SCALE * self._scale, color, thickness, cv2.LINE_AA)


@lru_cache(maxsize=4096)
def _color(id: int) -> Color:
    spread = id * _GOLDEN_RATIO % (1 << 64)
    hue = spread / (1 << 64)
    saturation, value = ((0.9, 1.0), (0.55, 1.0), (0.95, 0.75))[spread % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue

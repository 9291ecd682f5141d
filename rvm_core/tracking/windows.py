"""Tracks through overlapping windows of a trained head's frames (protocol of 4DS), one frame at a time.

A head reads a window of T frames (16) and says where a query of its first frame is in each of them. To follow a track
for as long as it lasts, and to have a position at every frame, windows overlap by half:

- A track's first window starts at the frame of its query; further ones start at every frame whose number is a multiple
  of the stride T/2, so that all tracks share the same windows after a stride at the most.
- A new window's query is the position that the tracker gives at the window's first frame, so there it starts with no
  jump. From then on two windows say where the track is, and the position given goes from the older one to the newer
  one in equal parts, over one stride; then the newer one is the older one and the next window starts.
- A window is read before it is full, with the newest frame in place of those to come, as if the video had stopped.

So from frame to frame the position moves by no more than the two windows' own motion, mixed, plus 1/stride of the
distance between them. Each step costs the same: one projection of the new frame and one read of each of two windows,
plus one of each start frame among tracks younger than T frames. A track that is hidden where a window starts goes on
from its best guess there: heads of this protocol have no memory that is longer than their window.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.readout import AttentionReadout, KeyValues

_NONE = -1
"""Start of a window that there is not."""

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrackWindows:
    """The tracks of one head; entries i of all arrays belong together. C is 2 for points, 4 for boxes."""

    frames: tuple[KeyValues, ...] = ()
    """Projected features of the last T frames, the newest last."""
    ids: tuple[int, ...] = ()
    """P ids."""
    starts: Int64Array
    """(P, 2): number of the frame that the older and the newer window start at; -1 where there is no newer one."""
    queries: Float32Array
    """(P, 2, C): position in the first frame of the older and the newer window, as the head takes it."""


class Reading(NamedTuple):
    """What the windows say of each track in one frame."""

    places: Float32Array
    """(P, C): positions between those of the two windows."""
    confidences: Float32Array
    """(P,): likewise."""
    by_window: Float32Array
    """(P, 2, C): positions by the older and the newer window; twice the older's where there is no newer one."""


Read = Callable[[KeyValues, Tensor, int], tuple[Tensor, Tensor]]
"""(window, queries (1, P, C), number of a frame in the window) -> positions (1, P, C), confidences (1, P)."""


class HeadWindows:
    """The windows of one head: see the text on top of this file.

    Args:
        readout: of the head; projects frames and puts windows together.
        coordinates: C.
        read: the head's answer for one frame of a window.
    """

    def __init__(self, readout: AttentionReadout, coordinates: int, read: Read) -> None:
        self._readout = readout
        self._length = readout.config.frames
        if self._length % 2:
            raise ValueError(f"expected a head over an even number of frames, got {self._length}")
        self._stride = self._length // 2
        self._coordinates = coordinates
        self._read = read

    @torch.no_grad()
    def step(self, tokens: Tensor, part: TrackWindows, newest: int) -> tuple[Reading, TrackWindows]:
        """Takes frame number `newest`: what the windows say, and the new state."""
        frames = (*part.frames, self._readout.project(tokens.unsqueeze(0)))[-self._length :]
        return self._at(newest, newest, replace(part, frames=frames))

    @torch.no_grad()
    def add(self, ids: Sequence[int], places: Float32Array, part: TrackWindows, newest: int, age: int) -> TrackWindows:
        """Starts tracks at the positions (P, C) in frame `newest - age`."""
        start = newest - age
        new = TrackWindows(
            frames=part.frames,
            ids=tuple(ids),
            starts=np.array([[start, _NONE]] * len(ids), np.int64),
            queries=np.stack((places, places), axis=1),
        )
        for frame in range(start + 1, newest + 1):
            if frame % self._stride == 0:
                new = self._at(frame, newest, new)[1]
        return TrackWindows(
            frames=part.frames,
            ids=part.ids + new.ids,
            starts=np.concatenate((part.starts, new.starts)),
            queries=np.concatenate((part.queries, new.queries)),
        )

    def _at(self, frame: int, newest: int, part: TrackWindows) -> tuple[Reading, TrackWindows]:
        """What the windows say of a frame, and the state after it, where windows may have ended and started.

        `newest` is the number of the last of `part.frames`.
        """
        seam = frame % self._stride == 0
        if seam:
            part = _older_windows_end(part)
        reading = self._read_all(frame, newest, part)
        if seam:
            starts = np.stack((part.starts[:, 0], np.full(len(part.ids), frame)), axis=1)
            queries = np.stack((part.queries[:, 0], reading.places), axis=1)
            part = replace(part, starts=starts, queries=queries)
        return reading, part

    def _read_all(self, frame: int, newest: int, part: TrackWindows) -> Reading:
        by_window = np.zeros((len(part.ids), 2, self._coordinates), np.float32)
        confidences = np.zeros((len(part.ids), 2), np.float32)
        for start in np.unique(part.starts[part.starts != _NONE]).tolist():
            asked = part.starts == start
            queries = torch.from_numpy(part.queries[asked]).unsqueeze(0)
            window = self._window(start, newest, part.frames)
            found, confidence = self._read(window, queries.to(window.keys.device), frame - start)
            by_window[asked] = found[0].float().cpu().numpy()
            confidences[asked] = confidence[0].float().cpu().numpy()
        single = part.starts[:, 1] == _NONE
        by_window[single, 1], confidences[single, 1] = by_window[single, 0], confidences[single, 0]
        share = np.where(single, 0.0, (frame - part.starts[:, 1]) / self._stride).astype(np.float32)
        return Reading(
            places=by_window[:, 0] + share[:, None] * (by_window[:, 1] - by_window[:, 0]),
            confidences=confidences[:, 0] + share * (confidences[:, 1] - confidences[:, 0]),
            by_window=by_window,
        )

    def _window(self, start: int, newest: int, frames: tuple[KeyValues, ...]) -> KeyValues:
        seen = frames[start - newest - 1 :]
        return self._readout.place([*seen, *[seen[-1]] * (self._length - len(seen))])


def _older_windows_end(part: TrackWindows) -> TrackWindows:
    two = part.starts[:, 1] != _NONE
    starts = np.stack((np.where(two, part.starts[:, 1], part.starts[:, 0]), np.full(len(two), _NONE)), axis=1)
    queries = np.where(two[:, None], part.queries[:, 1], part.queries[:, 0])
    return replace(part, starts=starts, queries=np.stack((queries, queries), axis=1))


def no_tracks(coordinates: int) -> TrackWindows:
    return TrackWindows(starts=np.zeros((0, 2), np.int64), queries=np.zeros((0, 2, coordinates), np.float32))


def without(ids: Collection[int], part: TrackWindows) -> TrackWindows:
    kept = [i for i, id in enumerate(part.ids) if id not in ids]
    return replace(part, ids=tuple(part.ids[i] for i in kept), starts=part.starts[kept], queries=part.queries[kept])

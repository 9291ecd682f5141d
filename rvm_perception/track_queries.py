"""Reads TrackQueries messages: what is asked for, entry by entry, and the answers to it.

Plain Python: any object with the fields of the message will do, whichever library read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_core.preprocess import FrameMap
from rvm_core.tracking.base import Query, QueryError
from rvm_core.tracking.pixels import box_query, mask_query, point_query
from rvm_perception.conversions import ImageError, image_to_labels

WHOLE_PART = 2**32 - 1
"""Index of an item that stands for a part as a whole; a test compares it and `Kind` with QueryAnswers.msg."""


_MAX_FOUND_LABELS = 1024
"""An image of more labels, of which none is named, is no label image."""


class Kind(IntEnum):
    """Parts of a request, in the order in which they are carried out. The numbers are those of the messages."""

    CLEAR = 1
    REMOVE = 2
    POINT = 3
    BOX = 4
    MASK = 5


TRACKED = (Kind.POINT, Kind.BOX, Kind.MASK)
"""The kinds of tracks."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that a request asks for."""

    kind: Kind
    index: int = 0
    """Place in its part, or `WHOLE_PART`."""
    id: int = 0
    """0: to be given by the node."""
    label: str = ""
    pixels: tuple[float, ...] = ()
    """x and y of a point; x_min, y_min, x_max, y_max of a box."""
    value: int = 0
    """Label of a mask in the label image."""
    fault: str = ""
    """Why it is refused in any case; empty if nothing is wrong with the message."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of an item."""

    item: Item
    id: int
    """Of the track; 0: none."""
    reason: str = ""
    """Why it was refused; empty: it was accepted."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What became of a request."""

    stamp_ns: int
    """Of the frame in which the added positions were taken to hold, or that of the request where there was none."""
    frame_id: str
    camera: str
    request_id: str
    epoch: int
    entries: tuple[Answer, ...]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.entries)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A TrackQueries message, read."""

    stamp_ns: int
    """0: the newest frame."""
    frame_id: str
    """Empty: not to be checked."""
    camera: str
    request_id: str
    items: tuple[Item, ...]
    labels: npt.NDArray[Any] | None = field(default=None, repr=False)
    """Label image (H, W), uint8 or uint16, that the items of kind MASK refer to."""

    @property
    def adds(self) -> bool:
        """Whether anything is to be added, so that it matters in which frame."""
        return any(item.kind in TRACKED and not item.fault for item in self.items)

    def answers(self, entries: Iterable[Answer], *, camera: str, epoch: int) -> Answers:
        """Answers with the request's own stamp and frame_id."""
        return Answers(
            stamp_ns=self.stamp_ns,
            frame_id=self.frame_id,
            camera=camera,
            request_id=self.request_id,
            epoch=epoch,
            entries=tuple(entries),
        )

    def refused(self, reason: str, *, camera: str = "", epoch: int = 0) -> Answers:
        """Refuses everything for one reason; `camera` is that of the request unless given."""
        entries = (Answer(item=item, id=item.id, reason=item.fault or reason) for item in self.items)
        return self.answers(entries, camera=camera or self.camera, epoch=epoch)


def read_request(message: Any) -> Request:
    """What a TrackQueries message asks for. Never raises for its content: faults are noted in the items."""
    stamp = message.header.stamp
    items = [Item(kind=Kind.CLEAR)] if message.clear else []
    items += [Item(kind=Kind.REMOVE, index=i, id=int(id)) for i, id in enumerate(message.remove_ids)]
    items += _positions(Kind.POINT, message, ("point_x", "point_y"))
    items += _positions(Kind.BOX, message, ("box_x_min", "box_y_min", "box_x_max", "box_y_max"))
    labels, masks = _masks(message)
    return Request(
        stamp_ns=int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec),
        frame_id=message.header.frame_id,
        camera=message.camera,
        request_id=message.request_id,
        items=(*items, *masks),
        labels=labels,
    )


def item_query(item: Item, id: int, request: Request, frame_map: FrameMap) -> Query:
    """The query of an item, in grid coordinates. Raises `QueryError` where its position cannot be used."""
    if item.kind == Kind.POINT:
        x, y = item.pixels
        return point_query(id, x, y, frame_map)
    if item.kind == Kind.BOX:
        x_min, y_min, x_max, y_max = item.pixels
        return box_query(id, x_min, y_min, x_max, y_max, frame_map)
    assert request.labels is not None
    mask = request.labels == item.value
    if request.labels.shape == (frame_map.source_height, frame_map.source_width) and not mask.any():
        raise QueryError(f"no pixel of the mask image has the value {item.value}")
    return mask_query(id, mask, frame_map)


def _positions(kind: Kind, message: Any, fields: Sequence[str]) -> list[Item]:
    name = kind.name.lower()
    columns = [getattr(message, field) for field in fields]
    ids, labels = getattr(message, f"{name}_ids"), getattr(message, f"{name}_labels")
    lengths = {field: len(column) for field, column in zip(fields, columns, strict=True)}
    fault = _fault_of_lengths(lengths, {f"{name}_ids": len(ids), f"{name}_labels": len(labels)})
    if fault:
        return [Item(kind=kind, index=WHOLE_PART, fault=fault)]
    return [
        Item(
            kind=kind,
            index=i,
            id=int(ids[i]) if len(ids) else 0,
            label=labels[i] if len(labels) else "",
            pixels=tuple(float(value) for value in position),
        )
        for i, position in enumerate(zip(*columns, strict=True))
    ]


def _masks(message: Any) -> tuple[npt.NDArray[Any] | None, list[Item]]:
    values, ids, names = message.mask_values, message.mask_ids, message.mask_labels
    if not len(message.mask.data):
        if len(values) or len(ids) or len(names):
            return None, [_no_masks("the mask image has no data")]
        return None, []
    try:
        labels = image_to_labels(message.mask)
    except ImageError as error:
        return None, [_no_masks(f"the mask image cannot be read: {error}")]
    if not len(values):
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=1)[1:]) + 1
        if not len(values):
            return None, [_no_masks("the mask image holds nothing but 0, the background")]
        if len(values) > _MAX_FOUND_LABELS:
            return None, [_no_masks(f"the mask image holds {len(values)} labels: name those to track in mask_values")]
    fault = _fault_of_lengths({"labels to track": len(values)}, {"mask_ids": len(ids), "mask_labels": len(names)})
    if fault:
        return None, [_no_masks(fault)]
    return labels, [
        Item(
            kind=Kind.MASK,
            index=i,
            id=int(ids[i]) if len(ids) else 0,
            label=names[i] if len(names) else "",
            value=int(value),
            fault="" if value else "0 is the background of the mask image",
        )
        for i, value in enumerate(values)
    ]


def _no_masks(fault: str) -> Item:
    return Item(kind=Kind.MASK, index=WHOLE_PART, fault=fault)


def _fault_of_lengths(required: dict[str, int], optional: dict[str, int]) -> str:
    """What is wrong with the lengths of arrays whose entries belong together; the optional ones may be empty."""
    count = next(iter(required.values()))
    given = required | {name: length for name, length in optional.items() if length}
    if all(length == count for length in given.values()):
        return ""
    lengths = ", ".join(f"{length} {name}" for name, length in given.items())
    return f"expected arrays of one length, got {lengths}"

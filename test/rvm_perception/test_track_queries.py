"""Reading TrackQueries: every part, every fault of a message, and the fields of the real message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rvm_core.preprocess import Preprocess
from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, QueryError
from rvm_perception.track_queries import WHOLE_PART, Item, Kind, item_query, read_request
from track_stand_ins import mask_message, query_message

FRAME_MAP = Preprocess(height=64, width=128, policy="letterbox").map(96, 192)
"""A grid of 4x8 cells of 24x24 source pixels."""

LABELS = np.zeros((96, 192), np.uint8)
LABELS[:24, :24], LABELS[24:48, 24:36] = 7, 3


def items(**fields: Any) -> tuple[Item, ...]:
    return read_request(query_message(**fields)).items


def test_parts_come_in_the_order_in_which_they_are_carried_out() -> None:
    request = read_request(
        query_message(
            stamp_ns=1_000_000_002,
            frame_id="optical",
            camera="left",
            request_id="r1",
            clear=True,
            remove_ids=[4, 9],
            point_x=[1.0, 2.0],
            point_y=[3.0, 4.0],
            point_ids=[0, 5],
            point_labels=["a", "b"],
            box_x_min=[1.0],
            box_y_min=[2.0],
            box_x_max=[3.0],
            box_y_max=[4.0],
            mask=mask_message(LABELS),
        )
    )
    assert (request.stamp_ns, request.frame_id) == (1_000_000_002, "optical")
    assert (request.camera, request.request_id, request.adds) == ("left", "r1", True)
    assert request.items == (
        Item(kind=Kind.CLEAR),
        Item(kind=Kind.REMOVE, index=0, id=4),
        Item(kind=Kind.REMOVE, index=1, id=9),
        Item(kind=Kind.POINT, index=0, label="a", pixels=(1.0, 3.0)),
        Item(kind=Kind.POINT, index=1, id=5, label="b", pixels=(2.0, 4.0)),
        Item(kind=Kind.BOX, index=0, pixels=(1.0, 2.0, 3.0, 4.0)),
        Item(kind=Kind.MASK, index=0, value=3),
        Item(kind=Kind.MASK, index=1, value=7),
    )


def test_an_empty_message_asks_for_nothing() -> None:
    request = read_request(query_message())
    assert request.items == () and not request.adds


@pytest.mark.parametrize(
    ("fields", "kind", "fault"),
    [
        ({"point_x": [1.0, 2.0], "point_y": [1.0]}, Kind.POINT, "one length, got 2 point_x, 1 point_y"),
        ({"point_x": [1.0], "point_y": [1.0], "point_ids": [1, 2]}, Kind.POINT, "2 point_ids"),
        ({"point_ids": [1]}, Kind.POINT, "0 point_x, 0 point_y, 1 point_ids"),
        ({"box_x_min": [1.0]}, Kind.BOX, "1 box_x_min, 0 box_y_min"),
        ({"mask_values": [3]}, Kind.MASK, "mask image has no data"),
        ({"mask": mask_message(LABELS), "mask_ids": [1]}, Kind.MASK, "2 labels to track, 1 mask_ids"),
        ({"mask": mask_message(np.zeros((4, 4), np.uint8))}, Kind.MASK, "nothing but 0"),
        ({"mask": mask_message(np.arange(2000, dtype=np.uint16)[None])}, Kind.MASK, "1999 labels: name those"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_as_a_whole(fields: dict[str, Any], kind: Kind, fault: str) -> None:
    request = read_request(query_message(clear=True, **fields))
    clear, part = request.items
    assert clear == Item(kind=Kind.CLEAR)
    assert (part.kind, part.index) == (kind, WHOLE_PART)
    assert fault in part.fault
    assert not request.adds


def test_a_mask_image_that_cannot_be_read_is_refused() -> None:
    coloured = mask_message(LABELS)
    coloured.encoding = "rgb8"
    truncated = mask_message(LABELS)
    truncated.height += 1
    for mask, fault in ((coloured, "mono8 or mono16, got 'rgb8'"), (truncated, "bytes")):
        (part,) = items(mask=mask)
        assert part.index == WHOLE_PART and fault in part.fault


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(("dtype", "big"), [(np.uint8, False), (np.uint16, False), (np.uint16, True)])
def test_masks_cover_their_share_of_each_cell(dtype: type, big: bool, padding: int) -> None:
    labels = LABELS.astype(dtype) * (100 if dtype == np.uint16 else 1)
    values = [int(labels.max()), int(labels[30, 30])]
    mask = mask_message(labels, big=big, padding=padding)
    request = read_request(query_message(mask=mask, mask_values=values, mask_labels=["big", "small"]))
    queries = [item_query(item, 1, request, FRAME_MAP) for item in request.items]
    expected = np.zeros((2, 4, 8))
    expected[0, 0, 0], expected[1, 1, 1] = 1.0, 0.5
    for query, coverage in zip(queries, expected, strict=True):
        assert isinstance(query, MaskQuery)
        np.testing.assert_allclose(query.mask, coverage, atol=1e-6)
    assert [item.label for item in request.items] == ["big", "small"]


def test_positions_become_grid_coordinates() -> None:
    request = read_request(query_message())
    point = item_query(Item(kind=Kind.POINT, pixels=(36.0, 12.0)), 5, request, FRAME_MAP)
    assert point == PointQuery(id=5, x=1.5, y=0.5)
    box = item_query(Item(kind=Kind.BOX, pixels=(-10.0, 24.0, 48.0, 500.0)), 6, request, FRAME_MAP)
    assert box == BoxQuery(id=6, x_min=0.0, y_min=1.0, x_max=2.0, y_max=4.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"point_x": [float("nan")], "point_y": [1.0]}, "not finite"),
        ({"point_x": [192.5], "point_y": [1.0]}, "outside"),
        ({"box_x_min": [5.0], "box_y_min": [5.0], "box_x_max": [5.0], "box_y_max": [9.0]}, "empty"),
        ({"box_x_min": [-9.0], "box_y_min": [5.0], "box_x_max": [-5.0], "box_y_max": [9.0]}, "outside"),
        ({"mask": mask_message(LABELS), "mask_values": [4]}, "no pixel of the mask image has the value 4"),
        ({"mask": mask_message(LABELS[:48])}, "192x48 pixels, expected the size of the image, 192x96"),
        ({"mask": mask_message(LABELS[:12, :24]), "mask_values": [4]}, "24x12 pixels, expected the size of the image"),
    ],
)
def test_positions_that_cannot_be_used_are_refused(fields: dict[str, Any], reason: str) -> None:
    request = read_request(query_message(**fields))
    with pytest.raises(QueryError, match=reason):
        item_query(request.items[0], 1, request, FRAME_MAP)


def test_background_is_no_label() -> None:
    (item,) = items(mask=mask_message(LABELS), mask_values=[0])
    assert "background" in item.fault


def test_refusing_a_request_answers_every_item() -> None:
    request = read_request(query_message(clear=True, remove_ids=[3], point_x=[1.0], point_y=[1.0, 2.0]))
    answers = request.refused("no such camera", camera="left", epoch=2)
    assert [answer.item for answer in answers] == list(request.items)
    assert [answer.reason for answer in answers][:2] == ["no such camera"] * 2
    assert "one length" in answers.entries[2].reason
    assert (answers.camera, answers.epoch) == ("left", 2)


def test_arrays_of_numpy_are_read_alike() -> None:
    """As readers of bags give them."""
    fields: dict[str, Any] = {"point_x": [1.5, 2.5], "point_y": [3.5, 4.5], "point_ids": [0, 2**64 - 1]}
    mask = mask_message(LABELS)
    mask.data = np.frombuffer(mask.data, np.uint8)
    arrays: dict[str, Any] = {
        "point_x": np.array(fields["point_x"], np.float32),
        "point_y": np.array(fields["point_y"], np.float32),
        "point_ids": np.array(fields["point_ids"], np.uint64),
        "remove_ids": np.array([], np.uint64),
        "mask_values": np.array([3], np.uint16),
        "mask": mask,
    }
    assert items(**arrays) == items(**fields, mask=mask_message(LABELS), mask_values=[3])


def test_the_stand_in_has_the_fields_of_the_message() -> None:
    messages = pytest.importorskip("rvm_perception.msg", reason="the messages are not built")
    fields = messages.TrackQueries.get_fields_and_field_types()
    assert set(vars(query_message())) == set(fields)
    assert read_request(messages.TrackQueries()) == read_request(query_message())
    message = messages.TrackQueries(point_x=[1.0], point_y=[2.0], point_ids=[2**64 - 1], point_labels=["corner"])
    assert read_request(message).items == (Item(kind=Kind.POINT, id=2**64 - 1, label="corner", pixels=(1.0, 2.0)),)


def test_numbers_are_those_of_the_message() -> None:
    messages = pytest.importorskip("rvm_perception.msg", reason="the messages are not built")
    assert {kind.name: getattr(messages.QueryAnswers, kind.name) for kind in Kind} == {k.name: k.value for k in Kind}
    assert messages.QueryAnswers.WHOLE_PART == WHOLE_PART

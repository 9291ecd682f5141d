"""Points, boxes and masks from a command line."""

from __future__ import annotations

import argparse
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rvm_core.preprocess import Preprocess
from rvm_core.tracking.base import BoxQuery, MaskQuery, PointQuery, QueryError
from rvm_perception.track_arguments import Given, make_queries, parse_box, parse_point, read_label_image

FRAME_MAP = Preprocess(height=64, width=96, policy="stretch").map(128, 192)
LABELS = np.zeros((128, 192), np.uint8)
LABELS[:32, :64], LABELS[64:, 64:128] = 2, 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3,4", Given((3, 4), "")),
        ("3.5,-4e0", Given((3.5, -4), "")),
        ("3,4,left wheel", Given((3, 4), "left wheel")),
        ("3,4,a,b", Given((3, 4), "a,b")),
    ],
)
def test_point_is_two_numbers_and_maybe_a_name(text: str, expected: Given) -> None:
    assert parse_point(text) == expected


def test_box_is_four_numbers_and_maybe_a_name() -> None:
    assert parse_box("1,2,3,4") == Given((1, 2, 3, 4), "")
    assert parse_box("1,2,3,4, van ") == Given((1, 2, 3, 4), "van")


@pytest.mark.parametrize("text", ["", "3", "3;4", "a,4", "nan,4", "3,inf"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected X,Y or X,Y,NAME, in pixels, got"):
        parse_point(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3", "expected X1,Y1"), ("1,2,3,x", "expected X1,Y1"), ("3,2,1,4", "upper left"), ("1,2,3,2", "upper left")],
)
def test_what_is_no_box_is_refused(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse_box(text)


def write_palette(path: Path, numbers: npt.NDArray[np.uint8]) -> None:
    """A PNG with a palette, as segmentation data sets have them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = numbers.shape
    rows = b"".join(b"\0" + row.tobytes() for row in numbers)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes([0, 0, 0] + [128, 0, 0] * 9))  # the same colour for all: only the number tells
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_are_labels(tmp_path: Path, dtype: type) -> None:
    labels = LABELS.astype(dtype) * (1 if dtype is np.uint8 else 1000)
    cv2.imwrite(str(tmp_path / "mask.png"), labels)
    read = read_label_image(tmp_path / "mask.png")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, labels)


def test_numbers_of_a_palette_are_labels(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="palettes are read with PyAV (extra: demo)")
    write_palette(tmp_path / "mask.png", LABELS)
    np.testing.assert_array_equal(read_label_image(tmp_path / "mask.png"), LABELS)


def test_what_is_no_label_image_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="palettes are read with PyAV (extra: demo)")
    random = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "colour.png"), random.integers(0, 255, (20, 30, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "depth.png"), random.integers(0, 65535, (40, 40), np.uint16))
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((20, 30), np.uint8))
    (tmp_path / "text.png").write_text("text")
    for name, message in {
        "gone": "no such mask",
        "colour": "no label image: expected a PNG with one channel",
        "text": "no label image: expected a PNG with one channel",
        "empty": "has no label",
        "depth": "at most 256 are taken",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_label_image(tmp_path / f"{name}.png")


def test_ids_are_those_of_the_mask_and_the_lowest_that_are_left() -> None:
    points, boxes = [Given((96, 64), "a"), Given((0, 0), "")], [Given((32, 32, 96, 96), "b")]
    queries, labels = make_queries(points, boxes, LABELS.astype(np.uint16), FRAME_MAP)
    assert [(type(query), query.id) for query in queries] == [
        (PointQuery, 1),
        (PointQuery, 3),
        (BoxQuery, 4),
        (MaskQuery, 2),
        (MaskQuery, 7),
    ]
    assert labels == {1: "a", 4: "b"}
    assert queries[0] == PointQuery(id=1, x=3.0, y=2.0)
    assert queries[2] == BoxQuery(id=4, x_min=1.0, y_min=1.0, x_max=3.0, y_max=3.0)
    mask = queries[3]
    assert isinstance(mask, MaskQuery)
    np.testing.assert_array_equal(mask.mask, np.pad(np.ones((1, 2)), ((0, 3), (0, 4))))


def test_what_is_outside_of_the_image_is_refused() -> None:
    with pytest.raises(QueryError, match=r"point \(193, 3\) is outside of the image, which is 192x128 pixels"):
        make_queries([Given((193, 3), "")], [], None, FRAME_MAP)
    with pytest.raises(QueryError, match=r"box \(0, 130, 10, 140\) is outside of the image"):
        make_queries([], [Given((0, 130, 10, 140), "")], None, FRAME_MAP)
    with pytest.raises(QueryError, match="mask of 192x127 pixels, expected the size of the image, 192x128"):
        make_queries([], [], LABELS[1:].astype(np.uint16), FRAME_MAP)

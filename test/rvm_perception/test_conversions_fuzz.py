"""Whatever comes as an image, the only exception is ImageError."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from image_arrays import encode, noise, smooth
from rvm_perception.conversions import SUPPORTED_ENCODINGS, ImageError, compressed_to_rgb, image_to_rgb

JPEG = encode("jpeg", smooth())
PNG = encode("png", smooth()[::4, ::4])

bounded = settings(deadline=2000)
"""Milliseconds an image of a few kilobytes may take on a busy machine: damaged lengths must not cost time or memory."""


@bounded
@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", JPEG[:3], PNG[:8], PNG[:33], JPEG[:180], JPEG]))
def test_random_data_raise_nothing_else(data: bytes, prefix: bytes) -> None:
    check_compressed(prefix + data)


@bounded
@given(
    original=st.sampled_from([JPEG, PNG]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
def test_damaged_images_raise_nothing_else(original: bytes, changes: list[tuple[float, int]], cut: float) -> None:
    damaged = bytearray(original)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    check_compressed(bytes(damaged))
    check_compressed(bytes(damaged[: int(cut * len(damaged))]))


def check_compressed(data: bytes) -> None:
    try:
        result = compressed_to_rgb(SimpleNamespace(data=data, format="rgb8; jpeg compressed bgr8"), max_pixels=10**6)
    except ImageError as error:
        assert error.reason in ImageError.REASONS
    else:
        assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3


@bounded
@given(
    encoding=st.sampled_from([*SUPPORTED_ENCODINGS, "8UC3", "16UC1", "32FC1"]),
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    padding=st.integers(-3, 3),
    surplus=st.sampled_from([0, 0, 0, -1, 1]),
    big=st.integers(0, 255),
    assumed=st.sampled_from(["", *SUPPORTED_ENCODINGS]),
)
def test_random_images_raise_nothing_else(
    encoding: str, height: int, width: int, padding: int, surplus: int, big: int, assumed: str
) -> None:
    channels = {"rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4, "32FC1": 4}.get(encoding, 1)
    step = max(0, width * (2 if "16" in encoding or "yu" in encoding else channels) + padding)
    data = noise(max(0, step * height + surplus)).tobytes()
    msg = SimpleNamespace(encoding=encoding, height=height, width=width, step=step, is_bigendian=big, data=data)
    try:
        result = image_to_rgb(msg, ambiguous_encoding=assumed)
    except ImageError as error:
        assert error.reason in ImageError.REASONS
    else:
        assert result.shape == (height, width, 3) and result.dtype == np.uint8 and result.flags.c_contiguous

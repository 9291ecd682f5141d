"""Reading a FeatureMap with numpy alone, and filling one."""

from __future__ import annotations

import array
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rvm_perception
from rvm_core.preprocess import Preprocess
from rvm_perception.conversions import build_feature_map
from rvm_perception.feature_map import FeatureMapError, feature_map_to_numpy, grid_to_pixels, pixels_to_grid

ROOT = Path(__file__).parents[2]
ROWS, COLS, CHANNELS = 2, 3, 5
INVERSE_TOLERANCE = 1e-9
"""Of the largest coordinate: a few roundings of float64."""


def values(numpy_dtype: str = "<f4") -> np.ndarray:
    return np.arange(ROWS * COLS * CHANNELS, dtype=numpy_dtype).reshape(ROWS, COLS, CHANNELS) / 8


def message(code: int = 1, numpy_dtype: str = "<f4", **fields: Any) -> Any:
    """The fields of a FeatureMap that reading needs, filled without this project's own code."""
    return SimpleNamespace(
        **{
            "rows": ROWS,
            "cols": COLS,
            "channels": CHANNELS,
            "dtype": code,
            "grid_to_image": np.array([20.0, 0, 4, 0, 30.0, -6]),
            "data": array.array("B", values(numpy_dtype).tobytes()),
            **fields,
        }
    )


@pytest.mark.parametrize(("code", "dtype"), [(1, "<f4"), (2, "<f2")])
def test_features_have_the_messages_values_and_type(code: int, dtype: str) -> None:
    features = feature_map_to_numpy(message(code, dtype))
    assert features.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(features, values(dtype))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_buffer_is_read(kind: Any) -> None:
    msg = message(data=kind(values().tobytes()))
    np.testing.assert_array_equal(feature_map_to_numpy(msg), values())


def test_features_are_a_read_only_view() -> None:
    msg = message()
    features = feature_map_to_numpy(msg)
    assert np.shares_memory(features, np.frombuffer(msg.data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        features[0, 0, 0] = 1
    msg.data[:4] = array.array("B", np.float32(7).tobytes())
    assert features[0, 0, 0] == 7


def test_codes_and_fields_are_those_of_the_message() -> None:
    messages = pytest.importorskip("rvm_perception.msg", reason="the messages are not built")
    for code, dtype in ((messages.FeatureMap.FLOAT32, "<f4"), (messages.FeatureMap.FLOAT16, "<f2")):
        msg = messages.FeatureMap(rows=ROWS, cols=COLS, channels=CHANNELS, dtype=code)
        msg.data.frombytes(values(dtype).tobytes())
        msg.grid_to_image = message().grid_to_image
        np.testing.assert_array_equal(feature_map_to_numpy(msg), values(dtype))
        np.testing.assert_allclose(grid_to_pixels(msg, [1, 2]), [24, 54])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"dtype": 3}, r"expected dtype 1 \(float32\) or 2 \(float16\), got 3"),
        ({"dtype": 2}, "expected 60 bytes for 2 rows, 3 columns, 5 channels of float16, got 120"),
        ({"rows": 3}, "expected 180 bytes for 3 rows, 3 columns, 5 channels of float32, got 120"),
        ({"channels": 0}, "at least one row, column and channel, got 2 rows, 3 columns, 0 channels"),
        ({"rows": 0, "data": b""}, "at least one row, column and channel, got 0 rows"),
        ({"rows": 2**32 - 1, "cols": 2**32 - 1, "channels": 2**32 - 1}, "got 120"),
    ],
)
def test_errors_name_expected_and_received(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(FeatureMapError, match=error):
        feature_map_to_numpy(message(**fields))


def test_points_map_both_ways() -> None:
    msg = message()
    cells, pixels = np.array([[0.5, 0.5], [3.0, 2.0]]), np.array([[14.0, 9.0], [64.0, 54.0]])
    np.testing.assert_allclose(grid_to_pixels(msg, cells), pixels)
    np.testing.assert_allclose(pixels_to_grid(msg, pixels), cells)
    assert grid_to_pixels(msg, np.zeros((4, 7, 2))).shape == (4, 7, 2)


def test_shear_is_honoured() -> None:
    msg = message(grid_to_image=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    np.testing.assert_allclose(grid_to_pixels(msg, [10, 100]), [213, 546])
    np.testing.assert_allclose(pixels_to_grid(msg, [213, 546]), [10, 100])


def test_map_that_was_not_filled_in_has_no_inverse() -> None:
    with pytest.raises(FeatureMapError, match="can be inverted, got .*was it filled in"):
        pixels_to_grid(message(grid_to_image=np.zeros(6)), [0, 0])


@settings(deadline=None)
@given(
    scale=st.tuples(st.floats(0.01, 1e3), st.floats(0.01, 1e3)),
    offset=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    cell=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
)
def test_map_then_inverse_is_identity(
    scale: tuple[float, float], offset: tuple[float, float], cell: tuple[float, float]
) -> None:
    msg = message(grid_to_image=np.array([scale[0], 0, offset[0], 0, scale[1], offset[1]]))
    largest = max(100, 1e4 / min(scale))
    np.testing.assert_allclose(pixels_to_grid(msg, grid_to_pixels(msg, cell)), cell, atol=INVERSE_TOLERANCE * largest)


def test_import_needs_only_numpy() -> None:
    assert rvm_perception.feature_map_to_numpy is feature_map_to_numpy
    heavy = ("cv2", "torch", "rclpy", "sensor_msgs", "rvm_core")
    script = f"import sys, rvm_perception; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# Filling one.

FRAME_MAP = Preprocess(height=32, width=48, policy="letterbox").map(100, 120)


def feature_map(**changes: Any) -> Any:
    """A message made from fixed inputs with the given changes."""
    pytest.importorskip("rvm_perception.msg", reason="the messages are not built")
    from std_msgs.msg import Header

    inputs: dict[str, Any] = {
        "header": Header(frame_id="camera"),
        "camera": "front",
        "model": "rvm_s16",
        "weights_hash": "abc",
        "epoch": 3,
        "index": 2**40,
        "skipped": 5,
        "features": np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32),
        "frame_map": FRAME_MAP,
    }
    return build_feature_map(**{**inputs, **changes})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_feature_map_holds_what_was_given(dtype: Any) -> None:
    features = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    msg = feature_map(features=features, dtype=dtype)
    assert (msg.header.frame_id, msg.camera, msg.model, msg.weights_hash) == ("camera", "front", "rvm_s16", "abc")
    assert (msg.epoch, msg.index, msg.skipped) == (3, 2**40, 5)
    assert (msg.rows, msg.cols, msg.channels, msg.image_width, msg.image_height) == (2, 3, 4, 120, 100)
    np.testing.assert_array_equal(np.asarray(msg.cls), features[0])
    np.testing.assert_array_equal(feature_map_to_numpy(msg), features[1:].reshape(2, 3, 4).astype(dtype))
    cells = np.array([[0.5, 0.5], [3, 2]])
    np.testing.assert_array_equal(grid_to_pixels(msg, cells), FRAME_MAP.grid_to_pixels(cells))


def test_feature_map_survives_the_wire() -> None:
    serialization = pytest.importorskip("rclpy.serialization", reason="ROS is not installed")
    msg = feature_map(dtype="float16")
    received = serialization.deserialize_message(serialization.serialize_message(msg), type(msg))
    assert received == msg
    np.testing.assert_array_equal(feature_map_to_numpy(received), feature_map_to_numpy(msg))


def test_feature_map_does_not_share_the_features() -> None:
    features = np.ones((7, 4), np.float32)
    msg = feature_map(features=features)
    features[:] = 2
    assert feature_map_to_numpy(msg).max() == 1 and max(msg.cls) == 1


def test_features_beyond_float16_stay_finite() -> None:
    features = np.full((7, 4), 1e6, np.float32)
    features[2] = -1e6
    result = feature_map_to_numpy(feature_map(features=features, dtype="float16"))
    assert (result.max(), result.min()) == (65504, -65504)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features": np.zeros((6, 4), np.float32)}, r"expected features \(7, D\) for 2x3 cells, got \(6, 4\)"),
        ({"features": np.zeros((1, 7, 4), np.float32)}, r"got \(1, 7, 4\)"),
        ({"dtype": "bfloat16"}, "dtype must be float32 or float16, got 'bfloat16'"),
    ],
)
def test_feature_map_refuses_what_does_not_fit(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        feature_map(**changes)

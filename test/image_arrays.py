"""Images as arrays and as files, which tests of messages are made of."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 36, 50


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth() -> np.ndarray:
    """An RGB image whose channels are different linear functions of the position."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.rint(np.stack([20 + 4 * x, 230 - 3 * x - 2 * y, 10 + 6 * y], axis=2)).astype(np.uint8)


def encode(codec: str, rgb_or_grey: np.ndarray, *options: int) -> bytes:
    pixels = rgb_or_grey[..., ::-1] if rgb_or_grey.ndim == 3 else rgb_or_grey
    return cv2.imencode(f".{codec}", pixels, options)[1].tobytes()

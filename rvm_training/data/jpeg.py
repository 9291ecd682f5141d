"""JPEG images in memory. simplejpeg decodes a fifth faster than OpenCV, and both let other threads run meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rvm_training.train_extra import needs_train_extra

UInt8Array = npt.NDArray[np.uint8]


class JpegError(ValueError):
    """Data that is no JPEG image or only a part of one."""


def encode_jpeg(image: UInt8Array, quality: int) -> bytes:
    """RGB (H, W, 3) as a JPEG with half the resolution in colour. Raises `ImportError` that names the extra."""
    return bytes(
        _simplejpeg().encode_jpeg(
            np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
        )
    )


def decode_jpeg(data: bytes) -> UInt8Array:
    """RGB (H, W, 3). Raises `JpegError`, and `ImportError` that names the extra."""
    module = _simplejpeg()
    try:
        return np.asarray(module.decode_jpeg(data, colorspace="RGB"), np.uint8)
    except ValueError as error:
        raise JpegError(f"no JPEG image that can be read: {error}") from error


def _simplejpeg() -> Any:
    with needs_train_extra():
        import simplejpeg
    return simplejpeg

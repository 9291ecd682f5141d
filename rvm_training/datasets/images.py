"""Image files of datasets, read one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.evaluation.benchmark import DatasetError

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_image(path: Path) -> UInt8Array:
    """RGB (H, W, 3). Raises `DatasetError` for what is no image, and for one that is not there."""
    return decode_image(_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> UInt8Array:
    """RGB (H, W, 3) of a JPEG or PNG; `name` is for the error. Raises `DatasetError` for what is no image."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise DatasetError(f"{name} is no image that can be read, or a damaged one")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_depth(path: Path) -> UInt16Array:
    """Depth in millimetres (H, W) from a PNG of 16 bits. Raises `DatasetError` for any other file."""
    data = _bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or image.ndim != 2 or image.dtype != np.uint16:
        raise DatasetError(f"{path} is no depth map: expected a PNG with one channel of 16 bits, in millimetres")
    return np.asarray(image, np.uint16)


def read_images(paths: Iterable[Path]) -> Iterator[UInt8Array]:
    """The images in order, each read when it is asked for."""
    return (read_image(path) for path in paths)


def require_folder(folder: Path, what: str) -> Path:
    """The folder. Raises `DatasetError`, which says what was looked for, if it is none."""
    if not folder.is_dir():
        state = "it is a file" if folder.exists() else "it is not there"
        raise DatasetError(f"looked for {what} in {folder}: {state}")
    return folder


def require_file(path: Path, what: str) -> Path:
    """The file. Raises `DatasetError`, which says what was looked for, if it is none."""
    if not path.is_file():
        raise DatasetError(f"looked for {what} in {path}: it is not there")
    return path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read the image {path}: {error.strerror or error}") from error

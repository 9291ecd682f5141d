"""Label images of datasets as the numbers that they hold, and frames in the size and by the filter of the protocol."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from rvm_training.evaluation.benchmark import DatasetError

UInt8Array = npt.NDArray[np.uint8]


def read_labels(path: Path) -> UInt8Array:
    """A label image, uint8 (H, W): the numbers of a palette's colours, or the values of a grey image.

    Raises `DatasetError` for a file that cannot be read or holds colours, `ImportError` without Pillow. OpenCV gives a
    palette's colours and not its numbers.
    """
    try:
        with _pillow().open(path) as image:
            labels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow raises SyntaxError for some broken files.
        raise DatasetError(f"cannot read the label image {path}: {error}") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DatasetError(
            f"{path} is no label image: expected one number of 8 bits a pixel, with a palette or grey, got "
            f"{labels.dtype} {labels.shape}"
        )
    return labels


def lanczos(frame: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """A frame (H, W, 3) stretched to (height, width) by Pillow's Lanczos filter, as in the release's evaluation."""
    if frame.shape[:2] == size:
        return frame
    image = _pillow()
    return np.asarray(image.fromarray(frame).resize(size[::-1], image.Resampling.LANCZOS))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "reading this dataset needs Pillow, which is not installed: pip install 'rvm_perception[eval]'"
        ) from error
    return Image

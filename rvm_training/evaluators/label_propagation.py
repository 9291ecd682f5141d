"""What the benchmarks of label propagation share: the protocol's settings, and propagation of a stream of features.

Shapes: N = h * w cells of the grid, D width, K labels, H x W original image.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.config import PATCH_SIZE
from rvm_core.tracking.matching import FrameKeys
from rvm_core.tracking.propagation import LabelPropagator, TrackingConfig
from rvm_core.visualize import contact_sheet
from rvm_training.datasets.images import read_image
from rvm_training.datasets.label_images import lanczos
from rvm_training.evaluation.benchmark import Picture
from rvm_training.evaluation.features import Encoder

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

_SHOWN = 4
_SHOWN_WIDTH = 320
_ALPHA = 0.55


def make_config(args: argparse.Namespace, *, top_k: int = 7) -> TrackingConfig:
    """The release's settings, and what the options say in their place."""
    release = TrackingConfig(top_k=top_k)
    return TrackingConfig(
        n_context=args.context or release.n_context, top_k=args.top_k or release.top_k, radius=args.radius
    )


def deviations(config: TrackingConfig, *, top_k: int = 7) -> list[str]:
    """What differs from the release's settings."""
    release = asdict(TrackingConfig(top_k=top_k))
    return [f"{key} is {value}, not {release[key]}" for key, value in asdict(config).items() if value != release[key]]


class Propagation:
    """Propagates the labels of first frames through videos at one processing size."""

    def __init__(self, encoder: Encoder, image_size: tuple[int, int], config: TrackingConfig) -> None:
        self.image_size, self.config = image_size, config
        self.grid = (image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE)
        self._encoder = encoder

    @property
    def settings(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"resize": "Lanczos of Pillow, stretched", **asdict(self.config)}

    def run(
        self, frames: Sequence[Path], labels: Float32Array, advance: Callable[[float], None]
    ) -> Iterator[Float32Array]:
        """Soft labels (h, w, K) of all frames, the first one too, one by one; `labels` (h, w, K) are of the first.

        advance: is told the share of frames that is done.
        """
        images = (lanczos(read_image(path), self.image_size) for path in frames)
        soft = propagate_stream(self._encoder.encode(images, self.image_size), labels, self.config)
        for index, found in enumerate(soft, start=1):
            yield found
            advance(index / len(frames))


def propagate_stream(
    features: Iterable[Tensor], labels: Float32Array, config: TrackingConfig
) -> Iterator[Float32Array]:
    """`propagate_labels` of rvm_core frame by frame: features (N+1, D), [CLS] first, to soft labels (h, w, K).

    Of the features of the past only those of the context are in memory.
    """
    grid = (labels.shape[0], labels.shape[1])
    propagator = LabelPropagator(grid, config)
    memory: deque[FrameKeys] = deque(maxlen=config.n_context)
    track = None
    for tokens in features:
        with torch.no_grad():
            keys = FrameKeys.of(tokens[1:])
            if track is None:
                track = propagator.start(keys, torch.from_numpy(labels).flatten(0, 1).to(tokens.device))
            else:
                track = propagator.step(keys, tuple(memory), [track])[0]
            memory.appendleft(keys)
            soft = track.newest.cpu().numpy()
        yield soft.reshape(*grid, -1)


def shown_frames(count: int) -> list[int]:
    """Which frames of a video the report shows."""
    return sorted({int(i) for i in np.linspace(0, count - 1, _SHOWN).round()})


def painted(image: UInt8Array, labels: npt.NDArray[np.integer]) -> UInt8Array:
    """An image (H, W, 3) with the pixels of each label (H, W) but 0 in its colour."""
    colours = _colours(int(labels.max(initial=0)) + 1)[labels]
    mixed = image * (1 - _ALPHA) + colours * _ALPHA
    return np.where(labels[..., None] > 0, mixed, image).astype(np.uint8)


def compared(video: str, rows: Sequence[Sequence[UInt8Array]], captions: Sequence[str], caption: str) -> Picture:
    """A picture of a video: rows of images, such as truth above prediction, with a caption under each image."""
    images = [_shrunk(image) for row in rows for image in row]
    return Picture(name="frames", image=contact_sheet(images, len(rows[0]), captions), caption=f"{video}: {caption}")


def _shrunk(image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    size = (_SHOWN_WIDTH, max(1, round(height * _SHOWN_WIDTH / width)))
    interpolation = cv2.INTER_AREA if width > _SHOWN_WIDTH else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def _colours(count: int) -> UInt8Array:
    """(count, 3) RGB: neighbours in number are far apart in hue; equal numbers have equal colours everywhere."""
    hues = (np.arange(count) * 0.61803398875 % 1 * 180).astype(np.uint8)
    hsv = np.stack([hues, np.full(count, 200, np.uint8), np.full(count, 255, np.uint8)], axis=-1)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0], np.uint8)

"""Miniature datasets in the real folder layouts of DAVIS 2017, VIP and JHMDB, and an encoder that is quick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.config import PATCH_SIZE

UInt8Array = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 90, 160
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [200] * (3 * 252)
"""256 colours, of which those of 0 to 3 are DAVIS's. With fewer, larger numbers could not be written."""


class ColourEncoder:
    """An encoder whose features of a patch are its mean colour and position, and, as a state has it, the last frame's.

    Sees objects of plain colours well, and quickly.
    """

    name = "colours"
    random = False
    width = 8

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.encoded = 0
        """Frames so far."""

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        return {"weights_hash": self.version, "image_size": list(image_size)}

    def encode(
        self,
        frames: Iterable[UInt8Array],
        image_size: tuple[int, int],
        *,
        policy: str = "stretch",
        reset_every_frame: bool = False,
    ) -> Iterator[Tensor]:
        before: npt.NDArray[np.float64] | None = None
        for frame in frames:
            assert frame.shape == (*image_size, 3) and frame.dtype == np.uint8
            self.encoded += 1
            height, width = image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE
            pixels = frame.astype(np.float64) / 255
            change = np.zeros(image_size) if before is None or reset_every_frame else abs(pixels - before).mean(axis=-1)
            before = pixels
            cells = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            changed = cv2.resize(change, (width, height), interpolation=cv2.INTER_AREA)
            y, x = np.mgrid[:height, :width] / max(height, width)
            features = np.concatenate(
                [4 * (cells - 0.5), x[..., None], y[..., None], 10 * changed[..., None], np.ones((height, width, 2))],
                axis=-1,
            )
            tokens = np.concatenate([np.zeros((1, self.width)), features.reshape(-1, self.width)])
            yield torch.from_numpy(tokens.astype(np.float32))


def moving_boxes(frames: int, *, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    """A red and a green box that move: video (T, H, W, 3), labels (T, H, W) with 1 and 2."""
    random = np.random.default_rng(seed)
    video = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    video[:] = random.integers(90, 130, (HEIGHT, WIDTH, 3))
    for t in range(frames):
        for number, (x, y, step, colour) in enumerate(
            ((12, 10, 2, (220, 20, 20)), (90, 44, -2, (20, 220, 20))), start=1
        ):
            left = x + step * t
            video[t, y : y + 36, left : left + 44] = colour
            labels[t, y : y + 36, left : left + 44] = number
    return video, labels


def write_rgb(path: Path, image: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), image[..., ::-1], options)


def write_palette(path: Path, labels: UInt8Array) -> None:
    """A PNG with a palette, as DAVIS and VIP have them."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def make_davis(root: Path, lengths: dict[str, int]) -> Path:
    """DAVIS with these videos of so many frames."""
    for seed, (name, frames) in enumerate(lengths.items()):
        video, labels = moving_boxes(frames, seed=seed)
        for t in range(frames):
            write_rgb(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", video[t])
            write_palette(root / f"Annotations/480p/{name}/{t:05d}.png", labels[t])
    write_list(root / "ImageSets/2017/val.txt", lengths)
    return root


def make_vip(root: Path, lengths: dict[str, int]) -> Path:
    """VIP_Fine with these videos; the boxes are a hat and a face, a corner is of no class."""
    for seed, (name, frames) in enumerate(lengths.items()):
        video, labels = moving_boxes(frames, seed=seed)
        parts = np.array([0, 1, 13], np.uint8)[labels]
        parts[:, :3, :3] = 255
        for t in range(frames):
            write_rgb(root / f"Images/{name}/{t + 1:012d}.jpg", video[t])
            write_palette(root / f"Annotations/Category_ids/{name}/{t + 1:012d}.png", parts[t])
    write_list(root / "lists/val_videos.txt", lengths)
    return root


def true_joints(frames: int) -> npt.NDArray[np.float64]:
    """(T, 15, 2): x and y, in pixels from 0: a person of 15 joints that moves to the right."""
    row, column = np.divmod(np.arange(15), 5)
    start = np.stack([20 + 22.0 * column, 15 + 25.0 * row], axis=-1)
    return start + np.arange(frames)[:, None, None] * [1.0, 0.5]


def make_jhmdb(root: Path, lengths: dict[str, int], *, split: int = 1) -> Path:
    """JHMDB with these test videos, CLASS/NAME, and one for training that has no files."""
    savemat = import_module("scipy.io").savemat

    colours = np.random.default_rng(0).integers(0, 256, (15, 3))
    lists: dict[str, list[str]] = {}
    for name, frames in lengths.items():
        joints = true_joints(frames)
        for t in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
            for (x, y), colour in zip(joints[t], colours, strict=True):
                cv2.circle(image, (round(x), round(y)), 7, colour.tolist(), -1)
            write_rgb(root / f"Rename_Images/{name}/{t + 1:05d}.png", image)
        path = root / f"joint_positions/{name}/joint_positions.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        # MATLAB counts pixels from 1; its own files are compressed.
        savemat(path, {"pos_img": joints.transpose(2, 1, 0) + 1, "viewpoint": "NE"}, do_compression=True)
        kind, _, video = name.partition("/")
        lists.setdefault(kind, ["not_tested.avi 1", "unused.avi 0"]).append(f"{video}.avi 2")
    for kind, lines in lists.items():
        write_list(root / f"splits/{kind}_test_split{split}.txt", lines)
    return root


def write_list(path: Path, lines: Iterable[str] | Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

"""Depth of the frames of a video by the clip encoder 4DS and its depth readout, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rvm_core.checkpoint import CheckpointError, load_fourds, weights_hash
from rvm_core.fourds import FourDS, windows
from rvm_core.heads import DepthHead
from rvm_core.readout_checkpoint import load_readout

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


class ClipDepth:
    """The encoder and its readout, which sees `frames` frames of `image_size` at once."""

    def __init__(self, encoder: FourDS, head: DepthHead, *, device: str = "cpu") -> None:
        """Raises `ValueError` if the two do not fit."""
        of_encoder, of_head = encoder.config, head.config
        if (of_encoder.width, of_encoder.frames) != (of_head.features, of_head.frames):
            raise ValueError(
                f"the readout is for {of_head.frames} frames of {of_head.features} channels, the encoder gives "
                f"{of_encoder.frames} of {of_encoder.width}"
            )
        self.model = encoder.config.name
        self.weights_hash = weights_hash(encoder)
        self.frames = of_encoder.frames
        self.image_size: tuple[int, int] = of_head.image_size
        """(height, width) of the frames and of their depth maps, pixels."""
        self._encoder, self._head = encoder.to(device).eval(), head.to(device).eval()
        self.device = device

    @classmethod
    def load(cls, path: str | Path, readout: str | Path | None = None, *, device: str = "cpu") -> ClipDepth:
        """From a checkpoint of 4DS; `readout`: a file of its own, None where both are in one, as in the release.

        Raises `CheckpointError` for a file that is not sound, or has no depth readout.
        """
        encoder = load_fourds(path)
        try:
            head = load_readout(readout or path, kind="depth")
        except CheckpointError as error:
            raise CheckpointError(
                readout or path, "there is no sound depth readout in it", tuple(error.problems)
            ) from error
        assert isinstance(head, DepthHead)
        return cls(encoder, head, device=device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[UInt8Array]) -> list[Float32Array]:
        """The depth of each of any number of frames, by windows, the last of which is filled with zeros.

        images: RGB uint8 (H, W, 3) of `image_size`, in order. Returns float32 (H, W) each, in the unit that the readout
        was trained for; far is more. Raises `ValueError` for images of another size.
        """
        found: list[Float32Array] = []
        for image in images:
            if image.shape != (*self.image_size, 3):
                raise ValueError(f"expected images {(*self.image_size, 3)}, got {image.shape}")
        if not images:
            return found
        video = torch.from_numpy(np.stack(images))
        for clip, real in windows(video, self.frames):
            pixels = clip.to(self.device).permute(0, 3, 1, 2).to(torch.float32) / 255.0
            depth = self._head(self._encoder(pixels.unsqueeze(0)))[0, :real, ..., 0]
            found += list(depth.cpu().numpy())
        return found

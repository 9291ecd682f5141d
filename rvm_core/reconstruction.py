"""Masked reconstruction of a video's frames, as in pretraining: from earlier frames and a few of their own patches.

Shapes: H W frame, rows = H/16, cols = W/16, N = rows * cols patches, V visible ones among them, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.config import PATCH_SIZE
from rvm_core.model import RVM

SOURCES = 4
"""Consecutive source frames, as in pretraining."""

UInt8Array = npt.NDArray[np.uint8]


def choose_visible(rows: int, cols: int, share: float, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Places (V,) of a random share of the patches of a grid, ascending: at least one, and at least one stays hidden.

    Raises `ValueError` if the share is not over 0 and under 1, or there is only one patch.
    """
    if not 0 < share < 1 or rows * cols < 2:
        raise ValueError(f"expected a share between 0 and 1 of at least 2 patches, got {share:g} of {rows * cols}")
    number = min(max(1, int(share * rows * cols)), rows * cols - 1)
    return np.sort(np.random.default_rng(seed).permutation(rows * cols)[:number])


class Reconstructor:
    """Reconstructs frames of one video. The result is that of `RVM.reconstruct`, but a frame is encoded only once.

    Args:
        model: with a decoder; it computes where its weights are.
        visible: places of the visible patches, int64 (V,).

    Raises `ValueError` if the model has no decoder.
    """

    def __init__(self, model: RVM, visible: npt.NDArray[np.int64]) -> None:
        if model.decoder is None:
            raise ValueError("this model has no decoder; load it with load_checkpoint(path, decoder=True)")
        self._model, self._decoder = model, model.decoder
        self._device = model.encoder.cls_token.device
        self._visible = torch.from_numpy(visible).to(self._device)

    @property
    def max_gap(self) -> int:
        """Largest number of frames between the last source and the target."""
        return self._decoder.config.max_time_gap - 1

    @torch.inference_mode()
    def encode(self, frame: UInt8Array) -> Tensor:
        """A frame, uint8 RGB (H, W, 3), to what it is as a source: (1, N+1, D)."""
        tokens: Tensor = self._model.encoder(self._pixels(frame))
        return tokens

    @torch.inference_mode()
    def reconstruct(self, sources: Sequence[Tensor], target: UInt8Array, gap: int) -> UInt8Array:
        """The target frame, uint8 RGB (H, W, 3), from consecutive encoded sources and its visible patches.

        gap: frames from the last source to the target, 0 to `max_gap`.
        """
        height, width = target.shape[:2]
        state = self._model.init_state(1, height, width)
        features = []
        for tokens in sources:
            state = self._model.core(tokens, state)
            features.append(state)
        patches = self._model.encoder.tokenize(self._pixels(target))[:, self._visible]
        shown = self._model.encoder.encode(patches)
        pixels = self._decoder(
            torch.stack(features, dim=1),
            shown[:, None],
            self._visible[None, None],
            torch.tensor([[gap]], device=self._device),
            (height // PATCH_SIZE, width // PATCH_SIZE),
        )
        image = (pixels[0, 0].clamp(0, 1) * 255).round().permute(1, 2, 0).to("cpu", torch.uint8)
        return np.asarray(image.numpy())

    def _pixels(self, frame: UInt8Array) -> Tensor:
        return torch.from_numpy(frame).to(self._device).permute(2, 0, 1)[None].float() / 255


def hide_patches(frame: UInt8Array, visible: npt.NDArray[np.int64], shade: int = 110) -> UInt8Array:
    """A frame (H, W, 3) of which only the visible patches are shown, the others in grey."""
    rows, cols = frame.shape[0] // PATCH_SIZE, frame.shape[1] // PATCH_SIZE
    is_shown = np.zeros(rows * cols, bool)
    is_shown[visible] = True
    pixels = is_shown.reshape(rows, cols).repeat(PATCH_SIZE, axis=0).repeat(PATCH_SIZE, axis=1)
    return np.where(pixels[..., None], frame, np.uint8(shade))

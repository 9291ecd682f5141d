"""RVM: composition of encoder, recurrent core and, for training and visual checks, decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE, RVMConfig, check_image_size
from rvm_core.decoder import Decoder
from rvm_core.encoder import Encoder
from rvm_core.layers import initialize
from rvm_core.recurrent import RecurrentCore


class RVM(nn.Module):
    """Recurrent video masked autoencoder (arXiv 2512.13684): one frame and a state in, features and the new state out.

    Shapes: B batch, H W image in pixels (multiples of 16), N = H/16 * W/16 patch tokens in row-major order,
    D = config.width; tokens carry [CLS] first, so N+1. The state is a value: passed in, returned, never kept.

    Args:
        config: the sizes; `config.decoder` adds the decoder.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: RVMConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.core = RecurrentCore(config)
        self.decoder = Decoder(config.decoder, config.width) if config.decoder else None
        if seed is not None:
            initialize(self, torch.Generator().manual_seed(seed))

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One recurrent step.

        frames (B, 3, H, W) float RGB in [0, 1]; state (B, N+1, D) float32.
        Returns (features, state), both (B, N+1, D) float32; in this model they are one tensor.
        """
        features = self.core(self.encoder(frames), state)
        return features, features

    def init_state(self, batch_size: int, height: int, width: int) -> Tensor:
        """The state before the first frame: zeros (B, N+1, D), float32, on the device of the weights.

        Raises `ValueError` unless height and width, in pixels, are multiples of 16.
        """
        check_image_size(height, width)
        tokens = (height // PATCH_SIZE) * (width // PATCH_SIZE) + 1
        return torch.zeros(batch_size, tokens, self.config.width, device=self.encoder.cls_token.device)

    def reconstruct(self, source: Tensor, target: Tensor, time_gaps: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Masked reconstruction, as in pretraining.

        source (B, T, 3, H, W) and target (B, K, 3, H, W) float RGB in [0, 1]; time_gaps (B, K) int64, frames from the
        last source frame to each target; visible (B, K, V) int64, the patches of each target that are shown, as from
        `decoder.visible_patches`.
        Returns (reconstruction (B, K, 3, H, W), source features (B, T, N+1, D)).
        Raises `ValueError` if the model has no decoder.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder; load it with load_checkpoint(path, decoder=True)")
        batch, _, _, height, width = source.shape
        encoded = self.encoder(source.flatten(0, 1)).unflatten(0, source.shape[:2])
        state = self.init_state(batch, height, width)
        features = []
        for tokens in encoded.unbind(1):
            state = self.core(tokens, state)
            features.append(state)
        patches = self.encoder.tokenize(target.flatten(0, 1))
        index = visible.flatten(0, 1).unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        targets = self.encoder.encode(patches.gather(1, index)).unflatten(0, target.shape[:2])
        grid = (target.shape[-2] // PATCH_SIZE, target.shape[-1] // PATCH_SIZE)
        source_features = torch.stack(features, dim=1)
        return self.decoder(source_features, targets, visible, time_gaps, grid), source_features

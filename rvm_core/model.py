"""RVM: composition of encoder, recurrent core and, for training and visual checks, decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from rvm_core.config import PATCH_SIZE, RVMConfig, check_image_size
from rvm_core.decoder import Decoder
from rvm_core.encoder import Encoder
from rvm_core.layers import initialize
from rvm_core.recurrent import RecurrentCore
from rvm_core.streaming import State, StreamingEncoder


class RVM(StreamingEncoder):
    """Recurrent video masked autoencoder (arXiv 2512.13684): one frame and a state in, features and the new state out.

    Shapes: B batch, H W image in pixels (multiples of 16), N = H/16 * W/16 patch tokens in row-major order,
    D = config.width; tokens carry [CLS] first, so N+1. The state is a value: passed in, returned, never kept. A model
    without memory (`config.memory`) has the empty tuple for a state.

    Args:
        config: the sizes; `config.decoder` adds the decoder.
        seed: of the random initial weights; None leaves them uninitialised, for a loader that fills them.
    """

    def __init__(self, config: RVMConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config: RVMConfig = config
        self.encoder = Encoder(config)
        self.core = RecurrentCore(config)
        self.decoder = Decoder(config.decoder, config.width) if config.decoder else None
        if seed is not None:
            initialize(self, torch.Generator().manual_seed(seed))

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """One recurrent step.

        frames (B, 3, H, W) float RGB in [0, 1]; state (B, N+1, D) float32.
        Returns (features, state), both (B, N+1, D) float32; in this model they are one tensor.
        """
        tokens = self.encoder(frames)
        if not self.config.memory:
            return self.core(tokens, torch.zeros_like(tokens)), ()
        features = self.core(tokens, state)
        return features, features

    @property
    def features_are_state(self) -> bool:
        return self.config.memory

    def init_state(self, batch_size: int, height: int, width: int) -> State:
        """The state before the first frame: zeros (B, N+1, D), float32, on the device of the weights.

        Raises `ValueError` unless height and width, in pixels, are multiples of 16.
        """
        check_image_size(height, width)
        if not self.config.memory:
            return ()
        tokens = (height // PATCH_SIZE) * (width // PATCH_SIZE) + 1
        return torch.zeros(batch_size, tokens, self.config.width, device=self.encoder.cls_token.device)

    def reconstruct(self, source: Tensor, target: Tensor, time_gaps: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Masked reconstruction, as in pretraining.

        source (B, T, 3, H, W) and target (B, K, 3, H, W) float RGB in [0, 1]; time_gaps (B, K) int64, frames from the
        last source frame to each target; visible (B, K, V) int64, the patches of each target that are shown, as from
        `decoder.visible_patches`.
        Returns (reconstruction (B, K, 3, H, W), source features (B, T, N+1, D)).
        Raises `ValueError` if the model has no decoder, and for several source frames if it has no memory.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder; load it with load_checkpoint(path, decoder=True)")
        if not self.config.memory and source.shape[1] != 1:
            raise ValueError(f"expected one source frame for a model without memory, got {source.shape[1]}")
        source_features = self.core.unroll(self.encoder(source.flatten(0, 1)).unflatten(0, source.shape[:2]))
        patches = self.encoder.tokenize(target.flatten(0, 1))
        index = visible.flatten(0, 1).unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        targets = self.encoder.encode(patches.gather(1, index)).unflatten(0, target.shape[:2])
        grid = (target.shape[-2] // PATCH_SIZE, target.shape[-1] // PATCH_SIZE)
        return self.decoder(source_features, targets, visible, time_gaps, grid), source_features

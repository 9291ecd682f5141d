"""Sizes of the models that learn as masked autoencoders: an encoder, and what decodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from rvm_core.config import FourDSConfig, TRecViTConfig


@dataclass(frozen=True, kw_only=True)
class TubeDecoderConfig:
    """Sizes of the decoder of `TubeMAE`: ours, as nothing of the paper's is public. Raises `ValueError`."""

    width: int = 384
    """Channels of a decoder token."""
    depth: int = 4
    """Number of ViT blocks."""
    num_heads: int = 6
    """Attention heads; must divide `width`."""
    mlp_width: int = 1536
    """Hidden channels of each block's MLP."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"TubeDecoderConfig.{name} must be positive, got {value}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got {self.num_heads} and {self.width}")


@dataclass(frozen=True, kw_only=True)
class TubeMAEConfig:
    """A TRecViT with a decoder. Raises `ValueError` at construction."""

    encoder: TRecViTConfig
    """What is pretrained."""
    decoder: TubeDecoderConfig = field(default_factory=TubeDecoderConfig)
    """What is dropped afterwards."""

    def __post_init__(self) -> None:
        if self.encoder.classes is not None:
            raise ValueError("TubeMAEConfig.encoder must have no classifier: pretraining has no use for it")

    @property
    def name(self) -> str:
        """Of the encoder."""
        return self.encoder.name


@dataclass(frozen=True, kw_only=True)
class TubeletMAEConfig:
    """A 4DS whose last blocks decode. Raises `ValueError` at construction."""

    encoder: FourDSConfig
    """What is pretrained, with the blocks that decode."""
    decoder_blocks: int = 4
    """How many of the last blocks decode: they see the hidden tubelets too. The number is ours."""

    def __post_init__(self) -> None:
        if not 1 <= self.decoder_blocks < self.encoder.depth:
            raise ValueError(
                f"TubeletMAEConfig.decoder_blocks must be at least 1 and under the depth, {self.encoder.depth}, got "
                f"{self.decoder_blocks}"
            )

    @property
    def name(self) -> str:
        """Of the encoder."""
        return self.encoder.name

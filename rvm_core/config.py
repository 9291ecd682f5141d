"""Sizes of the model: frozen dataclasses and the released sizes by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

PATCH_SIZE = 16
"""Pixels along each side of a patch, one token each."""


def _check_positive(config: DecoderConfig | RVMConfig) -> None:
    for field, value in vars(config).items():
        if isinstance(value, int) and value <= 0:
            raise ValueError(f"{type(config).__name__}.{field} must be positive, got {value}")


def _check_divides(divisor: int, number: int, divisor_name: str, number_name: str) -> None:
    if number % divisor:
        raise ValueError(f"{divisor_name} must divide {number_name}, got {divisor} and {number}")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder, which only pretraining and visual checks use. Defaults are those of every release."""

    width: int = 512
    """Channels of a decoder token."""
    depth: int = 8
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads; must divide `width`."""
    mlp_width: int = 2048
    """Hidden channels of each block's MLP."""
    max_time_gap: int = 64
    """Time gaps run from 0 to one less than this, in frames."""

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self.num_heads, self.width, "num_heads", "width")


@dataclass(frozen=True, kw_only=True)
class RVMConfig:
    """Sizes of the encoder and its recurrent core (paper, table of model sizes).

    Raises `ValueError` at construction if a size is not positive or heads do not divide the width.
    """

    width: int
    """Channels of a token, of the state and of the features."""
    encoder_depth: int
    """Number of ViT blocks."""
    encoder_heads: int
    """Attention heads of the ViT; must divide `width`."""
    encoder_mlp_width: int
    """Hidden channels of each ViT block's MLP."""
    core_depth: int
    """Number of blocks in the transformer of the recurrent core."""
    core_heads: int
    """Attention heads of the core; must divide `width`."""
    core_mlp_width: int
    """Hidden channels of each core block's MLP."""
    decoder: DecoderConfig | None = None
    """None where the decoder is left out, as in all inference."""

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self.encoder_heads, self.width, "encoder_heads", "width")
        _check_divides(self.core_heads, self.width, "core_heads", "width")

    @classmethod
    def named(cls, name: str, *, decoder: bool = False) -> RVMConfig:
        """The configuration of a released size: "rvm_s16", "rvm_b16", "rvm_l16" or "rvm_h16".

        Raises `ValueError`, naming the known sizes, for any other name.
        """
        if name not in NAMED_SIZES:
            raise ValueError(f"unknown model {name!r}; known models: {', '.join(NAMED_SIZES)}")
        return replace(NAMED_SIZES[name], decoder=DecoderConfig() if decoder else None)

    @property
    def name(self) -> str:
        """The released name of this size, or "rvm_custom"."""
        sizes = replace(self, decoder=None)
        return next((name for name, config in NAMED_SIZES.items() if config == sizes), "rvm_custom")


def _size(width: int, depth: int, heads: int, mlp: int, core_heads: int, core_mlp: int) -> RVMConfig:
    return RVMConfig(
        width=width,
        encoder_depth=depth,
        encoder_heads=heads,
        encoder_mlp_width=mlp,
        core_depth=4,
        core_heads=core_heads,
        core_mlp_width=core_mlp,
    )


NAMED_SIZES: dict[str, RVMConfig] = {
    "rvm_s16": _size(384, 12, 6, 1536, 8, 2048),
    "rvm_b16": _size(768, 12, 12, 3072, 12, 3072),
    "rvm_l16": _size(1024, 24, 16, 4096, 16, 4096),
    "rvm_h16": _size(1280, 32, 16, 5120, 16, 5120),
}
"""The released sizes. The loader does not need this table: it infers every number from the checkpoint."""


def check_image_size(height: int, width: int) -> None:
    """Raises `ValueError` unless both sides, in pixels, are positive multiples of the patch size."""
    if height <= 0 or width <= 0 or height % PATCH_SIZE or width % PATCH_SIZE:
        raise ValueError(f"expected an image height and width that are multiples of {PATCH_SIZE}, got {height}x{width}")

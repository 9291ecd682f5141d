"""Sizes of the model: frozen dataclasses and the released sizes by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

PATCH_SIZE = 16
"""Pixels along each side of a patch, one token each."""
TUBE_FRAMES = 2
"""Frames of a patch of the clip encoder 4DS."""


def _check_positive(config: object) -> None:
    for field, value in vars(config).items():
        if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
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
    memory: bool = True
    """False: every frame meets the state of a stream's start, which makes an image encoder of the model; pretrained
    with one source frame, one like SiamMAE (arXiv 2305.14344)."""

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self.encoder_heads, self.width, "encoder_heads", "width")
        _check_divides(self.core_heads, self.width, "core_heads", "width")

    @classmethod
    def named(cls, name: str, *, decoder: bool = False) -> RVMConfig:
        """The configuration of a named size: "rvm_nano", which ships with this package, a released one, "rvm_s16",
        "rvm_b16", "rvm_l16" or "rvm_h16", or one of them without memory: "rvm_s16_image" and so on.

        Raises `ValueError`, naming the known sizes, for any other name.
        """
        known = NAMED_SIZES | IMAGE_SIZES
        if name not in known:
            raise ValueError(f"unknown model {name!r}; known models: {', '.join(known)}")
        trained_with = _NANO_DECODER if name.removesuffix(IMAGE_SUFFIX) == "rvm_nano" else DecoderConfig()
        return replace(known[name], decoder=trained_with if decoder else None)

    @property
    def name(self) -> str:
        """The name of this size, or "rvm_custom", "rvm_custom_image"."""
        sizes = self.encoder_only
        custom = "rvm_custom" if self.memory else f"rvm_custom{IMAGE_SUFFIX}"
        return next((name for name, config in (NAMED_SIZES | IMAGE_SIZES).items() if config == sizes), custom)

    @property
    def encoder_only(self) -> RVMConfig:
        """Without the decoder: all that features depend on."""
        return replace(self, decoder=None)


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


_NANO_DECODER = DecoderConfig(width=128, depth=3, num_heads=4, mlp_width=512)

NAMED_SIZES: dict[str, RVMConfig] = {
    "rvm_nano": RVMConfig(
        width=128,
        encoder_depth=6,
        encoder_heads=4,
        encoder_mlp_width=512,
        core_depth=2,
        core_heads=4,
        core_mlp_width=512,
    ),
    "rvm_s16": _size(384, 12, 6, 1536, 8, 2048),
    "rvm_b16": _size(768, 12, 12, 3072, 12, 3072),
    "rvm_l16": _size(1024, 24, 16, 4096, 16, 4096),
    "rvm_h16": _size(1280, 32, 16, 5120, 16, 5120),
}
"""The size that ships with this package and the released ones. The loader does not need this table: it infers every
number from the checkpoint."""

IMAGE_SUFFIX = "_image"
"""Of the names of models without memory."""

IMAGE_SIZES: dict[str, RVMConfig] = {
    f"{name}{IMAGE_SUFFIX}": replace(config, memory=False) for name, config in NAMED_SIZES.items()
}
"""The same sizes as image encoders."""


@dataclass(frozen=True, kw_only=True)
class TRecViTConfig:
    """Sizes of a TRecViT (arXiv 2412.14294). Raises `ValueError` at construction for sizes that do not fit together."""

    width: int
    """Channels of a token and of the features."""
    depth: int
    """Number of blocks, each a recurrent block over time and then a ViT block over the tokens of a frame."""
    heads: int
    """Attention heads of the ViT blocks; must divide `width`."""
    mlp_width: int
    """Hidden channels of each ViT block's MLP."""
    recurrent_width: int
    """Channels of the state."""
    recurrent_heads: int
    """Blocks on the diagonal of the gates' matrices; must divide `recurrent_width`."""
    conv_width: int = 4
    """Frames that the convolution over time sees, the current one among them."""
    position_grid: int = 14
    """Rows, and columns, of the grid of learned positions; other grids resize it."""
    classifier_width: int | None = None
    """Hidden channels of the classifier; None where there is none."""
    classes: int | None = None
    """Of the classifier; None where there is none."""

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self.heads, self.width, "heads", "width")
        _check_divides(self.recurrent_heads, self.recurrent_width, "recurrent_heads", "recurrent_width")
        if (self.classes is None) != (self.classifier_width is None):
            raise ValueError("expected both classes and classifier_width, or neither")

    @classmethod
    def named(cls, name: str) -> TRecViTConfig:
        """The configuration of a named size, without classifier. Raises `ValueError`, naming them, for another name."""
        if name not in TRECVIT_SIZES:
            raise ValueError(f"unknown model {name!r}; known models: {', '.join(TRECVIT_SIZES)}")
        return TRECVIT_SIZES[name]

    @property
    def name(self) -> str:
        """The name of this size, or "trecvit_custom"."""
        sizes = self.encoder_only
        return next((name for name, config in TRECVIT_SIZES.items() if config == sizes), "trecvit_custom")

    @property
    def encoder_only(self) -> TRecViTConfig:
        """Without the classifier: all that features depend on."""
        return replace(self, classes=None, classifier_width=None)


TRECVIT_SIZES: dict[str, TRecViTConfig] = {
    "trecvit_b16": TRecViTConfig(
        width=768, depth=12, heads=12, mlp_width=3072, recurrent_width=1536, recurrent_heads=12
    )
}
"""The released sizes of TRecViT, whose recurrence is twice as wide as that of the paper's 111M."""


ENCODER_NAMES: tuple[str, ...] = (*NAMED_SIZES, *TRECVIT_SIZES, *IMAGE_SIZES)
"""Every model that is stepped frame by frame: RVM, TRecViT, and RVM without memory, such as "rvm_s16_image"."""


@dataclass(frozen=True, kw_only=True)
class FourDSConfig:
    """Sizes of a 4DS encoder (arXiv 2412.15212). Raises `ValueError` at construction for sizes that do not fit."""

    width: int
    """Channels of a token and of the features."""
    depth: int
    """Number of ViT blocks."""
    heads: int
    """Attention heads; must divide `width`."""
    mlp_width: int
    """Hidden channels of each block's MLP."""
    position_grid: tuple[int, int, int] = (8, 14, 14)
    """Pairs of frames, rows and columns of the learned positions. Other rows and columns resize them."""

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self.heads, self.width, "heads", "width")
        if min(self.position_grid) <= 0:
            raise ValueError(f"FourDSConfig.position_grid must be positive, got {self.position_grid}")

    @classmethod
    def named(cls, name: str) -> FourDSConfig:
        """The configuration of a named size. Raises `ValueError`, naming them, for another name."""
        if name not in FOURDS_SIZES:
            raise ValueError(f"unknown model {name!r}; known models: {', '.join(FOURDS_SIZES)}")
        return FOURDS_SIZES[name]

    @property
    def name(self) -> str:
        """The name of this size, or "4ds_custom"."""
        return next((name for name, config in FOURDS_SIZES.items() if config == self), "4ds_custom")

    @property
    def encoder_only(self) -> FourDSConfig:
        """All that features depend on."""
        return self

    @property
    def frames(self) -> int:
        """Of a window, that is seen at once."""
        return TUBE_FRAMES * self.position_grid[0]


def _fourds(width: int, depth: int, heads: int, mlp_width: int) -> FourDSConfig:
    return FourDSConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width)


FOURDS_SIZES: dict[str, FourDSConfig] = {
    "4ds_s16": _fourds(384, 12, 6, 1536),
    "4ds_b16": _fourds(768, 12, 12, 3072),
    "4ds_l16": _fourds(1024, 24, 16, 4096),
    "4ds_h16": _fourds(1280, 32, 16, 5120),
    "4ds_g16": _fourds(1664, 48, 16, 8192),
    "4ds_e16": _fourds(1792, 56, 16, 15360),
}
"""The sizes of 4DS; B and e are released."""


def check_image_size(height: int, width: int) -> None:
    """Raises `ValueError` unless both sides, in pixels, are positive multiples of the patch size."""
    if height <= 0 or width <= 0 or height % PATCH_SIZE or width % PATCH_SIZE:
        raise ValueError(f"expected an image height and width that are multiples of {PATCH_SIZE}, got {height}x{width}")

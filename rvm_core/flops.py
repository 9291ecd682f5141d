"""How many floating-point operations one recurrent step takes."""

from __future__ import annotations

from rvm_core.config import PATCH_SIZE, RVMConfig, TRecViTConfig, check_image_size


def step_flops(config: RVMConfig | TRecViTConfig, image_size: tuple[int, int]) -> int:
    """FLOPs of one step of one stream: two for each multiplication in a matrix product.

    image_size is (height, width) in pixels. Norms, softmax, activations and what is done to each channel by itself are
    not counted. Raises `ValueError` for an image size that is not a positive multiple of 16.
    """
    check_image_size(*image_size)
    patches = (image_size[0] // PATCH_SIZE) * (image_size[1] // PATCH_SIZE)
    tokens, width = patches + 1, config.width
    embedding = 2 * patches * (3 * PATCH_SIZE**2) * width
    if isinstance(config, TRecViTConfig):
        return embedding + config.depth * _trecvit_block(config, tokens)
    square = 2 * tokens * width * width
    attention = _attention(tokens, width)
    encoder_block = _vit_block(tokens, width, config.encoder_mlp_width)
    core_block = 2 * attention + 2 * (2 * tokens * width * config.core_mlp_width)
    gates = 4 * square
    return embedding + config.encoder_depth * encoder_block + gates + config.core_depth * core_block


def _attention(tokens: int, width: int) -> int:
    # Scores and weighted values; heads share the width, so their number does not matter.
    return 4 * (2 * tokens * width * width) + 2 * (2 * tokens * tokens * width)


def _vit_block(tokens: int, width: int, mlp_width: int) -> int:
    return _attention(tokens, width) + 2 * (2 * tokens * width * mlp_width)


def _trecvit_block(config: TRecViTConfig, tokens: int) -> int:
    inner = config.recurrent_width
    products = 3 * (2 * tokens * config.width * inner)
    gates = 2 * (2 * tokens * inner * inner // config.recurrent_heads)
    return products + gates + _vit_block(tokens, config.width, config.mlp_width)

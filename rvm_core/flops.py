"""How many floating-point operations one recurrent step takes."""

from __future__ import annotations

from rvm_core.config import PATCH_SIZE, RVMConfig, check_image_size


def step_flops(config: RVMConfig, image_size: tuple[int, int]) -> int:
    """FLOPs of one step of one stream: two for each multiplication in a matrix product.

    image_size is (height, width) in pixels. Norms, softmax and activations are
    not counted. Raises `ValueError` for an image size that is not a positive multiple of 16.
    """
    check_image_size(*image_size)
    patches = (image_size[0] // PATCH_SIZE) * (image_size[1] // PATCH_SIZE)
    tokens, width = patches + 1, config.width
    square = 2 * tokens * width * width
    # Scores and weighted values; heads share the width, so their number does not matter.
    attention = 4 * square + 2 * (2 * tokens * tokens * width)
    encoder_block = attention + 2 * (2 * tokens * width * config.encoder_mlp_width)
    core_block = 2 * attention + 2 * (2 * tokens * width * config.core_mlp_width)
    embedding = 2 * patches * (3 * PATCH_SIZE**2) * width
    gates = 4 * square
    return embedding + config.encoder_depth * encoder_block + gates + config.core_depth * core_block

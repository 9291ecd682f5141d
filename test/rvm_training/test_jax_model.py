"""What the jax step puts in the place of torchax's own operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

jax = pytest.importorskip("jax", reason="needs the extra `train`")
pytest.importorskip("torchax", reason="needs the extra `train`")

from torchax.interop import call_torch  # noqa: E402

from rvm_core.encoder import PatchEmbedding  # noqa: E402
from rvm_core.fourds import TubeEmbedding  # noqa: E402
from rvm_training.jax_model import PatchProduct, TubeProduct, attention  # noqa: E402

SAME = 1e-5
"""float32 sums of some hundred products in another order."""
BFLOAT16 = 2**-8
"""Half a unit in the last of bfloat16's 8 binary digits, for outputs up to 2."""


def heads(seed: int, dtype: str) -> list[Any]:
    """Query, key and value, whose scores are large enough that a softmax in bfloat16 would be far off."""
    random = np.random.default_rng(seed)
    shapes = [(2, 3, 7, 16), (2, 3, 65, 16), (2, 3, 65, 16)]
    scales = (4.0, 4.0, 0.5)
    return [jax.numpy.asarray(scale * random.normal(size=s), dtype) for s, scale in zip(shapes, scales, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", SAME), ("bfloat16", BFLOAT16)])
def test_attention_has_a_float32_softmax(dtype: str, tolerance: float) -> None:
    jax.config.update("jax_platforms", "cpu")
    inputs = heads(0, dtype)
    out = call_torch(F.scaled_dot_product_attention, *inputs)
    query, key, value = [torch.from_numpy(np.asarray(x, np.float64)) for x in inputs]
    assert str(out.dtype) == dtype
    np.testing.assert_allclose(
        np.asarray(out, np.float64), F.scaled_dot_product_attention(query, key, value), rtol=tolerance, atol=tolerance
    )


def test_softmax_is_never_in_bfloat16() -> None:
    program = jax.make_jaxpr(attention)(*heads(0, "bfloat16"))
    exponentials = [line for line in str(program).splitlines() if "= exp " in line]
    assert exponentials
    assert all(":f32[" in line for line in exponentials)


def test_patch_product_is_the_convolution() -> None:
    torch.manual_seed(0)
    convolution, product = PatchEmbedding(24), PatchProduct(24)
    for parameter in convolution.parameters():
        torch.nn.init.normal_(parameter)
    product.load_state_dict(convolution.state_dict())
    frames = torch.rand(2, 3, 32, 48)
    expected = convolution(frames)
    assert expected.shape == (2, 24, 2, 3)
    torch.testing.assert_close(product(frames), expected, rtol=SAME, atol=SAME * float(expected.detach().abs().max()))


def test_tube_product_is_the_convolution() -> None:
    torch.manual_seed(0)
    convolution, product = TubeEmbedding(24), TubeProduct(24)
    for parameter in convolution.parameters():
        torch.nn.init.normal_(parameter)
    product.load_state_dict(convolution.state_dict())
    clips = torch.rand(2, 3, 6, 32, 48)
    expected = convolution(clips)
    assert expected.shape == (2, 24, 3, 2, 3)
    torch.testing.assert_close(product(clips), expected, rtol=SAME, atol=SAME * float(expected.detach().abs().max()))

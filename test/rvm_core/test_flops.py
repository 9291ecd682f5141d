"""The analytic count of FLOPs against published sizes and against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rvm_core.config import RVMConfig, TRecViTConfig
from rvm_core.flops import step_flops
from rvm_core.model import RVM
from rvm_core.streaming import StreamingEncoder
from rvm_core.trecvit import TRecViT

ROUNDING = 0.005
"""The known figures have three digits."""


@pytest.fixture(autouse=True)
def ready_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions for another size are made with products too, but only once."""
    for module in ("encoder", "trecvit"):
        monkeypatch.setattr(f"rvm_core.{module}.resize_grid", lambda table, rows, cols: table.new_zeros(rows, cols, 1))


def counted(model: StreamingEncoder, size: tuple[int, int], device: str) -> int:
    frames, state = torch.zeros(1, 3, *size, device=device), model.init_state(1, *size)
    # The counter knows matrix products; a fused attention would hide its own.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(frames, state)
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "gflops"), [("rvm_s16", 19.1), ("rvm_b16", 68.6), ("rvm_l16", 201)])
def test_released_sizes(name: str, gflops: float) -> None:
    assert step_flops(RVMConfig.named(name), (256, 256)) == pytest.approx(gflops * 1e9, rel=ROUNDING)


@pytest.mark.parametrize("size", [(64, 96), (256, 256), (480, 880)])
def test_small_model_as_torch_counts(size: tuple[int, int]) -> None:
    config = RVMConfig.named("rvm_s16")
    with torch.device("meta"):
        model = RVM(config, seed=None).to("meta")
    assert step_flops(config, size) == counted(model, size, "meta")


def test_tiny_model_as_torch_counts(tiny_model: RVM) -> None:
    """A real run, with sizes that differ between encoder and core."""
    assert step_flops(tiny_model.config, (64, 96)) == counted(tiny_model, (64, 96), "cpu")


@pytest.mark.parametrize("size", [(64, 96), (224, 224)])
def test_trecvit_as_torch_counts(size: tuple[int, int]) -> None:
    config = TRecViTConfig.named("trecvit_b16")
    with torch.device("meta"):
        model = TRecViT(config, seed=None).to("meta")
    assert step_flops(config, size) == counted(model, size, "meta")


def test_size_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        step_flops(RVMConfig.named("rvm_s16"), (256, 250))

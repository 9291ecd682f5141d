"""The fused step against the model it is made from."""

import copy

import pytest
import torch

from rvm_core import RVM, RVMConfig
from rvm_core.fused import FusedStep, cast_blocks, cast_copy

FP32_TOLERANCE = 5e-6
"""On features up to 4: the same products in another order of sums."""

BF16_TOLERANCE = 0.03
"""Another order of float32 sums now and then rounds to the next bfloat16, which 8 bits set 0.016 apart at 4."""

CONFIGS = {
    "core heads unlike encoder's": RVMConfig(
        width=96,
        encoder_depth=2,
        encoder_heads=3,
        encoder_mlp_width=256,
        core_depth=3,
        core_heads=4,
        core_mlp_width=320,
    ),
    "one core block": RVMConfig(
        width=64,
        encoder_depth=1,
        encoder_heads=4,
        encoder_mlp_width=128,
        core_depth=1,
        core_heads=2,
        core_mlp_width=128,
    ),
}
STEPS = 6


def make_model(name: str) -> RVM:
    """A model none of whose parameters is zero or one, so that each of them matters."""
    model = RVM(CONFIGS[name], seed=3).requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def make_frames(batch_size: int, size: tuple[int, int]) -> torch.Tensor:
    shape = (STEPS, batch_size, *size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def run_both(model: RVM, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (T, B, N+1, D) of the fused step and of the model, each carrying its own state."""
    step = FusedStep(model)
    fused_state = state = model.init_state(*frames.shape[1:4])
    fused, plain = [], []
    with torch.inference_mode():
        for frame in frames:
            fused_state = step(frame, fused_state)
            _, state = model(frame.permute(0, 3, 1, 2).float() / 255, state)
            fused.append(fused_state)
            plain.append(state)
    return torch.stack(fused), torch.stack(plain)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("batch_size", "size"), [(1, (64, 96)), (3, (48, 32))])
def test_fused_step_equals_model(name: str, batch_size: int, size: tuple[int, int]) -> None:
    fused, plain = run_both(make_model(name), make_frames(batch_size, size))
    torch.testing.assert_close(fused, plain, rtol=0, atol=FP32_TOLERANCE)
    # The state was carried, and streams differ.
    assert not torch.allclose(plain[0], plain[1], atol=0.05)
    assert batch_size == 1 or not torch.allclose(plain[:, 0], plain[:, 1], atol=0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_step_equals_model_in_bfloat16(name: str) -> None:
    frames = make_frames(2, (64, 32))
    model = make_model(name)
    _, exact = run_both(model, frames)
    fused, plain = run_both(cast_blocks(model, torch.bfloat16), frames)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, plain, rtol=0, atol=BF16_TOLERANCE)
    assert (fused - exact).abs().max() > 100 * FP32_TOLERANCE


def test_fused_step_equals_released_format(tiny_model: RVM) -> None:
    fused, plain = run_both(tiny_model, make_frames(2, (64, 96)))
    torch.testing.assert_close(fused, plain, rtol=0, atol=FP32_TOLERANCE)


def test_parameters_that_are_not_fused_are_shared() -> None:
    model = make_model("one core block")
    step = FusedStep(model)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    own = [name for name, parameter in step.named_parameters() if parameter.data_ptr() not in shared]
    assert {name.split(".")[-2] for name in own} == {
        "query_key_value",
        "context_key_value",
        "input_gates",
        "state_gates",
    }


def test_no_parameter_is_kept_twice() -> None:
    model = make_model("core heads unlike encoder's")
    assert count(FusedStep(model)) == count(model)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_fusing_leaves_model_as_it_is() -> None:
    model = make_model("one core block")
    kept = copy.deepcopy(model.state_dict())
    step = FusedStep(model)
    with torch.inference_mode():
        step(make_frames(1, (32, 32))[0], model.init_state(1, 32, 32))
    state = model.state_dict()
    assert state.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


def test_only_products_inside_blocks_are_cast() -> None:
    model = cast_blocks(make_model("core heads unlike encoder's"), torch.bfloat16)
    step = FusedStep(model)
    float32 = {name for name, parameter in step.named_parameters() if parameter.dtype == torch.float32}
    names = ("encoder.patch_embedding.weight", "encoder.cls_token", "input_gates.weight", "state_gates.weight")
    assert float32.issuperset(names)
    assert all(name in float32 for name, _ in step.named_parameters() if "norm" in name)
    for name in (
        "context_key_value.weight",
        "encoder.blocks.0.attention.query_key_value.weight",
        "core_blocks.0.mlp.dense_in.weight",
    ):
        assert step.get_parameter(name).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cast_copy_is_that_of_a_copy_cast_later(dtype: torch.dtype) -> None:
    model = make_model("core heads unlike encoder's")
    kept = copy.deepcopy(model)
    made, expected = cast_copy(model, dtype), cast_blocks(copy.deepcopy(model), dtype)
    for one, other in ((made, expected), (model, kept)):
        names = [*one.state_dict(), "encoder.position_table"]
        assert names == [*other.state_dict(), "encoder.position_table"]
        for a, b in zip(values(one), values(other), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    assert not {value.data_ptr() for value in values(made)} & {value.data_ptr() for value in values(model)}


def values(model: RVM) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_cast_copy_copies_no_weight_of_the_blocks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("core heads unlike encoder's")
    copied: list[torch.Tensor] = []
    original = torch.nn.Parameter.__deepcopy__

    def record(parameter: torch.nn.Parameter, memo: dict[int, object]) -> torch.nn.Parameter:
        copied.append(parameter)
        return original(parameter, memo)

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", record)
    cast = [p for p in cast_copy(model, torch.bfloat16).parameters() if p.dtype == torch.bfloat16]
    assert sum(p.numel() for p in cast) + sum(p.numel() for p in copied) == count(model)

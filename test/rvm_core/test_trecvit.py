"""TRecViT against the release, its state, and the clip against the step."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from readout_data import Reference, load_reference, write_release
from rvm_core.checkpoint import load_trecvit
from rvm_core.config import TRecViTConfig
from rvm_core.position import resize_grid
from rvm_core.trecvit import TRecViT, TRecViTState

TOLERANCE = 2e-5
"""Between float32 results of the release's code and ours, which differ by 2e-6 through the order of sums."""
SCAN_TOLERANCE = 1e-5
"""Between the scan over a clip and the step."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference("trecvit_tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TRecViT:
    return load_trecvit(write_release("trecvit_tiny", tmp_path_factory.mktemp("trecvit")))


@pytest.fixture(scope="module")
def frames(reference: Reference) -> Tensor:
    """(T, 3, H, W) in [0, 1]."""
    return reference.tensors["frames"].permute(0, 3, 1, 2) / 255


def step_through(model: TRecViT, frames: Tensor, state: TRecViTState | None = None) -> tuple[Tensor, TRecViTState]:
    """(T, N+1, D) and the last state."""
    state = state or model.init_state(1, *frames.shape[-2:])
    features = []
    with torch.inference_mode():
        for frame in frames:
            output, state = model(frame[None], state)
            features.append(output[0])
    return torch.stack(features), state


def largest(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def test_streaming_step_matches_the_release(model: TRecViT, frames: Tensor, reference: Reference) -> None:
    features, _ = step_through(model, frames)
    assert largest(features, reference.tensors["encoded"]) < TOLERANCE


def test_classifier_matches_the_release(model: TRecViT, frames: Tensor, reference: Reference) -> None:
    features, _ = step_through(model, frames)
    with torch.inference_mode():
        assert largest(model.classify(features[None])[0], reference.tensors["logits"]) < TOLERANCE


def test_sizes_are_inferred(model: TRecViT) -> None:
    assert model.config == TRecViTConfig(
        width=64, depth=2, heads=4, mlp_width=128, recurrent_width=128, recurrent_heads=4, conv_width=4,
        position_grid=4, classifier_width=96, classes=10,
    )  # fmt: skip


@torch.inference_mode()
def test_clip_equals_steps(model: TRecViT, frames: Tensor) -> None:
    expected, expected_state = step_through(model, frames)
    features, state = model.encode_clip(frames[None])
    assert largest(features[0], expected) < SCAN_TOLERANCE
    for found, right in zip(state, expected_state, strict=True):
        assert largest(found, right) < SCAN_TOLERANCE


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
@torch.inference_mode()
def test_a_clip_goes_on_where_another_ended(model: TRecViT, frames: Tensor, cut: int) -> None:
    whole, _ = model.encode_clip(frames[None])
    first, state = model.encode_clip(frames[None, :cut])
    rest, _ = model.encode_clip(frames[None, cut:], state)
    assert largest(torch.cat([first, rest], dim=1), whole) < SCAN_TOLERANCE


def test_state_is_constant_and_float32(model: TRecViT, frames: Tensor) -> None:
    """Its shapes are those that the paper's memory comes from: three inputs and one hidden value a block and token."""
    start = model.init_state(1, 64, 64)
    _, state = step_through(model, frames)
    assert [tuple(tensor.shape) for tensor in start] == [(1, 2, 3, 17, 128), (1, 2, 17, 128), (1,)]
    assert [tensor.shape for tensor in state] == [tensor.shape for tensor in start]
    assert all(tensor.dtype == torch.float32 for tensor in (*start, *state))


@torch.inference_mode()
def test_step_leaves_the_state_it_was_given(model: TRecViT, frames: Tensor) -> None:
    _, state = step_through(model, frames[:2])
    kept = copy.deepcopy(state)
    model(frames[2:3], state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


@torch.inference_mode()
def test_streams_of_a_batch_start_by_themselves(model: TRecViT, frames: Tensor) -> None:
    """One stream is at its fourth frame while another one begins."""
    _, running = step_through(model, frames[:3])
    fresh = model.init_state(1, 64, 64)
    state = TRecViTState(*(torch.cat(pair) for pair in zip(running, fresh, strict=True)))
    features, _ = model(frames[[3, 0]], state)
    assert largest(features[:1], model(frames[3:4], running)[0]) < SCAN_TOLERANCE
    assert largest(features[1:], model(frames[:1], fresh)[0]) < SCAN_TOLERANCE


@torch.inference_mode()
def test_first_frame_is_taken_unscaled(model: TRecViT, frames: Tensor) -> None:
    """A state of zeros that has started gives something else than the start."""
    start = model.init_state(1, 64, 64)
    first, _ = model(frames[:1], start)
    later, _ = model(frames[:1], start._replace(started=torch.ones(1)))
    assert largest(first, later) > 1e-2


@torch.inference_mode()
def test_subsets_of_tokens_as_in_masked_pretraining(model: TRecViT, frames: Tensor) -> None:
    """The recurrence sees each token by itself, so the tokens left out change others through attention only."""
    tokens = model.tokenizer(frames)[None]
    some, state = model.encode(tokens[:, :, [2, 5, 11]])
    assert some.shape == (1, 8, 4, 64)
    assert state.hidden.shape == (1, 2, 4, 128)


def test_positions_are_resized_for_another_grid(model: TRecViT, frames: Tensor) -> None:
    table = model.tokenizer.position_table.unflatten(0, (4, 4))
    assert torch.equal(model.tokenizer.positions(4, 4), model.tokenizer.position_table)
    assert torch.equal(model.tokenizer.positions(6, 3), resize_grid(table, 6, 3).flatten(0, 1))
    larger = torch.nn.functional.interpolate(frames, (96, 48))
    features, _ = step_through(model, larger)
    assert features.shape == (8, 19, 64)
    with pytest.raises(ValueError, match="multiples of 16"):
        model.init_state(1, 60, 64)


def parameters_of(config: TRecViTConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TRecViT(config, seed=None).parameters())


def test_named_size_has_the_published_number_of_parameters() -> None:
    """The paper's 111M are of a recurrence as wide as the tokens, with the classifier; the released one is twice as
    wide."""
    config = TRecViTConfig.named("trecvit_b16")
    classifier = {"classes": 400, "classifier_width": 3072}
    assert parameters_of(replace(config, recurrent_width=768, **classifier)) == pytest.approx(111e6, rel=0.01)
    assert config.recurrent_width == 2 * config.width
    assert parameters_of(config) == pytest.approx(133e6, rel=0.01)
    assert config.name == replace(config, **classifier).name == "trecvit_b16"
    with pytest.raises(ValueError, match="trecvit_b16"):
        TRecViTConfig.named("trecvit_x")


def test_random_weights_keep_values_and_gradients_finite() -> None:
    config = TRecViTConfig(
        width=16, depth=2, heads=2, mlp_width=32, recurrent_width=32, recurrent_heads=2, position_grid=2
    )
    model = TRecViT(config, seed=1)
    features, _ = model.encode_clip(torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    features.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    decay = torch.exp(-torch.nn.functional.softplus(model.state_dict()["blocks.0.recurrent.unit.decay"]))
    assert 0.5 <= float(decay.min()) and float(decay.max()) <= 0.999


def test_without_classifier_there_are_no_classes() -> None:
    config = TRecViTConfig(width=16, depth=1, heads=2, mlp_width=16, recurrent_width=16, recurrent_heads=2)
    with pytest.raises(ValueError, match="no classifier"):
        TRecViT(config).classify(torch.zeros(1, 2, 5, 16))
    with pytest.raises(ValueError, match="recurrent_heads must divide recurrent_width"):
        TRecViTConfig(width=16, depth=1, heads=2, mlp_width=16, recurrent_width=16, recurrent_heads=3)
    with pytest.raises(ValueError, match="both classes and classifier_width"):
        TRecViTConfig(width=16, depth=1, heads=2, mlp_width=16, recurrent_width=16, recurrent_heads=2, classes=3)


def test_saved_model_is_the_same(model: TRecViT, tmp_path: Path) -> None:
    from rvm_core.checkpoint import save_checkpoint, weights_hash

    for name in ("saved.npz", "saved.safetensors"):
        save_checkpoint(model, tmp_path / name)
        again = load_trecvit(tmp_path / name)
        assert again.config == model.config
        assert weights_hash(again) == weights_hash(model)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())

"""The model against the release's own code, and its contract."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from rvm_core import RVM, DecoderConfig, RVMConfig, create_engine
from rvm_core.decoder import visible_patches

PARITY_TOLERANCE = 2e-5
"""From the release's float32 features (up to 4) and pixels: sums taken in another order differ by 2e-6."""

BF16_TOLERANCE = 0.05
"""bfloat16 has 8 bits: on features up to 4, the release's own code differs by 0.016 between two processors."""

BATCH_TOLERANCE = 1e-5
"""Matrix products of another batch size sum in another order."""

SIZES = ["256x256", "128x192", "320x480"]


def to_input(frames: np.ndarray) -> torch.Tensor:
    """uint8 (..., H, W, 3) -> float (..., 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 255


def run_engine(model: RVM, frames: np.ndarray, precision: str) -> np.ndarray:
    """Features (T, N+1, D) of one stream of frames (T, H, W, 3), carrying the state."""
    height, width = frames.shape[1:3]
    engine = create_engine(
        model, backend="torch", precision=precision, image_size=(height, width), device="cpu", checked=False
    )
    state = engine.init_state()
    features = []
    for frame in frames:
        output, state = engine.step(frame[None], state)
        features.append(output[0].numpy())
    return np.stack(features)


@pytest.mark.parametrize("size", SIZES)
def test_engine_matches_release_in_float32(tiny_model: RVM, expected: Mapping[str, np.ndarray], size: str) -> None:
    features = run_engine(tiny_model, expected[f"frames_{size}"], "fp32")
    np.testing.assert_allclose(features, expected[f"features_{size}"], rtol=0, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_engine_matches_release_in_mixed_precision(
    tiny_model: RVM, expected: Mapping[str, np.ndarray], size: str
) -> None:
    features = run_engine(tiny_model, expected[f"frames_{size}"], "bf16")
    np.testing.assert_allclose(features, expected[f"features_bf16_{size}"], rtol=0, atol=BF16_TOLERANCE)
    # bfloat16 was really used.
    assert np.abs(features - expected[f"features_{size}"]).max() > PARITY_TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_forward_matches_release(tiny_model: RVM, expected: Mapping[str, np.ndarray], size: str) -> None:
    frames = to_input(expected[f"frames_{size}"])
    state = tiny_model.init_state(1, *frames.shape[-2:])
    for frame, reference in zip(frames, expected[f"features_{size}"], strict=True):
        with torch.inference_mode():
            features, state = tiny_model(frame[None], state)
        np.testing.assert_allclose(features[0].numpy(), reference, rtol=0, atol=PARITY_TOLERANCE)


def test_reconstruction_matches_release(tiny_model: RVM, expected: Mapping[str, np.ndarray]) -> None:
    hidden = torch.from_numpy(expected["recon_mask"][..., 0])[None]
    with torch.inference_mode():
        pixels, features = tiny_model.reconstruct(
            to_input(expected["recon_source"])[None],
            to_input(expected["recon_target"])[None],
            torch.from_numpy(expected["recon_deltas"])[None],
            visible_patches(hidden),
        )
    output = pixels[0].movedim(1, -1).numpy()
    np.testing.assert_allclose(output, expected["recon_output"], rtol=0, atol=PARITY_TOLERANCE)
    np.testing.assert_allclose(features[0].numpy(), expected["recon_features"], rtol=0, atol=PARITY_TOLERANCE)


def test_features_of_reconstruction_are_those_of_steps(tiny_model: RVM, expected: Mapping[str, np.ndarray]) -> None:
    features = run_engine(tiny_model, expected["recon_source"], "fp32")
    np.testing.assert_allclose(features, expected["recon_features"], rtol=0, atol=PARITY_TOLERANCE)


def test_reconstruction_of_batch_equals_single_ones(tiny_model: RVM, expected: Mapping[str, np.ndarray]) -> None:
    source, target = to_input(expected["recon_source"]), to_input(expected["recon_target"])
    sources, targets = torch.stack([source, source.flip(-1)]), torch.stack([target, target.flip(-2)])
    gaps = torch.tensor([[4, 48], [63, 0]])
    visible = visible_patches(torch.from_numpy(expected["recon_mask"][..., 0]))
    visibles = torch.stack([visible, visible.flip(0)])
    with torch.inference_mode():
        together, _ = tiny_model.reconstruct(sources, targets, gaps, visibles)
        for i in range(2):
            alone, _ = tiny_model.reconstruct(
                sources[i : i + 1], targets[i : i + 1], gaps[i : i + 1], visibles[i : i + 1]
            )
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=BATCH_TOLERANCE)


def test_batch_of_streams_equals_single_streams(tiny_model: RVM, expected: Mapping[str, np.ndarray]) -> None:
    frames = to_input(expected["frames_128x192"])
    streams = [frames, frames.flip(-1), frames.flip(0)]
    with torch.inference_mode():
        states = []
        # Each stream has another number of frames behind it, so that every state is different.
        for steps, stream in enumerate(streams):
            state = tiny_model.init_state(1, 128, 192)
            for frame in stream[:steps]:
                _, state = tiny_model(frame[None], state)
            states.append(state)
        last = torch.stack([stream[3] for stream in streams])
        together, new_states = tiny_model(last, torch.cat(states))
        for i, state in enumerate(states):
            features, new_state = tiny_model(last[i : i + 1], state)
            torch.testing.assert_close(together[i : i + 1], features, rtol=0, atol=BATCH_TOLERANCE)
            torch.testing.assert_close(new_states[i : i + 1], new_state, rtol=0, atol=BATCH_TOLERANCE)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_state_is_not_changed_in_place(tiny_model: RVM) -> None:
    state = torch.randn(1, 25, 64, generator=torch.Generator().manual_seed(1))
    kept = state.clone()
    with torch.inference_mode():
        _, new_state = tiny_model(torch.rand(1, 3, 64, 96), state)
    assert torch.equal(state, kept)
    assert new_state.data_ptr() != state.data_ptr()


def test_initial_state_is_zero(tiny_model: RVM) -> None:
    state = tiny_model.init_state(2, 64, 96)
    assert state.shape == (2, 25, 64)
    assert state.dtype == torch.float32
    assert not state.any()


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_step_can_be_exported(tiny_model: RVM, size: tuple[int, int]) -> None:
    frames = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    state = tiny_model.init_state(1, *size)
    program = torch.export.export(tiny_model, (frames, state))
    with torch.inference_mode():
        exported, new_state = program.module()(frames, state)
        features, _ = tiny_model(frames, state)
    torch.testing.assert_close(exported, features, rtol=0, atol=BATCH_TOLERANCE)
    torch.testing.assert_close(new_state, features, rtol=0, atol=BATCH_TOLERANCE)


@pytest.mark.parametrize(("height", "width"), [(64, 100), (65, 96), (0, 64), (8, 8)])
def test_sizes_that_are_no_multiples_are_refused(tiny_model: RVM, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 16, got {height}x{width}"):
        tiny_model.init_state(1, height, width)
    with pytest.raises(ValueError, match=f"multiples of 16, got {height}x{width}"):
        tiny_model(torch.rand(1, 3, height, width), torch.zeros(1, 25, 64))


def test_reconstruction_without_decoder_is_refused(tiny_model: RVM) -> None:
    model = RVM(RVMConfig(**vars(tiny_model.config) | {"decoder": None}))
    frames = torch.rand(1, 1, 3, 32, 32)
    with pytest.raises(ValueError, match="no decoder"):
        model.reconstruct(frames, frames, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64))


def test_masks_that_hide_different_numbers_are_refused() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, :2, 0] = True
    with pytest.raises(ValueError, match=r"same number of patches.*\[15, 14\]"):
        visible_patches(masks)
    with pytest.raises(ValueError, match="not none or all"):
        visible_patches(torch.ones(1, 4, 4))
    assert visible_patches(masks[0]).tolist() == list(range(1, 16))


def small_config() -> RVMConfig:
    return RVMConfig(
        width=32,
        encoder_depth=1,
        encoder_heads=2,
        encoder_mlp_width=48,
        core_depth=2,
        core_heads=4,
        core_mlp_width=40,
        decoder=DecoderConfig(width=16, depth=1, num_heads=2, mlp_width=24),
    )


def test_seed_decides_the_weights() -> None:
    first, again, other = (RVM(small_config(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if name.endswith("weight") and "norm" not in name]
    assert len(weights) > 30
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_initial_weights_are_spread_as_in_the_release() -> None:
    """LeCun normal for projections, Glorot uniform for MLPs, 0 for biases, 1 for scales, 0.02 for tokens."""
    config = RVMConfig(
        width=256,
        encoder_depth=1,
        encoder_heads=4,
        encoder_mlp_width=512,
        core_depth=1,
        core_heads=4,
        core_mlp_width=512,
    )
    state = RVM(config).state_dict()
    std = {
        "encoder.patch_embedding.weight": (3 * 16 * 16) ** -0.5,
        "encoder.blocks.0.attention.query.weight": 256**-0.5,
        "encoder.blocks.0.attention.out.weight": 256**-0.5,
        "encoder.blocks.0.mlp.dense_in.weight": (2 / (256 + 512)) ** 0.5,
        "core.input_update.weight": 256**-0.5,
        "encoder.cls_token": 0.02,
    }
    for name, value in std.items():
        # 256 draws or more: the sample's own spread is within 15 %.
        assert float(state[name].std()) == pytest.approx(value, rel=0.15), name
    assert all(not state[name].any() for name in state if name.endswith("bias"))
    assert all(bool((state[name] == 1).all()) for name in state if name.endswith("norm.weight"))


@pytest.mark.parametrize(
    ("name", "millions"), [("rvm_s16", 33.2), ("rvm_b16", 125.8), ("rvm_l16", 374.5), ("rvm_h16", 743.0)]
)
def test_named_sizes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = RVM(RVMConfig.named(name), seed=None)
    count = sum(parameter.numel() for parameter in model.parameters())
    # The published figures are rounded, the last one most: 742.2 is exact for the sizes in the table.
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)

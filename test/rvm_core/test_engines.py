"""The contract of every engine, held by torch, and what `create_engine` refuses."""

import numpy as np
import pytest
import torch

from rvm_core import RVM, Engine, EngineError, create_engine, load_checkpoint
from rvm_core.engines import EngineSpec

SIZE = (64, 96)
TOKENS = 4 * 6 + 1


def random_frames(batch_size: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch_size, *SIZE, 3), dtype=np.uint8)


def make_engine(model: RVM, precision: str = "fp32", batch_size: int = 1) -> Engine:
    return create_engine(
        model,
        backend="torch",
        precision=precision,
        image_size=SIZE,
        batch_size=batch_size,
        device="cpu",
        checked=False,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engine_says_what_it_is(tiny_model: RVM, precision: str) -> None:
    engine = make_engine(tiny_model, precision, batch_size=2)
    assert isinstance(engine, Engine)
    assert engine.spec == EngineSpec(backend="torch", precision=precision, device="cpu", image_size=SIZE, batch_size=2)


@pytest.mark.parametrize(("capability", "precision"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("avx2", "fp32")])
def test_automatic_precision_is_what_the_processor_multiplies(
    tiny_model: RVM, monkeypatch: pytest.MonkeyPatch, capability: str, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert make_engine(tiny_model, "auto").spec.precision == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_and_state_are_float32(tiny_model: RVM, precision: str) -> None:
    engine = make_engine(tiny_model, precision, batch_size=2)
    features, state = engine.step(random_frames(2), engine.init_state())
    assert features.shape == state.shape == (2, TOKENS, 64)
    assert features.dtype == state.dtype == torch.float32
    assert not features.requires_grad


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_leaves_frames_and_state_as_they_are(tiny_model: RVM, precision: str) -> None:
    engine = make_engine(tiny_model, precision)
    frames = random_frames()
    _, state = engine.step(frames, engine.init_state())
    kept_frames, kept_state = frames.copy(), state.clone()
    engine.step(frames, state)
    assert np.array_equal(frames, kept_frames)
    assert torch.equal(state, kept_state)


def test_step_is_a_function_of_frames_and_state(tiny_model: RVM) -> None:
    """Nothing is carried inside the engine: another stream in between changes nothing."""
    engine = make_engine(tiny_model)
    first, state = engine.step(random_frames(seed=1), engine.init_state())
    after, _ = engine.step(random_frames(seed=2), state)
    engine.step(random_frames(seed=3), engine.init_state())
    again, _ = engine.step(random_frames(seed=2), state)
    assert torch.equal(after, again)
    assert not torch.allclose(first, after)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engine_leaves_model_as_it_is(tiny_model: RVM, precision: str) -> None:
    kept = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    engine = make_engine(tiny_model, precision)
    engine.step(random_frames(), engine.init_state())
    for name, tensor in tiny_model.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, kept[name]), name


def test_engine_does_not_follow_model(tiny_path: str) -> None:
    model = load_checkpoint(tiny_path)
    engine = make_engine(model)
    before, _ = engine.step(random_frames(), engine.init_state())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after, _ = engine.step(random_frames(), engine.init_state())
    assert torch.equal(before, after)


def test_read_only_and_strided_frames_are_taken(tiny_model: RVM) -> None:
    engine = make_engine(tiny_model)
    frames = random_frames()
    features, _ = engine.step(frames, engine.init_state())
    wide = np.repeat(frames, 2, axis=2)[:, :, ::2]
    wide.flags.writeable = False
    strided, _ = engine.step(wide, engine.init_state())
    assert torch.equal(features, strided)


def test_unknown_backend_lists_the_known(tiny_model: RVM) -> None:
    with pytest.raises(EngineError, match="unknown backend 'abacus'; known: auto, torch, inductor, openvino, tensorrt"):
        create_engine(tiny_model, backend="abacus", image_size=SIZE)


def test_unknown_precision_lists_the_known(tiny_model: RVM) -> None:
    with pytest.raises(EngineError, match="unknown precision 'int3'; known: auto, fp32, bf16"):
        create_engine(tiny_model, precision="int3", image_size=SIZE)


@pytest.mark.parametrize("device", ["toaster", "mps", "meta", "cuda:99"])
def test_unknown_device_is_refused(tiny_model: RVM, device: str) -> None:
    with pytest.raises(EngineError, match=f"device '{device}' is not there: torch sees .*cpu"):
        create_engine(tiny_model, backend="torch", image_size=SIZE, device=device)


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_missing_gpu_is_refused(tiny_model: RVM, monkeypatch: pytest.MonkeyPatch, device: str, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(EngineError, match=f"device '{device}' is not there: torch sees {'cuda:0, ' * count}cpu"):
        create_engine(tiny_model, backend="torch", image_size=SIZE, device=device)


@pytest.mark.parametrize("size", [(64, 100), (0, 64)])
def test_size_that_is_no_multiple_is_refused(tiny_model: RVM, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        create_engine(tiny_model, image_size=size)


def test_batch_size_is_positive(tiny_model: RVM) -> None:
    with pytest.raises(ValueError, match="batch size of 1 or more, got 0"):
        create_engine(tiny_model, image_size=SIZE, batch_size=0)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 64, 96, 3), np.float32),
        np.zeros((1, 96, 64, 3), np.uint8),
        np.zeros((2, 64, 96, 3), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 3, 64, 96), np.uint8),
    ],
    ids=["dtype", "size", "batch", "no batch", "channels first"],
)
def test_other_frames_are_refused(tiny_model: RVM, frames: np.ndarray) -> None:
    engine = make_engine(tiny_model)
    with pytest.raises(EngineError, match=r"expected uint8 frames \(1, 64, 96, 3\).*got"):
        engine.step(frames, engine.init_state())

"""Every engine with states of another form than one tensor: TRecViT's tuple, and none at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from readout_data import write_release
from rvm_core import RVM, EngineError, create_engine
from rvm_core.checkpoint import load_encoder
from rvm_core.encoders import without_memory
from rvm_core.engines import EngineCache, EngineSpec, check_engine
from rvm_core.engines.base import Backend, Engine
from rvm_core.engines.batch import BatchStepper, Stepped
from rvm_core.engines.create import make_key
from rvm_core.engines.plan import backends
from rvm_core.engines.tensorrt import Buffers, TensorRTBackend, TensorRTEngine
from rvm_core.export import step_shapes, to_onnx
from rvm_core.fused import Step, cast_blocks, cast_copy
from rvm_core.streaming import State, StreamingEncoder, state_tensors

SIZE = (32, 48)
EXACT = 2e-5
"""On features up to 4: sums in another order differ by 3e-6."""
ROUNDED = 0.06
"""bfloat16 has 8 bits: on features up to 4 it differs from float32 by 0.03."""

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
needs_onnx = pytest.mark.skipif(
    find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="onnxscript or onnxruntime is missing"
)
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None or find_spec("onnxscript") is None,
    reason="tensorrt_rtx or onnxscript is not installed",
)


@pytest.fixture(scope="module")
def trecvit(tmp_path_factory: pytest.TempPathFactory) -> StreamingEncoder:
    return load_encoder(write_release("trecvit_tiny", tmp_path_factory.mktemp("trecvit")))


@pytest.fixture(scope="module", params=["trecvit", "image"])
def model(request: pytest.FixtureRequest, trecvit: StreamingEncoder, tiny_model: RVM) -> StreamingEncoder:
    return trecvit if request.param == "trecvit" else without_memory(tiny_model)


def spec_of(backend: str = "torch", precision: str = "fp32", batch_size: int = 1) -> EngineSpec:
    device = "cuda:0" if backend == "tensorrt" else "cpu"
    return EngineSpec(backend=backend, precision=precision, device=device, image_size=SIZE, batch_size=batch_size)


def frames_of(seed: int, batch_size: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch_size, *SIZE, 3), dtype=np.uint8)


def ignore(line: str) -> None:
    pass


@torch.inference_mode()
def expected_of(model: StreamingEncoder, batches: list[np.ndarray]) -> list[torch.Tensor]:
    state = model.init_state(len(batches[0]), *SIZE)
    features = []
    for batch in batches:
        output, state = model(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255.0, state)
        features.append(output)
    return features


def check_steps(engine: Engine, model: StreamingEncoder, tolerance: float) -> None:
    """Features over carried states, states that stay as they are, and a step that is repeated from a kept one."""
    batches = [frames_of(seed, engine.spec.batch_size) for seed in range(7)]
    state, kept = engine.init_state(), None
    for number, (batch, expected) in enumerate(zip(batches, expected_of(model, batches), strict=True)):
        if number == 5:
            kept = state, [tensor.clone() for tensor in state_tensors(state)]
        features, state = engine.step(batch, state)
        assert (features - expected).abs().max() < tolerance, number
    assert kept is not None
    again, _ = engine.step(batches[5], kept[0])
    assert (again - expected_of(model, batches)[5]).abs().max() < tolerance
    assert all(torch.equal(a, b) for a, b in zip(state_tensors(kept[0]), kept[1], strict=True))
    fresh, _ = engine.step(batches[0], engine.init_state())
    assert (fresh - expected_of(model, batches)[0]).abs().max() < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EXACT), ("bf16", ROUNDED)])
def test_torch_engine(model: StreamingEncoder, precision: str, tolerance: float) -> None:
    check_steps(backends()["torch"].load(model, spec_of(precision=precision, batch_size=2), None), model, tolerance)


@needs_openvino
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EXACT), ("bf16", ROUNDED)])
def test_openvino_engine(model: StreamingEncoder, precision: str, tolerance: float, tmp_path: Path) -> None:
    backend, spec = backends()["openvino"], spec_of("openvino", precision, batch_size=2)
    backend.build(model, spec, tmp_path, ignore)
    check_steps(backend.load(model, spec, tmp_path), model, tolerance)


def test_inductor_engine(model: StreamingEncoder, tmp_path: Path) -> None:
    backend, spec = backends()["inductor"], spec_of("inductor", "bf16", batch_size=2)
    backend.build(model, spec, tmp_path, ignore)
    check_steps(backend.load(model, spec, tmp_path), model, ROUNDED)


@needs_openvino
def test_files_of_another_model_are_refused(trecvit: StreamingEncoder, tiny_model: RVM, tmp_path: Path) -> None:
    backend, spec = backends()["openvino"], spec_of("openvino")
    backend.build(trecvit, spec, tmp_path, ignore)
    with pytest.raises(EngineError, match="is of another engine"):
        backend.load(tiny_model, spec, tmp_path)


@needs_onnx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_export(model: StreamingEncoder, precision: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = spec_of(precision=precision)
    to_onnx(model, spec, tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    shapes = step_shapes(model, spec)
    assert {port.name: tuple(port.shape) for port in session.get_inputs()} == shapes.inputs
    assert {port.name: tuple(port.shape) for port in session.get_outputs()} == shapes.outputs
    state = [np.zeros(shape, np.float32) for shape in shapes.state]
    batches = [frames_of(seed) for seed in range(5)]
    for batch, expected in zip(batches, expected_of(model, batches), strict=True):
        features, *state = session.run(None, {"frames": batch, **dict(zip(shapes.state_names, state, strict=True))})
        assert np.abs(features - expected.numpy()).max() < (EXACT if precision == "fp32" else ROUNDED)


@needs_rtx
def test_tensorrt_engine_is_built(trecvit: StreamingEncoder, tmp_path: Path) -> None:
    TensorRTBackend(["8.9"]).build(trecvit, spec_of("tensorrt", "fp16"), tmp_path, ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"step.plan", "step.json"}


def test_tensorrt_states_go_to_and_fro(model: StreamingEncoder) -> None:
    """With the model itself in the place of the GPU's graphs."""
    step = Step(model).requires_grad_(False)

    def prepare(buffers: Buffers) -> Callable[[int], None]:
        def launch(source: int) -> None:
            features, state = step(buffers.frames, buffers.states[source])
            buffers.features[1 - source].copy_(features)
            for target, tensor in zip(buffers.states[1 - source], state_tensors(state), strict=True):
                target.copy_(tensor)

        return launch

    spec = spec_of("tensorrt", batch_size=2)
    engine = TensorRTEngine(spec, step_shapes(model, spec), torch.device("cpu"), prepare)
    check_steps(engine, model, EXACT)
    with pytest.raises(EngineError, match="expected a state"):
        engine.step(frames_of(0, 2), torch.zeros(1))


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_gate_and_cache(model: StreamingEncoder, name: str, tmp_path: Path) -> None:
    backend: Backend = backends()[name]
    if backend.missing():
        pytest.skip(f"{name} is not installed")
    cache = EngineCache(tmp_path / "engines")
    engine = create_engine(model, backend=name, precision="bf16", image_size=SIZE, device="cpu", cache=cache)
    entry = cache.find(make_key(engine.spec, model, _hash(model)))
    assert entry is not None
    report = entry.read_gate()
    assert report is not None and report.passed and report.steps == 64
    again = create_engine(model, backend=name, precision="bf16", image_size=SIZE, device="cpu", cache=cache)
    assert again.spec == engine.spec and len(cache.list()) == 1


def test_streams_join_a_batch_and_leave_it(model: StreamingEncoder) -> None:
    """Two cameras of which one starts later, stepped at once, as each by itself."""
    backend = backends()["torch"]
    single, batched = (backend.load(model, spec_of(batch_size=size), None) for size in (1, 2))
    stepper = BatchStepper(single, batched)
    stepper.warm_up(frames_of(0)[0])
    first, second = [frames_of(seed) for seed in range(4)], [frames_of(seed) for seed in range(10, 12)]
    states: list[State] = [None, None]
    found: list[list[np.ndarray]] = [[], []]
    for number, frame in enumerate(first):
        frames = [frame[0]] + ([second[number - 2][0]] if number >= 2 else [])
        for camera, stepped in enumerate(stepper.step(frames, states[: len(frames)])):
            assert isinstance(stepped, Stepped)
            states[camera] = stepped.state
            found[camera].append(stepped.tokens)
    assert stepper.size == 2
    for tokens, clip in zip(found, (first, second), strict=True):
        for features, expected in zip(tokens, expected_of(model, clip), strict=True):
            assert np.abs(features - expected[0].numpy()).max() < EXACT


class Forgetful:
    """An engine of which one tensor of the state is lost."""

    def __init__(self, engine: Engine, lost: int) -> None:
        self.spec, self._engine, self._lost = engine.spec, engine, lost

    def init_state(self) -> State:
        return self._engine.init_state()

    def step(self, frames: np.ndarray, state: State) -> tuple[torch.Tensor, State]:
        tensors = [tensor * (i != self._lost) for i, tensor in enumerate(state)]
        return self._engine.step(frames, tuple(tensors))


@pytest.mark.parametrize("lost", [0, 1])
def test_gate_refuses_a_lost_part_of_the_state(trecvit: StreamingEncoder, lost: int) -> None:
    engine = backends()["torch"].load(trecvit, spec_of(), None)
    assert check_engine(engine, trecvit, steps=8).passed
    assert not check_engine(Forgetful(engine, lost), trecvit, steps=8).passed


def test_keys_tell_models_apart(trecvit: StreamingEncoder, tiny_model: RVM) -> None:
    """A model with and one without memory have the same weights, but not the same graph."""
    image = without_memory(tiny_model)
    keys = [make_key(spec_of(), model, _hash(model)) for model in (tiny_model, image, trecvit)]
    assert keys[0].weights == keys[1].weights
    assert len({key.name for key in keys}) == 3


@pytest.mark.parametrize("backend", ["openvino", "tensorrt"])
def test_int8_is_refused(trecvit: StreamingEncoder, backend: str, tmp_path: Path) -> None:
    made: Backend = TensorRTBackend(["8.9"]) if backend == "tensorrt" else backends()[backend]
    if made.missing():
        pytest.skip(f"{backend} is not installed")
    with pytest.raises(EngineError, match="int8 is for RVM only, not for trecvit_custom"):
        made.build(trecvit, spec_of(backend, "int8"), tmp_path, ignore)


def test_casting_leaves_what_sums_up_over_time(trecvit: StreamingEncoder) -> None:
    import copy

    made, expected = cast_copy(trecvit, torch.bfloat16), cast_blocks(copy.deepcopy(trecvit), torch.bfloat16)
    dtypes: dict[str, Any] = {name: tensor.dtype for name, tensor in made.state_dict().items()}
    assert dtypes == {name: tensor.dtype for name, tensor in expected.state_dict().items()}
    rounded = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert "blocks.0.recurrent.linear_x.weight" in rounded and "blocks.1.spatial.mlp.dense_in.weight" in rounded
    assert not [name for name in rounded if ".unit." in name or ".convolution." in name or "norm" in name]
    assert not [name for name in rounded if name.startswith("tokenizer.")]


def _hash(model: StreamingEncoder) -> str:
    from rvm_core.checkpoint import weights_hash

    return weights_hash(model)

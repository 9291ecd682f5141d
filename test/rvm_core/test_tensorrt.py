"""TensorRT engines: built for real where TensorRT-RTX is installed, which needs no GPU; run only where there is one.

How states are kept between steps is tested everywhere, with the model itself in the place of the GPU's graphs.
"""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core.config import RVMConfig
from rvm_core.engines import tensorrt
from rvm_core.engines.base import Engine, EngineError, EngineSpec
from rvm_core.engines.tensorrt import DESCRIPTION_FILE, PLAN_FILE, Buffers, TensorRTBackend, TensorRTEngine
from rvm_core.export import step_shapes
from rvm_core.fused import FusedStep
from rvm_core.model import RVM

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None or find_spec("onnxscript") is None,
    reason="tensorrt_rtx or onnxscript is not installed",
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or TensorRTBackend().missing() is not None, reason="no NVIDIA GPU with TensorRT"
)

SIZE = (64, 96)
TOKENS = 4 * 6 + 1
GPU_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a feature of order 1 from fp32 torch: that of torch's own bf16 step, and of eight times finer
fp16, each with room for another order of summation."""


def spec_of(precision: str = "fp16", size: tuple[int, int] = SIZE, batch_size: int = 1) -> EngineSpec:
    return EngineSpec(backend="tensorrt", precision=precision, device="cuda:0", image_size=size, batch_size=batch_size)


def frames_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)


def ignore(text: str) -> None:
    pass


# Building


@pytest.fixture(scope="module")
def tiny_folder(tiny_model: RVM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    TensorRTBackend(["8.9"]).build(tiny_model, spec_of(), folder, ignore)
    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text())["tensors"]
    return tensors


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_engine_of_s_is_built_for_two_generations_without_a_gpu(precision: str, tmp_path: Path) -> None:
    model = RVM(RVMConfig.named("rvm_s16")).eval()
    stages: list[str] = []
    TensorRTBackend(["8.9", "12.0"]).build(model, spec_of(precision, (256, 256)), tmp_path, stages.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION_FILE, PLAN_FILE]
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * weights < (tmp_path / PLAN_FILE).stat().st_size < 3 * weights
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    assert (description["model"], description["precision"], description["hardware"]) == (
        "rvm_s16",
        precision,
        "sm_89 sm_120",
    )
    # As TensorRT's parser read them; to ask a finished engine takes a GPU.
    assert description["tensors"] == {
        "frames": {"role": "input", "dtype": "uint8", "shape": [1, 256, 256, 3]},
        "state": {"role": "input", "dtype": "float32", "shape": [1, 257, 384]},
        "features": {"role": "output", "dtype": "float32", "shape": [1, 257, 384]},
    }
    assert "exporting to ONNX" in stages and len(stages) > 2


@needs_rtx
@pytest.mark.skipif(
    find_spec("nncf") is None or find_spec("onnxruntime") is None, reason="nncf or onnxruntime is not installed"
)
def test_engine_of_s_in_int8_is_built_for_two_generations_without_a_gpu(tmp_path: Path) -> None:
    model = RVM(RVMConfig.named("rvm_s16")).eval()
    TensorRTBackend(["8.9", "12.0"]).build(model, spec_of("int8", (32, 48)), tmp_path, ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION_FILE, PLAN_FILE]
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights < (tmp_path / PLAN_FILE).stat().st_size < 1.7 * weights
    assert tensors_of(tmp_path)["frames"] == {"role": "input", "dtype": "uint8", "shape": [1, 32, 48, 3]}


@needs_rtx
@pytest.mark.parametrize(("precision", "capability"), [("bf16", "12.0"), ("fp32", "8.9"), ("fp16", "12.0")])
def test_tiny_engine_is_built(tiny_model: RVM, tmp_path: Path, precision: str, capability: str) -> None:
    spec = spec_of(precision, (48, 32), batch_size=3)
    TensorRTBackend([capability]).build(tiny_model, spec, tmp_path, ignore)
    tensors = tensors_of(tmp_path)
    assert tensors["frames"]["shape"] == [3, 48, 32, 3]
    assert tensors["state"]["shape"] == tensors["features"]["shape"] == [3, 7, 64]
    assert (tmp_path / PLAN_FILE).stat().st_size > 1 << 20


@needs_rtx
def test_weights_beside_the_onnx_file_are_found(
    tiny_model: RVM, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rvm_core.export.INLINE_BYTES", 1000)
    TensorRTBackend(["8.9"]).build(tiny_model, spec_of(), tmp_path, ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION_FILE, PLAN_FILE]
    size = (tiny_folder / PLAN_FILE).stat().st_size
    assert abs((tmp_path / PLAN_FILE).stat().st_size - size) < 0.01 * size


@needs_rtx
def test_engine_is_of_its_compute_capability(tiny_model: RVM, tiny_folder: Path, tmp_path: Path) -> None:
    TensorRTBackend(["12.0"]).build(tiny_model, spec_of(), tmp_path, ignore)
    assert (tmp_path / PLAN_FILE).read_bytes() != (tiny_folder / PLAN_FILE).read_bytes()


@needs_rtx
def test_unreadable_export_is_refused_with_tensorrts_reason(
    tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "to_onnx", lambda model, spec, path: path.write_bytes(b"not a graph"))
    with pytest.raises(EngineError, match=r"cannot read the export: .*[Pp]arse"):
        TensorRTBackend(["8.9"]).build(tiny_model, spec_of(), tmp_path, ignore)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_other_inputs_than_expected_are_refused(
    tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_size(model: RVM, spec: EngineSpec, path: Path) -> None:
        from rvm_core.export import to_onnx

        to_onnx(model, spec_of(size=(32, 32)), path)

    monkeypatch.setattr(tensorrt, "to_onnx", wrong_size)
    with pytest.raises(EngineError, match=r"read other inputs or outputs.*\[1, 32, 32, 3\]"):
        TensorRTBackend(["8.9"]).build(tiny_model, spec_of(), tmp_path, ignore)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_unknown_compute_capability_lists_the_known(tiny_model: RVM, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"compute capability 5\.0; only 7\.5, .*12\.0"):
        TensorRTBackend(["8.9", "5.0"]).build(tiny_model, spec_of(), tmp_path, ignore)


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_building_for_no_gpu_says_what_to_name(tiny_model: RVM, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r'no NVIDIA GPU to build for.*compute_capabilities=\["8.9"\]'):
        TensorRTBackend().build(tiny_model, spec_of(), tmp_path, ignore)


@needs_rtx
def test_unknown_precision_is_refused(tiny_model: RVM, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp32, fp16, bf16, int8; got 'int3'"):
        TensorRTBackend(["8.9"]).build(tiny_model, spec_of("int3"), tmp_path, ignore)


# Which runtime


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def plant(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__dict__["__version__"] = "10.0"
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_missing_runtime_names_the_extras(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    extras = r"pip install rvm_perception\[tensorrt\], or rvm_perception\[tensorrt-rtx\]"
    assert "rvm_perception[tensorrt-rtx]" in str(TensorRTBackend().missing())
    with pytest.raises(EngineError, match=extras):
        TensorRTBackend(["8.9"]).build(tiny_model, spec_of(), tmp_path, ignore)
    with pytest.raises(EngineError, match=extras):
        TensorRTBackend().load(tiny_model, spec_of(), tmp_path)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_either_runtime_will_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    plant(monkeypatch, name)
    assert TensorRTBackend().runtime() == f"{name} 10.0"
    assert TensorRTBackend(["8.9"]).missing() is None


def test_tensorrt_comes_before_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "tensorrt")
    plant(monkeypatch, "tensorrt_rtx")
    assert TensorRTBackend().runtime() == "tensorrt 10.0"


def test_without_a_gpu_the_backend_is_missing_but_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "tensorrt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "can be built here, but running it needs one" in str(TensorRTBackend().missing())
    assert TensorRTBackend(["8.9"]).hardware("cuda:0") == "sm_89"


def test_tensorrt_builds_only_for_its_own_gpu() -> None:
    config = SimpleNamespace()
    builder = SimpleNamespace(create_builder_config=lambda: config)
    trt = SimpleNamespace(__name__="tensorrt", IProgressMonitor=type("IProgressMonitor", (), {}))
    with pytest.raises(EngineError, match="tensorrt builds only for the GPU it runs on; tensorrt_rtx"):
        TensorRTBackend(["8.9"])._config(trt, builder, spec_of(), ignore)


# Loading


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_running_needs_a_gpu(tiny_model: RVM, tiny_folder: Path) -> None:
    with pytest.raises(EngineError, match="running it needs one"):
        TensorRTBackend().load(tiny_model, spec_of(), tiny_folder)


@needs_rtx
@pytest.mark.parametrize("spec", [spec_of("bf16"), spec_of(size=(32, 32)), spec_of(batch_size=2)])
def test_engine_for_another_spec_is_refused(tiny_model: RVM, tiny_folder: Path, spec: EngineSpec) -> None:
    with pytest.raises(EngineError, match="holds another engine"):
        TensorRTBackend().load(tiny_model, spec, tiny_folder)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format_version": 0}', "\x00"])
def test_damaged_description_is_refused(
    tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    plant(monkeypatch, "tensorrt")
    if text is not None:
        (tmp_path / DESCRIPTION_FILE).write_text(text)
    with pytest.raises(EngineError, match=f"{DESCRIPTION_FILE}.*build the engine again"):
        TensorRTBackend().load(tiny_model, spec_of(), tmp_path)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_engine_on_the_gpu_matches_torch(tiny_model: RVM, tmp_path: Path, precision: str) -> None:
    backend, spec = TensorRTBackend(), spec_of(precision)
    backend.build(tiny_model, spec, tmp_path, ignore)
    engine, step = backend.load(tiny_model, spec, tmp_path), FusedStep(tiny_model)
    state, expected = engine.init_state(), tiny_model.init_state(1, *SIZE)
    for seed in range(64):
        features, state = engine.step(frames_of(seed), state)
        with torch.inference_mode():
            expected = step(torch.from_numpy(frames_of(seed)), expected)
        assert (features.cpu() - expected).abs().max() < GPU_TOLERANCE[precision]


# States between steps


@pytest.fixture
def sources() -> list[int]:
    """The buffers that steps were run from, in order."""
    return []


@pytest.fixture
def step(tiny_model: RVM) -> Callable[[np.ndarray, torch.Tensor], torch.Tensor]:
    fused = FusedStep(tiny_model)
    return torch.inference_mode()(lambda frames, state: fused(torch.from_numpy(frames), state))


@pytest.fixture
def engine(tiny_model: RVM, sources: list[int]) -> TensorRTEngine:
    """An engine on the CPU whose graphs are the model."""
    fused = FusedStep(tiny_model)

    def prepare(buffers: Buffers) -> Callable[[int], None]:
        def launch(source: int) -> None:
            sources.append(source)
            buffers.states[1 - source][0].copy_(fused(buffers.frames, buffers.states[source][0]))

        return launch

    return TensorRTEngine(spec_of(), step_shapes(tiny_model, spec_of()), torch.device("cpu"), prepare)


def test_steps_go_to_and_fro_between_the_buffers(engine: TensorRTEngine, sources: list[int], step: Any) -> None:
    assert isinstance(engine, Engine)
    state = expected = engine.init_state()
    for seed in range(6):
        features, state = engine.step(frames_of(seed), state)
        expected = step(frames_of(seed), expected)
        assert torch.equal(features, expected)
    assert sources == [0, 1, 0, 1, 0, 1]


def test_kept_features_stay_as_they_are(engine: TensorRTEngine, step: Any) -> None:
    state = expected = engine.init_state()
    kept = []
    for seed in range(5):
        features, state = engine.step(frames_of(seed), state)
        kept.append(features)
    for seed in range(5):
        expected = step(frames_of(seed), expected)
        assert torch.equal(kept[seed], expected)


def test_streams_may_take_turns(engine: TensorRTEngine, step: Any) -> None:
    states = [engine.init_state(), engine.init_state()]
    expected = list(states)
    for turn in range(8):
        stream = turn % 2 if turn < 6 else 1
        _, states[stream] = engine.step(frames_of(turn), states[stream])
        expected[stream] = step(frames_of(turn), expected[stream])
        assert torch.equal(states[stream], expected[stream])


def test_a_step_can_be_repeated_and_dropped(engine: TensorRTEngine) -> None:
    _, before = engine.step(frames_of(0), engine.init_state())
    first, dropped = engine.step(frames_of(1), before)
    engine.step(frames_of(2), dropped)
    again, _ = engine.step(frames_of(1), before)
    assert torch.equal(first, again)


def test_a_new_start_forgets(engine: TensorRTEngine) -> None:
    first, state = engine.step(frames_of(0), engine.init_state())
    engine.step(frames_of(1), state)
    again, _ = engine.step(frames_of(0), engine.init_state())
    assert torch.equal(first, again)


def test_a_failed_step_spoils_no_state(tiny_model: RVM, step: Any) -> None:
    fused, broken = FusedStep(tiny_model), [False]

    def prepare(buffers: Buffers) -> Callable[[int], None]:
        def launch(source: int) -> None:
            if broken[0]:
                raise EngineError("the GPU is gone")
            buffers.states[1 - source][0].copy_(fused(buffers.frames, buffers.states[source][0]))

        return launch

    engine = TensorRTEngine(spec_of(), step_shapes(tiny_model, spec_of()), torch.device("cpu"), prepare)
    _, state = engine.step(frames_of(0), engine.init_state())
    broken[0] = True
    with pytest.raises(EngineError, match="gone"):
        engine.step(frames_of(1), engine.init_state())
    broken[0] = False
    features, _ = engine.step(frames_of(1), state)
    assert torch.equal(features, step(frames_of(1), state))


def test_torch_refuses_to_change_a_returned_state(engine: TensorRTEngine) -> None:
    _, state = engine.step(frames_of(0), engine.init_state())
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        state.zero_()


def test_read_only_and_strided_frames_are_taken(engine: TensorRTEngine) -> None:
    frames = frames_of()
    expected, _ = engine.step(frames, engine.init_state())
    strided = np.repeat(frames, 2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    features, _ = engine.step(strided, engine.init_state())
    assert torch.equal(features, expected)


def test_wrong_frames_and_states_are_refused(engine: TensorRTEngine) -> None:
    with pytest.raises(EngineError, match="expected uint8 frames"):
        engine.step(frames_of().astype(np.float32), engine.init_state())
    with pytest.raises(EngineError, match=r"expected a state \(1, 25, 64\), got \(1, 64\)"):
        engine.step(frames_of(), torch.zeros(1, 64))

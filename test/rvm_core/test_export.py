"""The exported step: torch's program and the ONNX file, run by onnxruntime and by ONNX's own reference."""

import copy
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core import export
from rvm_core.checkpoint import weights_hash
from rvm_core.config import RVMConfig
from rvm_core.engines.base import EngineError, EngineSpec
from rvm_core.export import export_step, to_onnx
from rvm_core.fused import FusedStep, cast_blocks
from rvm_core.model import RVM

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

STEPS = 64
FP32_TOLERANCE = 2e-5
"""Largest difference from the model of a feature of order 1 after 64 carried steps, summed in another order."""
FP16_TOLERANCE = 1e-2
"""The same for products in float16, of which each rounds to 0.0005."""
BF16_TOLERANCE = 6e-2
"""The same for bfloat16, which rounds to 0.004."""

TINY_SIZE = (64, 96)
OTHER_SIZE = (80, 48)


def spec_of(precision: str = "fp32", size: tuple[int, int] = TINY_SIZE, batch_size: int = 1) -> EngineSpec:
    return EngineSpec(backend="onnx", precision=precision, device="cpu", image_size=size, batch_size=batch_size)


def frames_of(spec: EngineSpec, steps: int) -> Iterator[np.ndarray]:
    """A pattern that moves, with noise."""
    rng = np.random.default_rng(0)
    shape = (spec.batch_size, *spec.image_size, 3)
    background = rng.integers(0, 200, shape)
    for step in range(steps):
        moved = np.roll(background, 3 * step, axis=2)
        yield (moved + rng.integers(0, 56, shape)).astype(np.uint8)


def session_of(path: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    # Its threads would wait busily while torch computes, and torch's while it does.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda frames, state: session.run(["features"], {"frames": frames, "state": state})[0]


def largest_difference(
    run: Callable[[np.ndarray, np.ndarray], np.ndarray], model: RVM, spec: EngineSpec, steps: int = STEPS
) -> float:
    """Over all steps, each side with its own state; the other side is the model in float32."""
    expected = model.init_state(spec.batch_size, *spec.image_size)
    state = expected.numpy()
    largest = 0.0
    for frames in frames_of(spec, steps):
        state = run(frames, state)
        with torch.inference_mode():
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
            _, expected = model(pixels, expected)
        assert state.dtype == np.float32 and state.shape == expected.shape
        largest = max(largest, float(np.abs(state - expected.numpy()).max()))
    return largest


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def other_model() -> RVM:
    """Other sizes than those of the tiny model: more heads in the encoder than in the core, and widths that differ."""
    config = RVMConfig(
        width=96,
        encoder_depth=1,
        encoder_heads=6,
        encoder_mlp_width=80,
        core_depth=2,
        core_heads=2,
        core_mlp_width=112,
    )
    return RVM(config, seed=1).eval()


@pytest.fixture(scope="module")
def files(tiny_model: RVM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in each precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {precision: folder / f"{precision}.onnx" for precision in export.DTYPES}
    for precision, path in paths.items():
        to_onnx(tiny_model, spec_of(precision), path)
    return paths


def test_fp32_matches_the_model(tiny_model: RVM, files: dict[str, Path]) -> None:
    assert largest_difference(session_of(files["fp32"]), tiny_model, spec_of()) < FP32_TOLERANCE


@pytest.mark.parametrize(("which", "size"), [("tiny_model", OTHER_SIZE), ("other_model", (256, 256))])
def test_fp32_matches_at_other_sizes(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, size: tuple[int, int]
) -> None:
    model: RVM = request.getfixturevalue(which)
    spec = spec_of(size=size, batch_size=2)
    to_onnx(model, spec, tmp_path / "step.onnx")
    assert largest_difference(session_of(tmp_path / "step.onnx"), model, spec) < FP32_TOLERANCE


def test_fp16_is_close_to_the_model(tiny_model: RVM, files: dict[str, Path]) -> None:
    difference = largest_difference(session_of(files["fp16"]), tiny_model, spec_of())
    assert FP32_TOLERANCE < difference < FP16_TOLERANCE


def test_bf16_is_close_to_the_model(tiny_model: RVM, files: dict[str, Path]) -> None:
    """By ONNX's reference: onnxruntime multiplies no bfloat16 on the CPU."""
    reference = onnx.reference.ReferenceEvaluator(str(files["bf16"]))
    run = lambda frames, state: reference.run(None, {"frames": frames, "state": state})[0]  # noqa: E731
    difference = largest_difference(run, tiny_model, spec_of(), steps=8)
    assert FP16_TOLERANCE < difference < BF16_TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_file_passes_the_checker(files: dict[str, Path], precision: str) -> None:
    onnx.checker.check_model(str(files[precision]), full_check=True)


def types_by_operator(path: Path) -> dict[str, Counter[str]]:
    """Of the first output of every operator, how often it has which type."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    found: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, Counter())[onnx.TensorProto.DataType.Name(types[node.output[0]])] += 1
    return found


@pytest.mark.parametrize(("precision", "low"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_each_operator_has_the_precision_of_the_release(files: dict[str, Path], precision: str, low: str) -> None:
    found = types_by_operator(files[precision])
    for operator in ("LayerNormalization", "Softmax", "Sigmoid", "Conv", "Sub"):
        assert set(found[operator]) == {"FLOAT"}, operator
    assert set(found["Gelu"]) == {low}
    # All but the two products of the gates.
    assert found["MatMul"]["FLOAT"] == 2 and found["MatMul"][low] > 30


def test_half_attention_is_all_that_is_float16(tiny_model: RVM, tmp_path: Path) -> None:
    to_onnx(tiny_model, spec_of(), tmp_path / "step.onnx", half_attention=True)
    assert (
        FP32_TOLERANCE < largest_difference(session_of(tmp_path / "step.onnx"), tiny_model, spec_of()) < FP16_TOLERANCE
    )
    found = types_by_operator(tmp_path / "step.onnx")
    config = tiny_model.config
    assert found["MatMul"]["FLOAT16"] == 2 * (config.encoder_depth + 2 * config.core_depth)
    assert all(set(found[operator]) == {"FLOAT"} for operator in found.keys() - {"MatMul", "Cast", "Mul", "Transpose"})


def test_fp32_holds_nothing_else(files: dict[str, Path]) -> None:
    tensors = onnx.load(files["fp32"]).graph.initializer
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors}
    assert kinds <= {"FLOAT", "INT64"}


def test_names_shapes_and_metadata(tiny_model: RVM, files: dict[str, Path]) -> None:
    model = onnx.load(files["bf16"])

    def described(values: Any) -> dict[str, tuple[str, list[int]]]:
        types = {value.name: value.type.tensor_type for value in values}
        return {
            name: (onnx.TensorProto.DataType.Name(kind.elem_type), [dim.dim_value for dim in kind.shape.dim])
            for name, kind in types.items()
        }

    assert described(model.graph.input) == {"frames": ("UINT8", [1, 64, 96, 3]), "state": ("FLOAT", [1, 25, 64])}
    assert described(model.graph.output) == {"features": ("FLOAT", [1, 25, 64])}
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "rvm.model": "rvm_custom",
        "rvm.weights_hash": weights_hash(tiny_model),
        "rvm.precision": "bf16",
        "rvm.frames_shape": "1x64x96x3",
        "rvm.state_shape": "1x25x64",
    }


def test_same_export_gives_the_same_bytes_without_paths(
    tiny_model: RVM, files: dict[str, Path], tmp_path: Path
) -> None:
    to_onnx(tiny_model, spec_of(), tmp_path / "again.onnx")
    content = (tmp_path / "again.onnx").read_bytes()
    assert content == files["fp32"].read_bytes()
    assert b".py" not in content
    assert os.fsencode(Path(export.__file__).parent) not in content


def test_unused_weights_are_left_out(tiny_model: RVM, files: dict[str, Path]) -> None:
    """Neither the decoder nor the projections that were fused travel along."""
    weights = sum(p.numel() for name, p in tiny_model.named_parameters() if not name.startswith("decoder."))
    table = (TINY_SIZE[0] // 16) * (TINY_SIZE[1] // 16) * tiny_model.config.width
    assert files["fp32"].stat().st_size < 4 * (weights + table) + (64 << 10)


def test_float_frames_give_the_same(tiny_model: RVM, files: dict[str, Path], tmp_path: Path) -> None:
    to_onnx(tiny_model, spec_of(), tmp_path / "float.onnx", frames_dtype=torch.float32)
    frames = next(frames_of(spec_of(), 1))
    state = tiny_model.init_state(1, *TINY_SIZE).numpy()
    expected = session_of(files["fp32"])(frames, state)
    assert np.array_equal(session_of(tmp_path / "float.onnx")(frames.astype(np.float32), state), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_program_is_the_fused_step(tiny_model: RVM, dtype: torch.dtype) -> None:
    program = export_step(tiny_model, spec_of(), dtype=dtype).module()
    step = FusedStep(cast_blocks(copy.deepcopy(tiny_model), dtype))
    frames, state = torch.from_numpy(next(frames_of(spec_of(), 1))), torch.randn(1, 25, 64)
    with torch.inference_mode():
        assert torch.equal(program(frames, state), step(frames, state))


def test_model_is_left_as_it_is(tiny_model: RVM) -> None:
    kept = {name: tensor.clone() for name, tensor in [*tiny_model.named_parameters(), *tiny_model.named_buffers()]}
    export_step(tiny_model, spec_of(), dtype=torch.bfloat16)
    for name, tensor in [*tiny_model.named_parameters(), *tiny_model.named_buffers()]:
        assert tensor.dtype == torch.float32 and torch.equal(tensor, kept[name]), name


def test_big_weights_go_beside_the_file(
    tiny_model: RVM, other_model: RVM, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "INLINE_BYTES", 1000)
    path = tmp_path / "step.onnx"
    to_onnx(other_model, spec_of(), path)
    (stale,) = tmp_path.glob("step.onnx.*.data")
    to_onnx(tiny_model, spec_of(), path)
    (data,) = tmp_path.glob("step.onnx.*.data")
    assert data != stale
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert path.stat().st_size < data.stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    frames, state = next(frames_of(spec_of(), 1)), tiny_model.init_state(1, *TINY_SIZE).numpy()
    assert np.array_equal(session_of(path)(frames, state), session_of(files["fp32"])(frames, state))


def test_failed_write_leaves_the_old_file(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_ir.save", full)
    (tmp_path / "step.onnx").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        to_onnx(tiny_model, spec_of(), tmp_path / "step.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]
    assert (tmp_path / "step.onnx").read_bytes() == b"old"


def test_unknown_precision_lists_the_known(tiny_model: RVM, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot export 'int8'.*fp32, fp16, bf16"):
        to_onnx(tiny_model, spec_of("int8"), tmp_path / "step.onnx")


def test_missing_exporter_names_the_extra(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"onnxscript: pip install rvm_perception\[onnx\]"):
        to_onnx(tiny_model, spec_of(), tmp_path / "step.onnx")

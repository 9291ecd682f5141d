"""The ONNX file with 8-bit factors, run by onnxruntime."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core import RVM
from rvm_core.engines import EngineError, EngineSpec, check_engine
from rvm_core.engines.onnx_int8 import to_int8_onnx

needs_packages = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nncf", "onnx", "onnxscript", "onnxruntime"))),
    reason="needs NNCF, onnx, onnxscript and onnxruntime: pip install rvm_perception[int8,onnx]",
)
SPEC = EngineSpec(backend="tensorrt", precision="int8", device="cuda:0", image_size=(64, 96))


@pytest.fixture(scope="module")
def file(tiny_model: RVM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "step.onnx"
    to_int8_onnx(tiny_model, SPEC, path, lambda line: None)
    return path


class OnnxEngine:
    spec = SPEC

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(file)

    def init_state(self) -> torch.Tensor:
        return torch.zeros(1, 4 * 6 + 1, 64)

    def step(self, frames: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.from_numpy(self._session.run(None, {"frames": frames, "state": state.numpy()})[0])
        return features, features


@needs_packages
def test_step_passes_the_gate(tiny_model: RVM, file: Path) -> None:
    report = check_engine(OnnxEngine(file), tiny_model)
    assert report.passed and report.unseen is not None, report.figures()
    # 8 bits were really used: float16 errs by 0.0008.
    assert report.relative_error > 0.01


@needs_packages
def test_products_with_weights_have_symmetric_factors_of_8_bits(tiny_model: RVM, file: Path) -> None:
    import onnx

    graph = onnx.load(file).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
    inputs = Counter(operand_types(node, makers) for node in graph.node if node.op_type == "MatMul")
    config = tiny_model.config
    blocks, core = config.encoder_depth + 2 * config.core_depth, config.core_depth
    quantized = inputs.pop(("DequantizeLinear", "DequantizeLinear"))
    # Of an encoder block: query, key and value as one, out, and two of the MLP. Of a core block: two more of
    # cross-attention, whose keys and values are one product for all blocks.
    assert quantized == 4 * config.encoder_depth + 6 * core + 1
    # The gates' two, and two of each attention.
    assert sum(inputs.values()) == 2 + 2 * blocks


def operand_types(node: Any, makers: dict[str, Any]) -> tuple[str, ...]:
    return tuple(makers[name].op_type if name in makers else "" for name in node.input)


@pytest.mark.parametrize("absent", ["nncf", "onnxruntime"])
def test_missing_package_names_the_extra(
    tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    monkeypatch.setattr("rvm_core.engines.calibration.find_spec", lambda name: None if name == absent else object())
    with pytest.raises(EngineError, match=rf"needs {absent}: pip install rvm_perception\[int8\]"):
        to_int8_onnx(tiny_model, SPEC, tmp_path / "step.onnx", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_too_large_model_is_refused(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvm_core.engines.calibration.find_spec", lambda name: object())
    monkeypatch.setattr("rvm_core.engines.onnx_int8.MAX_BYTES", 1000)
    with pytest.raises(EngineError, match="models of up to 0.0 GB in float32.*choose fp16 or bf16"):
        to_int8_onnx(tiny_model, SPEC, tmp_path / "step.onnx", lambda line: None)

"""Engines and backends that stand in for runtimes: sound ones that build files, and some that are broken on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvm_core import RVM, EngineError
from rvm_core.engines import Engine, EngineSpec, Progress
from rvm_core.engines.torch import TorchEngine

Features = torch.Tensor


class AlteredEngine:
    """torch in float32 under another name, with its features and its state altered in each step."""

    def __init__(
        self,
        model: RVM,
        spec: EngineSpec,
        *,
        features: Callable[[Features, int], Features] = lambda features, step: features,
        state: Callable[[Any, int], Any] = lambda state, step: state,
    ) -> None:
        self.spec = spec
        self._engine = TorchEngine(model, replace(spec, backend="torch", precision="fp32"))
        self._features, self._state, self._steps = features, state, 0

    def init_state(self) -> Any:
        return self._engine.init_state()

    def step(self, frames: np.ndarray, state: Any) -> tuple[Features, Any]:
        features, state = self._engine.step(frames, self._state(state, self._steps))
        features = self._features(features.clone(), self._steps)
        self._steps += 1
        return features, state


class FileBackend:
    """A backend that builds a file: the weights. `log` names, in turn, what was called."""

    precisions = ("fp32", "bf16", "int8")
    builds_files = True

    def __init__(self, name: str = "openvino", devices: tuple[str, ...] = ("cpu",)) -> None:
        self.name = name
        self.present = devices
        self.absent: str | None = None
        self.version = "1.0"
        self.log: list[str] = []
        self.on_build: Callable[[], object] = lambda: None
        self.build_error: Exception | None = None
        self.load_errors: list[Exception] = []
        self.alter: dict[str, Any] = {}

    def missing(self) -> str | None:
        return self.absent

    def devices(self) -> tuple[str, ...]:
        return self.present

    def native_precision(self, device: str) -> str:
        return "bf16"

    def runtime(self) -> str:
        return f"{self.name} {self.version}"

    def hardware(self, device: str) -> str:
        return "an abacus"

    def build(self, model: RVM, spec: EngineSpec, folder: Path, progress: Progress) -> None:
        self.log.append("build")
        progress("half way")
        (folder / "part").mkdir()
        (folder / "part" / "weights.bin").write_bytes(_cls_token(model))
        self.on_build()
        if self.build_error:
            raise self.build_error

    def load(self, model: RVM, spec: EngineSpec, folder: Path | None) -> Engine:
        self.log.append("load")
        if self.load_errors:
            raise self.load_errors.pop(0)
        assert folder is not None
        if (folder / "part" / "weights.bin").read_bytes() != _cls_token(model):
            raise EngineError("weights.bin is of other weights")
        return AlteredEngine(copy.deepcopy(model), spec, **self.alter)


def _cls_token(model: RVM) -> bytes:
    return model.encoder.cls_token.detach().numpy().tobytes() * 64

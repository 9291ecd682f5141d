"""A value of nested dataclasses, containers, arrays and tensors, as one file and back to the last bit; no pickle.

The file is safetensors: the arrays, and the tree around them as JSON in its header. Classes are named in it, and only
dataclasses, named tuples and enums of rvm_core and rvm_perception are made from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_PACKAGES = ("rvm_core.", "rvm_perception.")
_RAW = {torch.bfloat16: torch.int16}
"""Types that numpy does not have, and those that their bits are kept as."""


class StateError(ValueError):
    """A value cannot be saved, or a file holds none."""


def save_value(path: Path, value: Any) -> None:
    """Writes a value. Raises `StateError` for one that holds something else than the text above says."""
    writer = _Writer()
    tree = writer.encode(value)
    save_file(writer.arrays, path, metadata={"tree": json.dumps(tree, allow_nan=True)})


def load_value(path: Path) -> Any:
    """The value, its tensors on the devices that they were on. Raises `StateError` for another file."""
    try:
        with safe_open(path, framework="numpy") as file:
            tree = json.loads((file.metadata() or {})["tree"])
            return _Reader({name: file.get_tensor(name) for name in file.keys()}).decode(tree)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise StateError(f"{path} holds no state of this version: {error}") from error


class _Writer:
    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        # What several places share is written once. The values are kept, so that an id means one value only.
        self._known: dict[int, tuple[Any, dict[str, Any]]] = {}

    def encode(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return {"enum": _name(type(value)), "value": value.value}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
            if id(value) not in self._known:
                self._known[id(value)] = (value, self._array(value))
            return self._known[id(value)][1]
        if is_dataclass(value) and not isinstance(value, type):
            parts = {f.name: self.encode(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"class": _name(type(value)), "fields": parts}
        if isinstance(value, tuple):
            if hasattr(value, "_fields"):
                return {
                    "class": _name(type(value)),
                    "fields": dict(zip(value._fields, map(self.encode, value), strict=True)),
                }
            return {"tuple": [self.encode(entry) for entry in value]}
        if isinstance(value, list):
            return [self.encode(entry) for entry in value]
        if isinstance(value, Mapping):
            kind = "counter" if isinstance(value, Counter) else "dict"
            return {kind: [[self.encode(key), self.encode(entry)] for key, entry in value.items()]}
        if isinstance(value, (set, frozenset)):
            return {type(value).__name__: [self.encode(entry) for entry in sorted(value)]}
        raise StateError(f"a value of {type(value).__name__} cannot be saved")

    def _array(self, value: Any) -> dict[str, Any]:
        name = str(len(self.arrays))
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
            raw = tensor.view(_RAW[tensor.dtype]) if tensor.dtype in _RAW else tensor
            self.arrays[name] = np.ascontiguousarray(raw.cpu().numpy()).reshape(tensor.shape)
            node = {"tensor": name, "dtype": str(tensor.dtype).removeprefix("torch."), "device": str(tensor.device)}
            # The order of bytes in memory may decide how a library sums up, and so the last bit.
            return node if tensor.is_contiguous() else {**node, "strides": list(tensor.stride())}
        self.arrays[name] = np.ascontiguousarray(value).reshape(np.shape(value))
        if isinstance(value, np.generic):
            return {"scalar": name}
        return {"array": name, "fortran": bool(value.flags.f_contiguous and not value.flags.c_contiguous)}


class _Reader:
    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._made: dict[str, Any] = {}

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        (kind, content), *_ = node.items()
        if kind in ("tensor", "array", "scalar"):
            if content not in self._made:
                self._made[content] = self._array(node)
            return self._made[content]
        if kind == "enum":
            return _class(content)(node["value"])
        if kind == "class":
            return _class(content)(**{name: self.decode(entry) for name, entry in node["fields"].items()})
        if kind == "dict":
            return {self.decode(key): self.decode(entry) for key, entry in content}
        if kind == "counter":
            return Counter({self.decode(key): self.decode(entry) for key, entry in content})
        makers: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
        return makers[kind](self.decode(entry) for entry in content)

    def _array(self, node: Mapping[str, Any]) -> Any:
        if "tensor" not in node:
            array = self._arrays[node["scalar"] if "scalar" in node else node["array"]]
            return array[()] if "scalar" in node else (np.asfortranarray(array) if node["fortran"] else array)
        tensor = torch.from_numpy(self._arrays[node["tensor"]])
        dtype = getattr(torch, node["dtype"])
        tensor = tensor.view(dtype) if dtype in _RAW else tensor
        if "strides" in node and 0 not in node["strides"]:
            tensor = torch.empty_strided(tensor.shape, node["strides"], dtype=dtype).copy_(tensor)
        return tensor.to(node["device"])


def _name(kind: type) -> str:
    if not kind.__module__.startswith(_PACKAGES):
        raise StateError(f"a value of {kind.__module__}.{kind.__name__} cannot be saved")
    return f"{kind.__module__}:{kind.__name__}"


def _class(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module.startswith(_PACKAGES) or not attribute.isidentifier():
        raise StateError(f"{name} is no class that is made from a file")
    kind = getattr(import_module(module), attribute)
    if not (isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, (tuple, Enum)))):
        raise StateError(f"{name} is no class that is made from a file")
    return kind

"""Which engine this machine gets: the backends there are, and the choice among them with its reasons."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

import torch

from rvm_core.arguments import BACKENDS
from rvm_core.engines.base import PRECISIONS, Backend, EngineError, EngineSpec

_CLASSES = {
    "torch": "rvm_core.engines.torch:TorchBackend",
    "inductor": "rvm_core.engines.inductor:InductorBackend",
    "openvino": "rvm_core.engines.openvino:OpenVINOBackend",
    "tensorrt": "rvm_core.engines.tensorrt:TensorRTBackend",
}
_AUTO = (("tensorrt", "cuda"), ("torch", "cuda"), ("openvino", "cpu"), ("torch", "cpu"))
"""Backends with kinds of devices, the fastest first."""
_X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class EnginePlan:
    """Which engine will be made, and why this one."""

    spec: EngineSpec
    reason: str


@cache
def backends() -> dict[str, Backend]:
    """All backends by name, usable on this machine or not. Their runtimes are not imported by this."""
    found: dict[str, Backend] = {}
    for name, place in _CLASSES.items():
        module, _, attribute = place.partition(":")
        found[name] = getattr(import_module(module), attribute)()
    return found


def plan_engine(
    *,
    backend: str = "auto",
    precision: str = "auto",
    image_size: tuple[int, int],
    batch_size: int = 1,
    device: str | None = None,
) -> EnginePlan:
    """What `create_engine` would make with these arguments. Nothing is built or loaded. Same errors."""
    return plan_engines(backend, precision, image_size, batch_size, device, fallback=False)[0]


def describe(spec: EngineSpec) -> str:
    """E.g. "openvino on cpu in bf16"."""
    return f"{spec.backend} on {spec.device} in {spec.precision}"


def plan_engines(
    backend: str, precision: str, image_size: tuple[int, int], batch_size: int, device: str | None, *, fallback: bool
) -> list[EnginePlan]:
    """The engines that fit, the best first; only one unless `fallback`. Raises as `create_engine` does.

    The last resort, where the precision is left open, is torch in fp32.
    """
    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"unknown precision {precision!r}; known: auto, {', '.join(PRECISIONS)}")
    # Raises ValueError for impossible sizes, whatever is installed.
    asked = EngineSpec(backend=backend, precision=precision, device="", image_size=image_size, batch_size=batch_size)
    wanted: list[tuple[EngineSpec, str | None]] = [(asked, None)] if backend != "auto" else []
    if backend == "auto" or fallback:
        wanted += [(replace(asked, backend=name), kind) for name, kind in _AUTO]
    if fallback and precision == "auto":
        wanted.append((replace(asked, backend="torch", precision="fp32"), None))
    plans: list[EnginePlan] = []
    skipped: list[str] = []
    for spec, kind in wanted:
        try:
            plan = _plan(spec, kind, device)
        except EngineError as error:
            if spec is asked and not fallback:
                raise
            skipped.append(str(error))
            continue
        if plan.spec not in (earlier.spec for earlier in plans):
            reasons = [plan.reason] if spec is asked else [*dict.fromkeys(skipped), plan.reason]
            plans.append(EnginePlan(plan.spec, f"{describe(plan.spec)}: {'; '.join(reasons)}"))
        if not fallback:
            break
    if not plans:
        raise EngineError(f"no engine fits: {'; '.join(dict.fromkeys(skipped))}")
    return plans


def _plan(asked: EngineSpec, kind: str | None, device: str | None) -> EnginePlan:
    """The plan for one backend on one kind of device. Raises `EngineError` that says why it does not fit."""
    backend = backends()[asked.backend]
    if kind == "cuda" and not torch.cuda.device_count():
        raise EngineError("no NVIDIA GPU found")
    if problem := backend.missing():
        raise EngineError(f"{backend.name} is not usable: {problem}")
    present = backend.devices()
    fitting = [d for d in present if device in (None, d, d.partition(":")[0]) and kind in (None, d.partition(":")[0])]
    if device is not None and not any(device in (d, d.partition(":")[0]) for d in present):
        raise EngineError(f"device {device!r} is not there: {backend.name} sees {', '.join(present) or 'none'}")
    if not fitting:
        raise EngineError(f"{backend.name} sees no device of kind {kind}")
    if (asked.backend, kind) == ("openvino", "cpu") and platform.machine().lower() not in _X86:
        raise EngineError(f"openvino is not the first choice on {platform.machine()}")
    if asked.precision == "auto":
        precision = backend.native_precision(fitting[0])
        why = f"{precision} is what {backend.hardware(fitting[0])} computes best"
    else:
        precision, why = asked.precision, f"{asked.precision} as asked"
    if precision not in backend.precisions:
        raise EngineError(f"{backend.name} cannot compute in {precision}, only in {', '.join(backend.precisions)}")
    spec = replace(asked, precision=precision, device=fitting[0])
    return EnginePlan(spec, f"{backend.runtime()} is installed; {why}")

"""Engines: the same model on several runtimes. Each runtime is imported by its own file only, when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rvm_core.engines.base import PRECISIONS, Backend, Engine, EngineError, EngineSpec, Progress, State

if TYPE_CHECKING:
    from rvm_core.engines.cache import EngineCache
    from rvm_core.engines.clip import gate_frames
    from rvm_core.engines.create import create_engine
    from rvm_core.engines.gate import GateReport, check_engine
    from rvm_core.engines.plan import BACKENDS, EnginePlan, backends, plan_engine

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "Engine",
    "EngineCache",
    "EngineError",
    "EnginePlan",
    "EngineSpec",
    "GateReport",
    "Progress",
    "State",
    "backends",
    "check_engine",
    "create_engine",
    "gate_frames",
    "plan_engine",
]

_MODULES = {
    "BACKENDS": "plan",
    "EngineCache": "cache",
    "EnginePlan": "plan",
    "GateReport": "gate",
    "backends": "plan",
    "check_engine": "gate",
    "create_engine": "create",
    "gate_frames": "clip",
    "plan_engine": "plan",
}


def __getattr__(name: str) -> Any:
    """Imports what is not part of the contract when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

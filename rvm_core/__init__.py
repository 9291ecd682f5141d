"""RVM without ROS: model, checkpoints, engines, preprocessing and tracking.

Names are imported when they are first used, so that `import rvm_core` and `rvm --help` do not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvm_core.checkpoint import CheckpointError, load_checkpoint, load_encoder, save_checkpoint, weights_hash
    from rvm_core.config import DecoderConfig, RVMConfig
    from rvm_core.engines import Engine, EngineError, create_engine
    from rvm_core.model import RVM
    from rvm_core.preprocess import Preprocess
    from rvm_core.streaming import StreamingEncoder

__all__ = [
    "RVM",
    "CheckpointError",
    "DecoderConfig",
    "Engine",
    "EngineError",
    "Preprocess",
    "RVMConfig",
    "StreamingEncoder",
    "create_engine",
    "load_checkpoint",
    "load_encoder",
    "save_checkpoint",
    "weights_hash",
]

_MODULES = {
    "RVM": "model",
    "CheckpointError": "checkpoint",
    "DecoderConfig": "config",
    "Engine": "engines",
    "EngineError": "engines",
    "Preprocess": "preprocess",
    "RVMConfig": "config",
    "StreamingEncoder": "streaming",
    "create_engine": "engines",
    "load_checkpoint": "checkpoint",
    "load_encoder": "checkpoint",
    "save_checkpoint": "checkpoint",
    "weights_hash": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

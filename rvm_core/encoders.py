"""The streaming encoders by name, and from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rvm_core.config import ENCODER_NAMES, IMAGE_SUFFIX, TRECVIT_SIZES, RVMConfig, TRecViTConfig
from rvm_core.streaming import StreamingEncoder


def named_config(name: str) -> RVMConfig | TRecViTConfig:
    """The configuration of a named model. Raises `ValueError`, naming the known models, for another name."""
    if name not in ENCODER_NAMES:
        raise ValueError(f"unknown model {name!r}; known models: {', '.join(ENCODER_NAMES)}")
    return TRecViTConfig.named(name) if name in TRECVIT_SIZES else RVMConfig.named(name)


def make_encoder(name: str, *, seed: int | None = 0) -> StreamingEncoder:
    """A named model with random weights, in eval mode.

    seed: of the weights; None leaves them uninitialised. Raises `ValueError`, naming the known models, for another.
    """
    from rvm_core.model import RVM
    from rvm_core.trecvit import TRecViT

    config = named_config(name)
    model = TRecViT(config, seed=seed) if isinstance(config, TRecViTConfig) else RVM(config, seed=seed)
    return model.eval()


def open_encoder(name: str, weights: str | Path | None = None, *, seed: int = 0) -> StreamingEncoder:
    """The model of a file, whatever streaming encoder it holds; without a file, the named one with random weights.

    Of the name of a model whose weights are in a file only the ending "_image" matters: RVM is then without memory.
    Raises `CheckpointError` as `load_encoder`, and `ValueError` for an unknown name or weights that have no image form.
    """
    from rvm_core.checkpoint import load_encoder

    if weights is None:
        return make_encoder(name, seed=seed)
    model = load_encoder(weights)
    return without_memory(model) if name.endswith(IMAGE_SUFFIX) else model


def without_memory(model: StreamingEncoder) -> StreamingEncoder:
    """The image encoder of the same weights, which are shared. Raises `ValueError` for a model that has none."""
    from rvm_core.model import RVM

    if not isinstance(model, RVM):
        raise ValueError(f"only RVM has a form without memory, got {model.config.name}")
    image = RVM(replace(model.config, memory=False, decoder=None), seed=None)
    image.encoder, image.core = model.encoder, model.core
    return image.eval()

"""The encoders of a comparison: opened by what the user calls them, each behind one contract."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rvm_core.checkpoint import load_encoder, load_fourds, read_info
from rvm_core.checkpoint_checks import tensors_hash
from rvm_core.config import ENCODER_NAMES, FOURDS_SIZES, IMAGE_SUFFIX, PATCH_SIZE, FourDSConfig
from rvm_core.encoders import make_encoder, without_memory
from rvm_core.fourds import FourDS
from rvm_core.streaming import StreamingEncoder
from rvm_core.transformers_encoder import KINDS, ClipTransformer, FrameTransformer, load_transformer, make_transformer
from rvm_core.weights import find_weights
from rvm_training.baselines import pixel_tokens
from rvm_training.evaluation.frame_encoder import ClipEncoder, ClipModel, FrameEncoder, model_step

if TYPE_CHECKING:
    from rvm_training.evaluation.features import Encoder

PIXELS = "pixels"
RANDOM, IMAGE = "random", "image"


@dataclass(frozen=True, kw_only=True)
class Source:
    """How to open encoders."""

    device: str = "cpu"
    causal: bool = False
    """See `ClipEncoder`."""
    window: int | None = None
    """Frames that V-JEPA 2 sees at once; None: as many as it was trained with."""
    online: bool = False
    """Whether what is not on this machine may be downloaded from the hub."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An encoder of a comparison."""

    spec: str
    """What the user called it."""
    name: str
    """For tables; says so where weights are random."""
    kind: str
    """"recurrent", "image", "clip" or "pixels"."""
    random: bool
    parameters: int
    width: int
    """Channels of the features."""
    frames: int
    """Of a window, for a clip encoder; otherwise 1."""
    model: StreamingEncoder | ClipModel | None
    """On the device, in eval mode, float32; None for pixels."""
    encoder: Encoder

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "spec": self.spec,
            "name": self.name,
            "kind": self.kind,
            "random_weights": self.random,
            "parameters": self.parameters,
            "width": self.width,
            "window": self.frames,
        }


def folder_name(spec: str) -> str:
    """Of the folder with the results of a model: any file system takes it, and no other spec has it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", spec).strip("._")[-60:]
    return plain if plain == spec else f"{plain}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


def open_compared(spec: str, source: Source) -> Compared:
    """Opens an encoder by what the user calls it: a checkpoint; a name, by its fetched weights or else random ones;
    KIND:FOLDER, image:FILE, random:NAME, random:KIND or pixels.

    Raises `ValueError` for what there is not, `FileNotFoundError`, `CheckpointError`, and `ImportError`, which names
    the extra, for an encoder whose library is missing.
    """
    if spec == PIXELS:
        encoder = FrameEncoder("raw pixels", 3 * PATCH_SIZE**2, lambda frame, state: (pixel_tokens(frame), state))
        return Compared(
            spec=spec, name=encoder.name, kind="pixels", random=False, parameters=0, width=encoder.width, frames=1,
            model=None, encoder=encoder,
        )  # fmt: skip
    model, name, random = _open(spec, source)
    model = model.to(source.device).eval()
    name += " (random weights)" if random else ""
    facts = {
        "weights_hash": tensors_hash((key, tensor.cpu()) for key, tensor in model.state_dict().items()),
        "model": type(model).__name__,
        "config": str(model.config),
        "device": torch.cuda.get_device_name(source.device) if source.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
    }
    streaming = isinstance(model, StreamingEncoder)
    made: Encoder
    if isinstance(model, StreamingEncoder):
        step = model_step(model, source.device)
        made = FrameEncoder(name, model.config.width, step, random=random, facts=facts)
    else:
        assert isinstance(model, (FourDS, ClipTransformer))
        made = ClipEncoder(name, model, device=source.device, causal=source.causal, random=random, facts=facts)
    return Compared(
        spec=spec,
        name=name,
        kind=_kind(model) if streaming else "clip",
        random=random,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        width=made.width,
        frames=1 if streaming else model.config.frames,
        model=model,
        encoder=made,
    )


def _kind(model: nn.Module) -> str:
    without = isinstance(model, FrameTransformer) or not getattr(model.config, "memory", True)
    return "image" if without else "recurrent"


def _open(spec: str, source: Source) -> tuple[Any, str, bool]:
    """The model, what it is called, and whether its weights are random."""
    head, separator, rest = spec.partition(":")
    if separator and head == RANDOM:
        return _random(rest, source), rest, True
    if separator and head in KINDS:
        model = load_transformer(head, rest, online=source.online, frames=_window(head, source))
        return model, model.config.name, False
    if separator and head == IMAGE:
        model, path = _load(rest)
        image = without_memory(model)
        return image, _named(image, path), False
    if spec in KINDS:
        raise ValueError(f"{spec} needs weights: give {spec}:FOLDER, or {RANDOM}:{spec}")
    if spec in ENCODER_NAMES or spec in FOURDS_SIZES:
        try:
            model, _ = _load(spec.removesuffix(IMAGE_SUFFIX))
        except FileNotFoundError:
            return _random(spec, source), spec, True
        return (without_memory(model) if spec.endswith(IMAGE_SUFFIX) else model), spec, False
    model, path = _load(spec)
    return model, _named(model, path), False


def _load(name_or_path: str) -> tuple[Any, Path]:
    """A checkpoint of any encoder, without parts that features do not need."""
    path = find_weights(name_or_path)
    is_clip = isinstance(read_info(path).config, FourDSConfig)
    return load_fourds(path) if is_clip else load_encoder(path), path


def _named(model: Any, path: Path) -> str:
    """By its size, and its file if that is called otherwise."""
    size = str(model.config.encoder_only.name)
    return size if path.stem == size else f"{size} ({path.name})"


def _random(name: str, source: Source) -> Any:
    if name in KINDS:
        return make_transformer(name, frames=_window(name, source))
    if name in FOURDS_SIZES:
        return FourDS(FourDSConfig.named(name))
    if name not in ENCODER_NAMES:
        known = ", ".join((*ENCODER_NAMES, *FOURDS_SIZES, *KINDS))
        raise ValueError(f"unknown model {name!r}; known models: {known}")
    return make_encoder(name)


def _window(kind: str, source: Source) -> int | None:
    return source.window if kind == "vjepa2" else None


def with_unique_names(names: list[str], specs: list[str]) -> list[str]:
    """Names for tables, none twice."""
    return [f"{name} [{spec}]" if names.count(name) > 1 else name for name, spec in zip(names, specs, strict=True)]

"""Loads and saves the weights of all models: the releases' .npz and our .safetensors, which holds the state_dict."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rvm_core import checkpoint_names, fourds_names, trecvit_names
from rvm_core.atomic import atomic_file
from rvm_core.checkpoint_checks import tensors_hash
from rvm_core.checkpoint_plan import FORMAT_VERSION, Family, Plan
from rvm_core.fourds import FourDS
from rvm_core.model import RVM
from rvm_core.streaming import StreamingEncoder
from rvm_core.tensor_file import CheckpointError, open_tensor_file
from rvm_core.trecvit import TRecViT

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "load_checkpoint",
    "load_encoder",
    "load_fourds",
    "load_model",
    "load_trecvit",
    "read_info",
    "save_checkpoint",
    "weights_hash",
]

SUFFIXES = (".npz", ".safetensors")

FAMILIES = (checkpoint_names.FAMILY, trecvit_names.FAMILY, fourds_names.FAMILY)

Progress = Callable[[int], None]
"""Is told, after each tensor, how many parameters were read or written."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What the headers of a sound checkpoint say."""

    format: str
    """"npz" or "safetensors"."""
    config: Any
    """Of the model, an `RVMConfig` for instance, with all optional parts (decoder, classifier) that the file holds."""
    dtypes: tuple[str, ...]
    parameters: dict[str, int]
    """Number of parameters of each part, such as "encoder", "core" and, if there is one, "decoder"."""
    file_bytes: int
    optional: frozenset[str] = frozenset()
    """Those of the parts that a model does without."""


def load_checkpoint(path: str | Path, *, decoder: bool = False, progress: Progress | None = None) -> RVM:
    """Loads RVM from the release's .npz or our .safetensors: float32, on the CPU, in eval mode. Never reads a pickle.

    The sizes are inferred from the file, so variants without a name load too. float16 and bfloat16 are converted.
    Memory peaks at the model and two of its tensors; nothing is allocated before the file's sizes are checked.

    Args:
        path: the file; its format is told by its content.
        decoder: also load the decoder, for reconstruction. Otherwise its tensors are checked but not read.
        progress: see `Progress`.

    Raises:
        CheckpointError: the file is not a sound checkpoint, or has no decoder where one is wanted. The message lists
            every missing, unexpected, mis-shaped, wrongly typed, unreadable and non-finite tensor at once.
    """
    return cast(RVM, _load(path, (checkpoint_names.FAMILY,), {"decoder"} if decoder else (), progress))


def load_encoder(path: str | Path, *, progress: Progress | None = None) -> StreamingEncoder:
    """Loads any streaming encoder, as `load_checkpoint`: RVM without decoder, or TRecViT without classifier.

    Raises `CheckpointError` as `load_checkpoint`, and for the weights of a clip encoder.
    """
    return cast(StreamingEncoder, _load(path, STREAMING, (), progress))


def load_trecvit(path: str | Path, *, progress: Progress | None = None) -> TRecViT:
    """Loads TRecViT, with its classifier if the file has one, as `load_checkpoint`."""
    return cast(TRecViT, _load(path, (trecvit_names.FAMILY,), None, progress))


def load_fourds(path: str | Path, *, progress: Progress | None = None) -> FourDS:
    """Loads the encoder of 4DS, as `load_checkpoint`; a readout in the same file is for `load_readout`."""
    return cast(FourDS, _load(path, (fourds_names.FAMILY,), None, progress))


def load_model(path: str | Path, *, progress: Progress | None = None) -> nn.Module:
    """Loads any model, with all optional parts (decoder, classifier) that the file holds, as `load_checkpoint`."""
    return _load(path, FAMILIES, None, progress)


STREAMING = tuple(family for family in FAMILIES if issubclass(family.model_class, StreamingEncoder))


def _load(
    path: str | Path, wanted: Sequence[Family], parts: Collection[str] | None, progress: Progress | None
) -> nn.Module:
    """parts: optional ones that must be loaded; None: all that are there."""
    with open_tensor_file(path) as file:
        plan = Plan.of(file, FAMILIES, wanted)
        parts = plan.parts if parts is None else parts
        without = plan.family.optional.difference(parts)
        for part in sorted(set(parts) - plan.parts):
            plan.problems.append(f"missing: the {part}; load this checkpoint with {part}=False")
        if plan.problems:
            for _ in plan.read(file, without):
                pass
        plan.raise_problems(path)
        model = plan.family.make_model(plan.config_with(parts))
        state = model.state_dict()
        for name, tensor in plan.read(file, without):
            state[name].copy_(tensor)
            if progress:
                progress(tensor.numel())
        plan.raise_problems(path)
        if plan.layout is plan.family.own:
            _check_hashes(path, model, file.metadata)
    return model.eval()


def read_info(path: str | Path) -> CheckpointInfo:
    """Says what a checkpoint of any model holds from its headers alone, with the errors that these show."""
    with open_tensor_file(path) as file:
        plan = Plan.of(file, FAMILIES, FAMILIES)
    plan.raise_problems(path)
    size = Path(path).stat().st_size
    return CheckpointInfo(plan.format, plan.config, plan.dtypes, plan.counts(), size, plan.parts)


def save_checkpoint(model: nn.Module, path: str | Path, *, progress: Progress | None = None) -> None:
    """Saves the weights of any model in float32, with its optional parts; a crash leaves no half file.

    The suffix tells the format: ".npz", the release's layout, or ".safetensors", ours.
    Raises `ValueError` for another suffix and `OSError` if the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"expected a file name that ends with {' or '.join(SUFFIXES)}, got {path.name!r}")
    with atomic_file(path) as temporary:
        if path.suffix == ".npz":
            _write_npz(model, temporary, progress)
        else:
            metadata = {"format_version": FORMAT_VERSION, "model": cast(Any, model.config).name} | _hashes(model)
            tensors = dict(_float32(model.state_dict().items()))
            save_file(tensors, temporary, metadata=metadata)
            if progress:
                progress(sum(tensor.numel() for tensor in tensors.values()))


def weights_hash(model: nn.Module) -> str:
    """sha256 (hex) over the float32 weights that the features depend on.

    The same weights give the same hash from either format and with or without decoder or classifier. Weights cast to
    bfloat16 are other weights.
    """
    optional = family_of(model).optional
    return tensors_hash((name, tensor) for name, tensor in model.state_dict().items() if _part(name) not in optional)


def family_of(model: nn.Module) -> Family:
    """Raises `ValueError` for a model that has no checkpoints."""
    for family in FAMILIES:
        if isinstance(model, family.model_class):
            return family
    raise ValueError(f"expected a model with checkpoints, got {type(model).__name__}")


def _part(name: str) -> str:
    return name.partition(".")[0]


def _float32(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in items:
        yield name, tensor.detach().to("cpu", torch.float32).contiguous()


def _hashes(model: nn.Module) -> dict[str, str]:
    state = model.state_dict()
    hashes = {"weights_hash": weights_hash(model)}
    for part in sorted(family_of(model).optional & {_part(name) for name in state}):
        hashes[f"{part}_hash"] = tensors_hash((name, tensor) for name, tensor in state.items() if _part(name) == part)
    return hashes


def _check_hashes(path: str | Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """A .safetensors file has no checksum but ours; an archive has one in each member."""
    for key, value in _hashes(model).items():
        if metadata.get(key) != value:
            raise CheckpointError(path, f"the weights do not match the {key} in the file's metadata: it is damaged")


def _write_npz(model: nn.Module, path: Path, progress: Progress | None) -> None:
    state, family = model.state_dict(), family_of(model)
    without = family.optional - {_part(name) for name in state}
    # np.savez would hold a second copy of every turned tensor; the fixed date makes equal weights equal files.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for parameter in family.official(()).parameters(family.sizes_of(model.config), without=without):
            tensor = state[parameter.name].to("cpu", torch.float32)
            array = parameter.row.axes.to_stored(tensor).contiguous().numpy()
            with archive.open(zipfile.ZipInfo(f"{parameter.stored}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            if progress:
                progress(tensor.numel())

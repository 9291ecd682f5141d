"""Loads and saves RVM weights: the release's .npz and our .safetensors, which holds the state_dict as it is."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rvm_core.atomic import atomic_file
from rvm_core.checkpoint_checks import describe, match_tensors, read_parameters, tensors_hash
from rvm_core.checkpoint_names import OFFICIAL, OWN, Layout, Parameter, make_config, sizes_of
from rvm_core.config import RVMConfig
from rvm_core.model import RVM
from rvm_core.tensor_file import CheckpointError, TensorFile, TensorHeader, open_tensor_file, printable

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "load_checkpoint",
    "read_info",
    "save_checkpoint",
    "weights_hash",
]

FORMAT_VERSION = "1"
"""Of the .safetensors layout: names, shapes and metadata. Grows when an older reader would misread a file."""

SUFFIXES = (".npz", ".safetensors")

Progress = Callable[[int], None]
"""Is told, after each tensor, how many parameters were read or written."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What the headers of a sound checkpoint say."""

    format: str
    """"npz" or "safetensors"."""
    config: RVMConfig
    """With `config.decoder` if the file holds a decoder."""
    dtypes: tuple[str, ...]
    parameters: dict[str, int]
    """Number of parameters of "encoder", "core" and, if there is one, "decoder"."""
    file_bytes: int


def load_checkpoint(path: str | Path, *, decoder: bool = False, progress: Progress | None = None) -> RVM:
    """Loads the release's .npz or our .safetensors: float32, on the CPU, in eval mode. Never reads a pickle.

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
    with open_tensor_file(path) as file:
        plan = _Plan.of(file)
        if decoder and not plan.decoder:
            plan.problems.append("missing: the decoder; load this checkpoint with decoder=False")
        if plan.problems:
            for _ in plan.read(file, decoder=decoder):
                pass
        plan.raise_problems(path)
        config = plan.config
        model = RVM(config if decoder else replace(config, decoder=None), seed=None)
        state = model.state_dict()
        for name, tensor in plan.read(file, decoder=decoder):
            state[name].copy_(tensor)
            if progress:
                progress(tensor.numel())
        plan.raise_problems(path)
        if plan.layout is OWN:
            _check_hashes(path, model, file.metadata)
    return model.eval()


def read_info(path: str | Path) -> CheckpointInfo:
    """Says what a checkpoint holds from its headers alone, with the errors of `load_checkpoint` that these show."""
    with open_tensor_file(path) as file:
        plan = _Plan.of(file)
    plan.raise_problems(path)
    return plan.info(path)


def save_checkpoint(model: RVM, path: str | Path, *, progress: Progress | None = None) -> None:
    """Saves the weights in float32, with the decoder if the model has one; a crash leaves no half file.

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
            metadata = {"format_version": FORMAT_VERSION, "model": model.config.name} | _hashes(model)
            tensors = dict(_float32(model.state_dict().items()))
            save_file(tensors, temporary, metadata=metadata)
            if progress:
                progress(sum(tensor.numel() for tensor in tensors.values()))


def weights_hash(model: RVM) -> str:
    """sha256 (hex) over the float32 weights of encoder and core.

    The same weights give the same hash from either format and with or without the decoder. Weights cast to bfloat16
    are other weights.
    """
    return tensors_hash((name, tensor) for name, tensor in model.state_dict().items() if not _in_decoder(name))


def _in_decoder(name: str) -> bool:
    return name.startswith("decoder.")


def _float32(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in items:
        yield name, tensor.detach().to("cpu", torch.float32).contiguous()


def _hashes(model: RVM) -> dict[str, str]:
    if model.decoder is None:
        return {"weights_hash": weights_hash(model)}
    decoder = ((name, tensor) for name, tensor in model.state_dict().items() if _in_decoder(name))
    return {"weights_hash": weights_hash(model), "decoder_hash": tensors_hash(decoder)}


def _check_hashes(path: str | Path, model: RVM, metadata: Mapping[str, str]) -> None:
    """A .safetensors file has no checksum but ours; an archive has one in each member."""
    for key, value in _hashes(model).items():
        if metadata.get(key) != value:
            raise CheckpointError(path, f"the weights do not match the {key} in the file's metadata: it is damaged")


def _write_npz(model: RVM, path: Path, progress: Progress | None) -> None:
    state = model.state_dict()
    # np.savez would hold a second copy of every turned tensor; the fixed date makes equal weights equal files.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for parameter in OFFICIAL.parameters(sizes_of(model.config), decoder=model.decoder is not None):
            tensor = state[parameter.name].to("cpu", torch.float32)
            array = parameter.row.axes.to_stored(tensor).contiguous().numpy()
            with archive.open(zipfile.ZipInfo(f"{parameter.stored}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            if progress:
                progress(tensor.numel())


@dataclass
class _Plan:
    """Which tensor of a file is which parameter, and everything that is wrong with the file."""

    format: str
    layout: Layout
    sizes: dict[str, int]
    decoder: bool
    """Whether the file holds one."""
    dtypes: tuple[str, ...]
    readable: list[Parameter] = field(default_factory=list)
    """Parameters whose shape and dtype are right."""
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: TensorFile) -> _Plan:
        layout = OFFICIAL if file.format == "npz" else OWN
        found = [parameter for name in file.headers if (parameter := layout.find(name))]
        plan = cls(
            format=file.format,
            layout=layout,
            sizes=layout.infer_sizes({name: header.shape for name, header in file.headers.items()}),
            decoder=any(parameter.in_decoder for parameter in found),
            dtypes=tuple(sorted({header.dtype for header in file.headers.values()})),
        )
        if not found:
            first = ", ".join(printable(name) for name in list(file.headers)[:3])
            plan.problems.append(f"none of its {len(file.headers)} tensors is a parameter of RVM: {first}, ...")
            return plan
        version = file.metadata.get("format_version")
        if layout is OWN and version != FORMAT_VERSION:
            plan.problems.append(f"metadata: expected format_version {FORMAT_VERSION!r}, found {version!r}")
        plan._check_tensors(file.headers)
        plan._check_sizes()
        return plan

    @property
    def config(self) -> RVMConfig:
        return make_config(self.sizes, decoder=self.decoder)

    def info(self, path: str | Path) -> CheckpointInfo:
        counts: dict[str, int] = {}
        for parameter in self.readable:
            part = parameter.name.partition(".")[0]
            counts[part] = counts.get(part, 0) + math.prod(size or 0 for size in parameter.shape(self.sizes))
        return CheckpointInfo(self.format, self.config, self.dtypes, counts, Path(path).stat().st_size)

    def read(self, file: TensorFile, *, decoder: bool) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as in the state_dict, in the file's dtype; notes those that are damaged or not finite."""
        wanted = [parameter for parameter in self.readable if decoder or not parameter.in_decoder]
        return read_parameters(file, wanted, self.problems)

    def raise_problems(self, path: str | Path) -> None:
        if self.problems:
            raise CheckpointError(
                path, f"not a sound RVM checkpoint, {describe(len(self.problems))}:", tuple(self.problems)
            )

    def _check_tensors(self, headers: Mapping[str, TensorHeader]) -> None:
        parameters = self.layout.parameters(self.sizes, decoder=self.decoder)
        self.readable, problems = match_tensors(headers, parameters, self.sizes)
        self.problems += problems

    def _check_sizes(self) -> None:
        try:
            _ = self.config
        except KeyError as error:
            self.problems.append(f"sizes: no tensor tells {error.args[0]}")
        except ValueError as error:
            self.problems.append(f"sizes: {error}")

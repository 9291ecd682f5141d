"""Slices of TPUs by name, as in `v6e:16x16`: how many devices, how much memory each, what the compiler must be told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rvm_training.peaks import Peak, named_peak


@dataclass(frozen=True)
class _Chip:
    """One device of a generation."""

    memory: float
    """Bytes of high-bandwidth memory, as stated by the maker: 1 GB is 10^9."""
    accelerator: str
    """What the compiler's environment calls the generation."""
    accelerator_parts: int
    """What that name counts for each device."""
    axes: int
    """Of a topology."""


_CHIPS = {
    "v5e": _Chip(16e9, "v5litepod", 1, 2),
    "v5p": _Chip(95e9, "v5p", 2, 3),
    "v6e": _Chip(32e9, "v6e", 1, 2),
}


@dataclass(frozen=True)
class Topology:
    """A slice. Raises `ValueError` for a name that is not GENERATION:SHAPE of a generation known here."""

    name: str
    """Such as "v6e:16x16" or "v5p:4x4x8"."""

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)+)", self.name)
        if not found or found[1] not in _CHIPS or found[2].count("x") + 1 != _CHIPS[found[1]].axes:
            shapes = ", ".join(f"{name}:{'x'.join('4' * chip.axes)}" for name, chip in _CHIPS.items())
            raise ValueError(f"expected a topology such as {shapes}, got {self.name!r}")

    @property
    def generation(self) -> str:
        """Such as "v6e"."""
        return self.name.partition(":")[0]

    @property
    def devices(self) -> int:
        """Of the slice; each is a core, or a pair of cores that work as one."""
        return math.prod(map(int, self.name.partition(":")[2].split("x")))

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return _CHIPS[self.generation].memory

    @property
    def peak(self) -> Peak:
        """Arithmetic of a device."""
        return named_peak(self.generation)

    def environment(self) -> dict[str, str]:
        """Variables that let the compiler work for this slice on a machine without a TPU; before jax is imported."""
        chip = _CHIPS[self.generation]
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{self.devices * chip.accelerator_parts}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # Nobody is asked what this machine is.
            "TPU_SKIP_MDS_QUERY": "1",
            # Nothing runs on a TPU, so others that hold one need not wait, nor this program for them.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_LOG_DIR": "disabled",
            "TPU_STDERR_LOG_LEVEL": "3",
        }

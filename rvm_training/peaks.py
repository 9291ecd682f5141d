"""Greatest rates of arithmetic of accelerators, as their makers state them: what model FLOPs are measured against."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Of one device."""

    name: str
    flops: float
    """FLOP/s of dense matrix products."""
    measured: bool = False
    """By a matrix product on the device itself, in place of the maker's figure."""

    def __str__(self) -> str:
        kind = "measured with a matrix product" if self.measured else "bfloat16, as stated by its maker"
        return f"{self.name}, {self.flops / 1e12:.3g} TFLOP/s {kind}"


PEAKS = {
    name: Peak(name, teraflops * 1e12)
    for name, teraflops in {
        "v4": 275,
        "v5e": 197,
        "v5p": 459,
        "v6e": 918,
        "a100": 312,
        "l4": 121,
        "l40s": 362,
        "h100": 989,
        "h200": 989,
        "b200": 2250,
    }.items()
}
"""bfloat16 with float32 sums, dense, of a TPU chip or a GPU (the SXM form of NVIDIA's large ones)."""

_KINDS = (
    (r"TPU v6 ?(lite|e)", "v6e"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v4$", "v4"),
    (r"\bB200\b", "b200"),
    (r"\bH200\b", "h200"),
    (r"\bH100\b", "h100"),
    (r"\bA100\b", "a100"),
    (r"\bL40S\b", "l40s"),
    (r"\bL4\b", "l4"),
)
"""How runtimes call these devices."""


def find_peak(device_kind: str) -> Peak | None:
    """Of a device by what its runtime calls it, such as "TPU v6 lite" or "NVIDIA H200"; None if it is not known."""
    return next((PEAKS[name] for pattern, name in _KINDS if re.search(pattern, device_kind)), None)


def named_peak(name: str) -> Peak:
    """A peak by its key in `PEAKS`. Raises `ValueError` for another."""
    if name not in PEAKS:
        raise ValueError(f"unknown peak {name!r}; known: {', '.join(PEAKS)}")
    return PEAKS[name]

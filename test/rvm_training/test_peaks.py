"""Peaks by what runtimes call a device."""

from __future__ import annotations

import pytest

from rvm_training.peaks import PEAKS, find_peak, named_peak


@pytest.mark.parametrize(
    ("kind", "name", "teraflops"),
    [
        ("TPU v6 lite", "v6e", 918),
        ("TPU v6e", "v6e", 918),
        ("TPU v5 lite", "v5e", 197),
        ("TPU v5", "v5p", 459),
        ("TPU v4", "v4", 275),
        ("NVIDIA H100 80GB HBM3", "h100", 989),
        ("NVIDIA H200", "h200", 989),
        ("NVIDIA A100-SXM4-80GB", "a100", 312),
        ("NVIDIA L4", "l4", 121),
        ("NVIDIA L40S", "l40s", 362),
    ],
)
def test_devices_are_known(kind: str, name: str, teraflops: float) -> None:
    peak = find_peak(kind)
    assert peak is named_peak(name) and peak.flops == pytest.approx(teraflops * 1e12) and not peak.measured


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 4070", "TPU v4 lite", "NVIDIA L400"])
def test_others_are_not(kind: str) -> None:
    assert find_peak(kind) is None


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown peak 'v9'; known: v4, "):
        named_peak("v9")
    assert "stated by its maker" in str(PEAKS["v6e"])

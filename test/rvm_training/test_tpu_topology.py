"""Names of slices."""

from __future__ import annotations

import pytest

from rvm_training.tpu_topology import Topology


@pytest.mark.parametrize(
    ("name", "devices", "accelerator", "memory"),
    [("v6e:16x16", 256, "v6e-256", 32e9), ("v5e:4x8", 32, "v5litepod-32", 16e9), ("v5p:4x4x8", 128, "v5p-256", 95e9)],
)
def test_slices(name: str, devices: int, accelerator: str, memory: float) -> None:
    topology = Topology(name)
    assert (topology.devices, topology.memory) == (devices, memory)
    assert topology.environment()["TPU_ACCELERATOR_TYPE"] == accelerator
    assert topology.environment()["JAX_PLATFORMS"] == "cpu"
    assert topology.peak.name == topology.generation


@pytest.mark.parametrize("name", ["v6e", "v6e:16", "v6e:0x4", "v6e:4x4x4", "v5p:4x4", "h100:2x2", "v6e:ax4", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a topology such as .*v6e:4x4"):
        Topology(name)

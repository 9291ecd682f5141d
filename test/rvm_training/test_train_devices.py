"""Whether a process is one of several, and the peak of a device that is not in the table."""

from __future__ import annotations

import re

import jax
import pytest

from rvm_training import train_devices
from rvm_training.train_devices import Hosts, any_process, device_peak, gather


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "WARNING: could not determine TPU worker hostnames, please set it"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "JAX_PLATFORMS": "cpu"}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host-0"}, True),
    ],
)
def test_a_cluster_is_told_by_the_environment(environment: dict[str, str], expected: bool) -> None:
    assert train_devices._on_cluster(environment) is expected


def test_processes_are_told_of_each_other_whole_or_not_at_all() -> None:
    with pytest.raises(ValueError, match=re.escape("--coordinator, --num-processes and --process-id")):
        Hosts(coordinator="host:1234")
    Hosts(coordinator="host:1234", processes=2, process=0)


def test_one_process_agrees_with_itself() -> None:
    assert any_process(True) and not any_process(False)
    assert gather({"a": 1}) == [{"a": 1}]


def test_an_unknown_device_is_measured() -> None:
    peak = device_peak(jax.devices("cpu")[0])
    assert peak.measured and 1e8 < peak.flops < 1e15

"""The devices of a training run: joining several hosts, agreement between them, the peak of one device."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rvm_training.peaks import Peak, find_peak

_MATRIX = {"cpu": 1024}
_LARGE_MATRIX = 8192


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """How the processes of a run on several hosts find each other; a TPU pod, Slurm and Open MPI tell it themselves."""

    coordinator: str | None = None
    """host:port of process 0."""
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.coordinator, self.processes, self.process)]
        if any(given) != all(given):
            raise ValueError("--coordinator, --num-processes and --process-id are given together or not at all")


def join(hosts: Hosts) -> None:
    """Joins the processes of a run; before anything else uses jax. Does nothing where there is only one."""
    if hosts.coordinator is not None:
        jax.distributed.initialize(hosts.coordinator, hosts.processes, hosts.process)
    elif _on_cluster(os.environ):
        jax.distributed.initialize()


def _on_cluster(environment: Any) -> bool:
    """Whether something started this process as one of several."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return False
    # libtpu writes a warning there, with a comma, where there is no TPU.
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    several_tpu_hosts = ("," in names and " " not in names) or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    on_tpu_machine = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0")) and "TPU_NAME" in environment
    several_tasks = any(
        environment.get(name, "1").isdecimal() and int(environment.get(name, "1")) > 1
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    return several_tpu_hosts or on_tpu_machine or several_tasks


def is_main() -> bool:
    """Whether this is the process that writes logs and talks to people."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in one of the processes; all call it together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather(value: Any) -> list[Any]:
    """A JSON value of each process, in their order; all call it together."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.asarray(len(text)))))
    # JSON may end with blanks.
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: len(text)] = text
    return [json.loads(bytes(row)) for row in np.asarray(multihost_utils.process_allgather(padded))]


def wait_for_all(where: str) -> None:
    """Returns when all processes have called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def device_peak(device: jax.Device) -> Peak:
    """From the table of makers' figures, or measured with a matrix product, in about a second."""
    return find_peak(device.device_kind) or _measured(device)


def _measured(device: jax.Device, repeats: int = 3) -> Peak:
    size = _MATRIX.get(device.platform, _LARGE_MATRIX)
    multiply = jax.jit(jnp.matmul)
    best = float("inf")
    for dtype in (jnp.float32, jnp.bfloat16):
        matrix = jax.device_put(np.full((size, size), 0.5, np.float32), device).astype(dtype)
        multiply(matrix, matrix).block_until_ready()
        for _ in range(repeats):
            start = time.perf_counter()
            multiply(matrix, matrix).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return Peak(device.device_kind, 2 * size**3 / best, measured=True)

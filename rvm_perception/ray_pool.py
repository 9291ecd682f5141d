"""Replays recordings on a cluster of Ray, one actor per slot. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import socket
import threading
from concurrent.futures import Future
from importlib import import_module
from types import ModuleType
from typing import Any

from rvm_perception.bag_types import MissingPackageError
from rvm_perception.parameters import NodeParameters
from rvm_perception.recording_worker import Outcome, Task, Worker, WorkerSettings
from rvm_perception.replay import code_version

LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the run."""

_OBJECT_STORE_BYTES = 80 << 20  # tasks and outcomes are small: bags and results never pass through it
_CONTROL = "control"
_CONNECT_S = 10.0


class RayPool:
    """See `rvm_perception.replay_many.Pool`. Actors on the cluster at `address`.

    All its machines must have this package, and the recordings, weights and results under the same paths as this one.

    Args:
        address: "local", "auto" for the cluster that this machine is part of, or host:port. Where this process is
            connected to a cluster already, that one is used.
        jobs: number of slots; None: as many as the cluster has room for.
        most: more than that are never needed.

    Raises `MissingPackageError` without ray, `ConnectionError` if there is no cluster at the address.
    """

    def __init__(self, settings: WorkerSettings, address: str, jobs: int | None, most: int) -> None:
        self._ray = _import_ray()
        self._connected = not self._ray.is_initialized()
        if self._connected:
            _connect(self._ray, address, jobs, settings.threads)
        errors = self._ray.exceptions
        self.lost = (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)
        resources = self._ray.cluster_resources()
        gpus = _gpus(settings.parameters, resources)
        room = resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 0) // settings.threads
        actor = self._ray.remote(num_cpus=settings.threads, num_gpus=gpus, concurrency_groups={_CONTROL: 1})(_Actor)
        self.slots = [_RaySlot(self._ray, actor, settings) for _ in range(min(jobs or max(1, int(room)), most))]

    def stop(self) -> None:
        for slot in self.slots:
            slot.stop()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.close()
        if self._connected:
            self._ray.shutdown()


class _RaySlot:
    def __init__(self, ray: ModuleType, actor: Any, settings: WorkerSettings) -> None:
        self._ray, self._class, self._settings = ray, actor, settings
        self._actor: Any = None

    def prepare(self) -> Future[str]:
        self.close()
        self._actor = self._class.remote(self._settings)
        future: Future[str] = self._actor.code_version.remote().future()
        return future

    def run(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = self._actor.run.remote(task).future()
        return future

    def stop(self) -> None:
        if self._actor is not None:
            self._actor.stop.options(concurrency_group=_CONTROL).remote()

    def close(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None


class _Actor:
    """In the process of a slot."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker, self._stop = Worker(settings), threading.Event()

    def code_version(self) -> str:
        return code_version()

    def run(self, task: Task) -> Outcome:
        return self._worker.run(task, self._stop.is_set)

    def stop(self) -> None:
        self._stop.set()


def _import_ray() -> ModuleType:
    # Read when ray is imported: nothing is told to its makers, and a process without GPU sees none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingPackageError(f"ray is missing ({error}): pip install 'rvm_perception[ray]'") from error


def _connect(ray: ModuleType, address: str, jobs: int | None, threads: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0)) if jobs is None else jobs * threads
        ray.init(
            address=LOCAL, num_cpus=max(cores, threads), include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES, **quiet,
        )  # fmt: skip
        return
    host, _, port = address.rpartition(":")
    if port.isdigit() and not host.startswith("ray:"):
        # Ray itself tries for minutes.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ConnectionError(f"there is no Ray cluster at {address} ({error}): see `ray start`") from error
    ray.init(address=address, **quiet)


def _gpus(parameters: NodeParameters, resources: dict[str, float]) -> int:
    """How many a slot needs."""
    if parameters.device.startswith("cuda") or parameters.backend == "tensorrt":
        return 1
    if parameters.device == "cpu" or parameters.backend == "openvino":
        return 0
    return int(resources.get("GPU", 0) >= 1)

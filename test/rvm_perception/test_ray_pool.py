"""Folders of recordings on a cluster of Ray, here one of this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

import pool_faults
from bag_files import PARAMETERS, ROOT, cut, storage_file
from bag_folders import OPTIONS, contents, folder_of_bags
from rvm_perception.bag_types import MissingPackageError
from rvm_perception.ray_pool import RayPool, _connect, _import_ray
from rvm_perception.recording_worker import WorkerSettings
from rvm_perception.replay_many import replay_many


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests; `RayPool` uses the one that there is."""
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "test")]))
        ray = _import_ray()
        _connect(ray, "local", 2, 1)
    yield
    ray.shutdown()


def test_equal_to_the_local_run_though_a_worker_is_killed(cluster: None, tmp_path: Path) -> None:
    names = ["morning/drive", "evening", "night", "broken"]
    bags = folder_of_bags(tmp_path / "bags", dict.fromkeys(names, 8))
    cut(storage_file(bags / "broken"), 0.6)
    local = replay_many(bags, tmp_path / "local", PARAMETERS, OPTIONS, jobs=1, threads=1)
    log: list[str] = []
    maker = partial(pool_faults.deadly_once, tmp_path / "mark")
    outcomes = replay_many(
        bags, tmp_path / "ray", PARAMETERS, OPTIONS, jobs=2, threads=1, ray="local", log=log.append, maker=maker
    )
    assert (tmp_path / "mark").exists() and [line for line in log if "done again, attempt 2 of 3" in line]
    assert [(o.name, o.status) for o in outcomes] == [(o.name, o.status) for o in local]
    assert [o.status for o in outcomes] == ["bad", "done", "done", "done"]
    assert len(contents(tmp_path / "local")) >= 3 * 5 + 1
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_stopping(cluster: None, tmp_path: Path) -> None:
    bags = folder_of_bags(tmp_path / "bags", {"a": 600})

    def is_stopped() -> bool:
        return (tmp_path / "out" / ".a.replay").exists()

    (outcome,) = replay_many(
        bags, tmp_path / "out", PARAMETERS, OPTIONS, jobs=1, threads=1, ray="local", is_stopped=is_stopped
    )
    assert outcome.status == "interrupted" and not (tmp_path / "out" / "a").exists()


def test_an_engine_that_cannot_be_made(cluster: None, tmp_path: Path) -> None:
    bags = folder_of_bags(tmp_path / "bags", {"a": 2})
    with pytest.raises(RuntimeError, match="the engine is sold out"):
        replay_many(bags, tmp_path / "out", PARAMETERS, OPTIONS, threads=1, ray="local", maker=pool_faults.no_engine)


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster at {address}"):
            _connect(_import_ray(), address, 1, 1)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rvm_perception\[ray\]'"):
        RayPool(WorkerSettings(parameters=PARAMETERS, threads=1), "local", 1, 1)

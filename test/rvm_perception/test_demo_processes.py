"""The demo's environment and child processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from rvm_perception.demo_processes import PROFILE_VARIABLE, ChildProcess, own_domain, ros_environment
from video_clip import wait_for_text

REPOSITORY = Path(__file__).parents[2]


def test_environment_isolates_and_respects_the_user() -> None:
    environment = ros_environment(42, {"PYTHONPATH": "/mine"})
    assert environment["ROS_DOMAIN_ID"] == "42" and environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert environment["AMENT_PREFIX_PATH"] == sys.prefix
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), "/mine"]
    assert environment[PROFILE_VARIABLE] == str(REPOSITORY / "config" / "fastdds.xml")
    jazzy = ros_environment(42, {"ROS_DISTRO": "jazzy"})
    assert PROFILE_VARIABLE not in jazzy and "FASTRTPS_DEFAULT_PROFILES_FILE" in jazzy
    given = {
        PROFILE_VARIABLE: "/mine.xml",
        "AMENT_PREFIX_PATH": "/opt/ros/x",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET",
    }
    environment = ros_environment(42, given)
    assert {name: environment[name] for name in given} == given


def test_domain_is_the_users_or_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "17")
    with own_domain() as domain:
        assert domain == 17
    monkeypatch.delenv("ROS_DOMAIN_ID")
    with own_domain() as first, own_domain() as second:
        assert 0 < first != second <= 101


def test_new_lines_are_each_given_once_and_whole(tmp_path: Path) -> None:
    script = "import time; print('one', flush=True); print('tw', end='', flush=True); time.sleep(600)"
    with ChildProcess([sys.executable, "-c", script], os.environ, tmp_path / "log") as child:
        wait_for_text(tmp_path / "log", "tw")
        assert child.new_lines() == ["one"]
        assert child.new_lines() == []


def test_child_that_ignores_sigint_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(2, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    with ChildProcess([sys.executable, "-c", script], os.environ, tmp_path / "log") as child:
        wait_for_text(tmp_path / "log", "ready")
        assert child.interrupt(timeout_s=0.2) == -signal.SIGKILL
    assert child.poll() == -signal.SIGKILL


def test_child_is_ended_when_its_block_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
    with pytest.raises(KeyError), ChildProcess(command, os.environ, tmp_path / "log") as child:
        wait_for_text(tmp_path / "log", "ready")
        raise KeyError
    assert child.poll() is not None
    assert "KeyboardInterrupt" in child.last_lines()

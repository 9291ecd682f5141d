"""The demo's child processes and the ROS environment they share."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROFILE_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
_OLD_PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
_OLD_DISTRIBUTIONS = ("humble", "iron", "jazzy")  # with Fast DDS 2; version 3 warns about the old variable
STOP_TIMEOUT_S = 5.0
"""Time in which a process must end after SIGINT."""

_SOURCE_ROOT = Path(__file__).resolve().parents[1]
_PROFILE = Path("config", "fastdds.xml")


@contextmanager
def own_domain() -> Iterator[int]:
    """A ROS domain that no other process uses while the context lasts, or the user's ROS_DOMAIN_ID where it is set."""
    given = os.environ.get("ROS_DOMAIN_ID", "")
    if given.isdigit():
        yield int(given)
    elif importlib.util.find_spec("domain_coordinator"):
        import domain_coordinator

        with domain_coordinator.domain_id() as domain:
            yield int(domain)
    else:
        yield 1 + os.getpid() % 100  # Fast DDS leaves free ports for domains 0 to 101 on Linux


def ros_environment(domain: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for every process of the demo; what the user has set in `environment` stays.

    One domain, discovery on this machine only, the shared-memory profile (without which large best-effort images get
    lost), this package's own code, and where ROS comes from wheels the ament prefix.
    """
    result = dict(environment)
    result["ROS_DOMAIN_ID"] = str(domain)
    result.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if not result.get("AMENT_PREFIX_PATH"):
        result["AMENT_PREFIX_PATH"] = sys.prefix
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_SOURCE_ROOT), environment.get("PYTHONPATH"))))
    result["PYTHONUNBUFFERED"] = "1"
    profile = find_profile(result["AMENT_PREFIX_PATH"].split(os.pathsep))
    if profile is not None and not (result.get(PROFILE_VARIABLE) or result.get(_OLD_PROFILE_VARIABLE)):
        is_old = result.get("ROS_DISTRO") in _OLD_DISTRIBUTIONS
        result[_OLD_PROFILE_VARIABLE if is_old else PROFILE_VARIABLE] = str(profile)
    return result


def find_profile(prefixes: Sequence[str]) -> Path | None:
    """config/fastdds.xml of the source checkout or of an installation under one of the prefixes."""
    candidates = [_SOURCE_ROOT / _PROFILE, *(Path(p) / "share" / "rvm_perception" / _PROFILE for p in prefixes)]
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets this process's own variables while the context lasts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class ChildProcess:
    """A process that writes to a log file and has ended when its `with` block is left.

    It runs in a session of its own: Ctrl-C in the terminal reaches only the parent, which then ends it in order.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: IO[bytes] | None = None
        self._shown = 0

    def __enter__(self) -> ChildProcess:
        self._log_file = open(self.log, "wb")
        self._process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._log_file is not None
        try:
            self.interrupt()
        finally:
            self._log_file.close()

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; SIGKILL also waits for the end."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def interrupt(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Sends SIGINT and returns the exit code; a process that does not end in time is killed, which gives -9."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.poll() is None:  # late, or this process itself was interrupted while it waited
                self._process.kill()
                self._process.wait()
        return -signal.SIGKILL

    def new_lines(self) -> list[str]:
        """The whole lines of the log since the last call."""
        text = self.log.read_text(encoding="utf-8", errors="replace")[self._shown :]
        text = text[: text.rfind("\n") + 1]
        self._shown += len(text)
        return text.splitlines()

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, indented."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
        return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"

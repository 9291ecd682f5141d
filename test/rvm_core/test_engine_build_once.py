"""Two processes that need the same engine build it once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rvm_core.engines import EngineCache

WAIT_S = 120.0
"""Bound of the wait for the processes, which import torch first."""
BUILD = """
import sys
from pathlib import Path
from rvm_core import create_engine, load_checkpoint
from rvm_core.engines import EngineCache, plan
import torch
torch.set_num_threads(1)
from engine_faults import FileBackend

backend = plan.backends()["openvino"] = FileBackend()
backend.on_build = lambda: (print("built", flush=True), sys.stdin.readline())
say = lambda line: print(line, flush=True)
create_engine(load_checkpoint(sys.argv[1]), backend="openvino", image_size=(64, 96), cache=EngineCache(sys.argv[2]),
              progress=say)
print("ready", flush=True)
"""


def test_two_processes_build_once(tiny_path: Path, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'test'}"}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILD, str(tiny_path), str(cache.root)]
        return subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read_until(process: subprocess.Popen[str], text: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text in line:
                return
        raise AssertionError(f"no {text!r} in the output")

    first, second = start(), start()
    try:
        # Which one comes first is open: the one that waits says so, then the other may go on.
        assert first.stdout is not None and second.stdout is not None
        seen = {first: "", second: ""}
        for process in (first, second):
            for line in process.stdout or ():
                if line.startswith("built") or "waiting for it" in line:
                    seen[process] = line
                    break
        builder, waiter = (first, second) if seen[first].startswith("built") else (second, first)
        assert f"another process (pid {builder.pid}) is building this engine: waiting for it" in seen[waiter]
        assert builder.stdin is not None
        builder.stdin.write("\n")
        builder.stdin.flush()
        read_until(builder, "ready")
        output = waiter.communicate(timeout=WAIT_S)[0]
        assert "ready" in output and "built" not in output and "comparing" not in output
        assert builder.wait(WAIT_S) == waiter.returncode == 0
    finally:
        first.kill()
        second.kill()
        first.communicate()
        second.communicate()

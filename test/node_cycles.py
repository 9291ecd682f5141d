"""A process that takes the node through its lifecycle again and again and prints what it holds: one line of JSON.

`python node_cycles.py WEIGHTS CYCLES [FRAMES]`: so many cycles of configure, activate, deactivate and cleanup, in each
of which FRAMES frames are stepped.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from rvm_core.process_memory import resident_bytes
from rvm_perception.conversions import rgb_to_image
from rvm_perception.node import RVMNode

_TIMEOUT_S = 30.0


def holdings() -> dict[str, int]:
    """Memory in KiB, threads of the system and of Python, open files and Python's objects."""
    gc.collect()
    # What the allocator keeps for later is not held by the node.
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "kib": resident_bytes() // 1024,
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


def step(node: RVMNode, executor: SingleThreadedExecutor, frames: int) -> None:
    """Has every camera's frames stepped."""
    from std_msgs.msg import Header

    picture = np.zeros((48, 64, 3), np.uint8)
    for index in range(frames):
        header = Header(frame_id="optical")
        header.stamp.sec = 1 + index
        for camera in node._cameras:
            camera.stream.offer(rgb_to_image(picture, header))
        node._wake_worker()
        deadline = time.monotonic() + _TIMEOUT_S
        while any(camera.stream.ledger()["waiting"] for camera in node._cameras):
            assert time.monotonic() < deadline, "the worker does not step"
            time.sleep(0.001)
        assert all(camera.stream.ledger()["processed"] == index + 1 for camera in node._cameras)
        executor.spin_once(timeout_sec=0)


def main(weights: Path, cycles: int, frames: int) -> None:
    rclpy.init()
    parameters: dict[str, Any] = {
        "weights": str(weights), "backend": "torch", "precision": "fp32", "device": "cpu", "height": 32, "width": 32,
        "camera_topics": ["/left/image", "/right/image"], "batching": "always",
    }  # fmt: skip
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    node = RVMNode("cycling", parameter_overrides=overrides)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    report, epochs = [], []
    start = time.monotonic()
    for number in range(cycles):
        for transition in (node.trigger_configure, node.trigger_activate):
            assert transition() == TransitionCallbackReturn.SUCCESS
        step(node, executor, frames)
        epochs.append(node._cameras[0].stream.epoch)
        for transition in (node.trigger_deactivate, node.trigger_cleanup):
            assert transition() == TransitionCallbackReturn.SUCCESS
        if number % 10 == 9:
            report.append({"cycle": number + 1, **holdings()})
    seconds = time.monotonic() - start
    node.trigger_shutdown()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    print(json.dumps({"seconds": round(seconds, 2), "epochs": epochs, "holdings": report}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)

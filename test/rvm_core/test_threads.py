"""A limit of threads reaches every runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> list[str]:
    """What code prints in a process of its own, as the limit holds for a whole process."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_torch_and_opencv() -> None:
    code = """
import cv2, torch
from rvm_core.threads import limit_threads, thread_limit
print(thread_limit())
limit_threads(3)
print(thread_limit(), torch.get_num_threads(), cv2.getNumThreads())"""
    assert run(code) == ["None", "3", "3", "3"]


def test_openvino() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    code = """
import numpy, openvino
from openvino import opset13
from rvm_core.engines.openvino import _settings
from rvm_core.threads import limit_threads
print("INFERENCE_NUM_THREADS" in _settings())
limit_threads(1)
value = opset13.parameter([1], numpy.float32)
model = openvino.Model([opset13.relu(value)], [value])
print(openvino.Core().compile_model(model, "CPU", _settings()).get_property("INFERENCE_NUM_THREADS"))"""
    assert run(code) == ["False", "1"]

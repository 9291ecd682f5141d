"""The classes of the messages that are built here: the generated ones under ROS, or others with the same fields.

Replay runs where ROS is not installed and passes its own; everything else uses the generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MessageTypes:
    """A class for each message; called without arguments it makes an empty one."""

    FeatureMap: Any
    PointTracks: Any
    BoxTracks: Any
    MaskTracks: Any
    QueryAnswers: Any
    Image: Any


@cache
def ros_types() -> MessageTypes:
    """The generated classes. Raises `ImportError` without ROS."""
    from sensor_msgs.msg import Image

    from rvm_perception import msg

    return MessageTypes(
        FeatureMap=msg.FeatureMap,
        PointTracks=msg.PointTracks,
        BoxTracks=msg.BoxTracks,
        MaskTracks=msg.MaskTracks,
        QueryAnswers=msg.QueryAnswers,
        Image=Image,
    )

"""What MuJoCo's scenes look like."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_OBJECTS = 254
"""Labels are uint8, and 0 is the background."""
_MIN_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class MujocoSceneConfig:
    """What scenes look like; by default much as in MOVi-E. Raises `ValueError` for values that no scene can have."""

    height: int = 256
    """Of the image, pixels."""
    width: int = 256
    """Of the image, pixels."""
    num_frames: int = 24
    frame_rate: float = 12.0
    """Frames per second."""
    static_objects: tuple[int, int] = (10, 20)
    """Fewest and most objects that lie on the floor when the video begins, drawn evenly. Others may push them."""
    moving_objects: tuple[int, int] = (1, 3)
    """Fewest and most objects that are thrown in, drawn evenly."""
    num_points: int = 64
    """Tracked points, spread evenly over the objects and the background."""
    object_radius: tuple[float, float] = (0.35, 1.1)
    """Least and greatest radius of the sphere around an object, metres."""
    spread: float = 5.0
    """Objects begin so far from the middle at most, metres, along each side of the floor."""
    throw_speed: tuple[float, float] = (2.0, 6.0)
    """Lowest and highest horizontal speed at which objects are thrown in, metres per second."""
    room_size: float = 12.0
    """Half the side of the room, and its height, metres. Its walls, floor and ceiling are the background."""
    camera_distance: tuple[float, float] = (6.0, 9.0)
    """Least and greatest distance of the camera's first and last place from the middle of the floor, metres."""
    camera_travel: float = 4.0
    """Length of the camera's straight way from the first frame to the last at most, metres."""
    look_at_spread: float = 1.0
    """The place the camera looks at moves straight between two places so far from the middle at most, metres."""
    field_of_view: float = 49.1
    """Horizontal, degrees."""
    noise: float = 1.5
    """Standard deviation of the noise of pixels, grey levels."""

    def __post_init__(self) -> None:
        for name, least in {"height": _MIN_SIZE, "width": _MIN_SIZE, "num_frames": 1, "num_points": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of {least} or more, got {getattr(self, name)}")
        for name in ("static_objects", "moving_objects", "object_radius", "throw_speed", "camera_distance"):
            least_value, most = getattr(self, name)
            if not 0 <= least_value <= most < math.inf:
                raise ValueError(f"expected {name} of 0 or more, the lower first, got {getattr(self, name)}")
        if self.static_objects[1] + self.moving_objects[1] > MAX_OBJECTS:
            raise ValueError(
                f"expected at most {MAX_OBJECTS} objects, got {self.static_objects} + {self.moving_objects}"
            )
        for name in ("frame_rate", "spread"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} over 0, got {getattr(self, name)}")
        for name in ("camera_travel", "look_at_spread", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} of 0 or more, got {getattr(self, name)}")
        if not 0.01 <= self.object_radius[0]:
            raise ValueError(f"expected object_radius of 0.01 m or more, got {self.object_radius}")
        if not 5 <= self.field_of_view <= 150:
            raise ValueError(f"expected field_of_view in [5, 150] degrees, got {self.field_of_view}")
        needed = max(self.camera_distance[1], self.spread + self.object_radius[1])
        if not needed < self.room_size < math.inf:
            raise ValueError(f"expected room_size over {needed} m, so that all fits into it, got {self.room_size}")

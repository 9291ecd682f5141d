"""One camera of a bag as a clip for `rvm show`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rvm_perception.bag_order import index_bag, read_turns, turns
from rvm_perception.bag_reader import Bag, MessageError, decode
from rvm_perception.conversions import ImageError
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import message_to_rgb
from rvm_perception.replay_plan import make_plan
from rvm_perception.show_clip import DEFAULT_RATE, Frame, Part
from rvm_perception.stream import FrameKey, FrameRejected, Stream

_MOST_RATE = 240.0


class BagClip:
    """See `rvm_perception.show_clip.Clip`. Frames come in the order of their stamps, and the state starts anew where
    the node would have it start anew by its default parameters; damaged, late and duplicate images are left out.

    Args:
        bag: open as long as the clip is used.
        topic: of the images; None: the only one.
        progress: called after each message, while stamps are read.

    Raises `BagError` for a bag without such images, or one that is damaged.
    """

    def __init__(
        self, bag: Bag, part: Part, *, topic: str | None = None, progress: Callable[[], object] | None = None
    ) -> None:
        self._bag, self._part, self._parameters = bag, part, NodeParameters()
        plan = make_plan(bag, self._parameters, [topic] if topic else [])
        self._index = index_bag(bag, [plan.cameras[0].topic], progress=progress)
        self._turns = turns(self._index)
        self.recovered = bag.recovered
        self.name = f"{bag.name} {plan.cameras[0].topic}"
        steps = np.diff(self._index.stamp[self._turns.position])
        steps = steps[steps > 0]
        self.rate = float(np.clip(1e9 / np.median(steps), 1, _MOST_RATE)) if len(steps) else DEFAULT_RATE
        whole = part.start == 0 and part.seconds is None
        self.expected = len(self._turns) if whole else None

    def frames(self) -> Iterator[Frame]:
        # The rules of the node, of which only what they say about each frame is used.
        stream: Stream[Any] = Stream(self._parameters.stream_rules)
        starts, last, seconds = True, 0, 0.0
        for _, raw in read_turns(self._bag, self._index, self._turns):
            stream.offer(raw)
            waiting = stream.take()
            assert waiting is not None
            try:
                message = decode(raw)
                image = np.asarray(message_to_rgb(message, self._parameters), np.uint8)
                stamp = int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)
                height, width = image.shape[:2]
                key = FrameKey(stamp_ns=stamp, frame_id=message.header.frame_id, height=height, width=width)
                step = stream.plan(key, waiting.sequence)
            except (MessageError, ImageError, FrameRejected) as error:
                stream.reject(getattr(error, "reason", "corrupt"))
                continue
            if stream.processed:
                # A clock that was set back goes on by one frame.
                seconds += (stamp - last) / 1e9 if stamp > last else 1 / self.rate
            stream.commit(step, None)
            last = stamp
            if self._part.is_over(seconds):
                return
            starts = starts or step.reset_reason is not None
            if self._part.holds(seconds):
                yield Frame(seconds, image, starts)
                starts = False

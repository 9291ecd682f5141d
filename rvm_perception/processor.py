"""From an image message to features: the one way that the live node and offline replay share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from rvm_core.engines import Engine
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_perception.conversions import build_feature_map, compressed_to_rgb, image_to_rgb
from rvm_perception.parameters import NodeParameters
from rvm_perception.stream import FrameKey, FrameRejected, Step, Stream, Waiting
from rvm_perception.track_messages import TrackMessages
from rvm_perception.track_queries import Answers
from rvm_perception.track_session import TrackSession, TrackState

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    from rvm_perception.msg import FeatureMap

    ImageMessage: TypeAlias = Image | CompressedImage


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which weights made a feature map."""

    name: str
    """As in FeatureMap.model."""
    weights_hash: str
    """As in FeatureMap.weights_hash."""


class StreamState(NamedTuple):
    """What a stream carries from frame to frame; committed as one."""

    engine: Any
    """The engine's state; None before the first frame."""
    tracks: TrackState | None
    """None without tracking."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one processed frame gave."""

    header: Header
    image: np.ndarray
    """The source image, uint8 (H, W, 3) RGB; may be a view of the message's data."""
    frame_map: FrameMap
    tokens: np.ndarray
    """float32 (N+1, D), [CLS] first."""
    step: Step
    preprocess_ms: float
    engine_ms: float
    tracks: TrackState | None = None
    """Where the tracks are; None without tracking."""
    tracking_ms: float = 0.0

    @property
    def grid(self) -> np.ndarray:
        """The features as a map, float32 (rows, cols, D)."""
        return self.tokens[1:].reshape(self.frame_map.rows, self.frame_map.cols, -1)


class FrameProcessor:
    """Steps messages through preprocessing and engine, each as one transaction on its stream.

    Validate, compute, check, then commit: a frame that fails on the way leaves the stream's state as it was.
    """

    def __init__(self, parameters: NodeParameters, engine: Engine, identity: ModelIdentity) -> None:
        self._parameters = parameters
        self._engine = engine
        self._identity = identity
        self._preprocess = Preprocess(height=parameters.height, width=parameters.width, policy=parameters.resize_policy)

    def warm_up(self) -> None:
        """Takes a step on a black frame and drops it, so that the first real frame does not pay for first use."""
        black = np.zeros((1, self._parameters.height, self._parameters.width, 3), np.uint8)
        self._engine.step(black, self._engine.init_state())

    def process(
        self,
        waiting: Waiting[ImageMessage],
        stream: Stream[ImageMessage],
        session: TrackSession | None = None,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Result:
        """Steps a message that was taken from the stream, and its tracks, and commits the new `StreamState` to it.

        Where `is_stopped` by then, nothing is committed any more: what is committed is to be published.

        Raises `ImageError` for an image that cannot be read, `FrameRejected` for one that is not stepped, and whatever
        the engine raises. Nothing was committed then, and the caller writes the frame off in the stream.
        """
        message = waiting.message
        if hasattr(message, "format"):  # only CompressedImage has it, whichever library read the message
            image = compressed_to_rgb(message, max_pixels=self._parameters.max_image_pixels)
        else:
            image = image_to_rgb(message, ambiguous_encoding=self._parameters.ambiguous_encoding)
        height, width = image.shape[:2]
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        key = FrameKey(stamp_ns=stamp_ns, frame_id=message.header.frame_id, height=height, width=width)
        step = stream.plan(key, waiting.sequence)
        start = time.perf_counter()
        frame = self._preprocess(image)
        prepared = time.perf_counter()
        state = self._engine.init_state() if step.state is None else step.state.engine
        features, state = self._engine.step(frame[None], state)
        tokens = features[0].cpu().numpy()
        stepped = time.perf_counter()
        if not np.isfinite(tokens).all():
            raise FrameRejected("not_finite", "the engine returned NaN or infinite features; the old state is kept")
        frame_map = self._preprocess.map(height, width)
        tracks = None
        if session is not None:
            tracks = session.step(
                tokens,
                key=key,
                epoch=step.epoch,
                frame_map=frame_map,
                before=stream.state.tracks if stream.state is not None else None,
                fresh=step.state is None,
            )
        tracked = time.perf_counter()
        if is_stopped():
            raise FrameRejected("inactive", "the node was stopped during the step")
        stream.commit(step, StreamState(engine=state, tracks=tracks))
        return Result(
            header=message.header,
            image=image,
            frame_map=frame_map,
            tokens=tokens,
            step=step,
            preprocess_ms=(prepared - start) * 1e3,
            engine_ms=(stepped - prepared) * 1e3,
            tracks=tracks,
            tracking_ms=(tracked - stepped) * 1e3,
        )

    def apply_queries(self, stream: Stream[ImageMessage], session: TrackSession) -> list[Answers]:
        """Carries out the requests stored in the session whose frame has been processed. Between two frames only."""
        if not stream.goes_on:
            # What would be added now would be lost with the next frame, so all wait for that one.
            return []
        state: StreamState = stream.state
        tracks, answers = session.apply(state.tracks)
        stream.amend(state._replace(tracks=tracks))
        return answers

    def track_messages(self, camera: str, result: Result, tracker: str) -> TrackMessages:
        """The messages of a result with tracks; `tracker` is the name of what made them."""
        assert result.tracks is not None
        identity = {
            "camera": camera,
            "model": self._identity.name,
            "weights_hash": self._identity.weights_hash,
            "tracker": tracker,
            "epoch": result.step.epoch,
            "index": result.step.index,
        }
        return TrackMessages(result.tracks, result.header, identity)

    def feature_map(self, camera: str, result: Result) -> FeatureMap:
        """The message of a result."""
        return build_feature_map(
            header=result.header,
            camera=camera,
            model=self._identity.name,
            weights_hash=self._identity.weights_hash,
            epoch=result.step.epoch,
            index=result.step.index,
            skipped=result.step.skipped,
            features=result.tokens,
            dtype=self._parameters.feature_dtype,
            frame_map=result.frame_map,
        )

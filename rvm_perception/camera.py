"""One camera of the node: its stream, its tracks, its measurements and the topics on which its results go out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from rvm_core.draw_tracks import TrackTails, draw_tracks
from rvm_core.visualize import RunningPCA, overlay
from rvm_perception.arrivals import Arrivals
from rvm_perception.camera_input import CameraInput, endpoint_options
from rvm_perception.conversions import rgb_to_image
from rvm_perception.diagnostics import CameraMeters, Throttle
from rvm_perception.msg import BoxTracks, FeatureMap, MaskTracks, PointTracks
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import Result
from rvm_perception.stream import SUPERSEDED, Stream
from rvm_perception.track_messages import TrackMessages, vision_messages
from rvm_perception.track_queries import TRACKED, Kind
from rvm_perception.track_session import TrackSession

ImageMessage: TypeAlias = Image | CompressedImage


def output_qos() -> QoSProfile:
    """Of what the node publishes, unless parameters override it."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)


class CameraTopics:
    """The publishers of one camera. Pictures are made only while someone listens."""

    def __init__(self, node: LifecycleNode, prefix: str, *, tracking: bool, overlay_alpha: float) -> None:
        def publisher(kind: Any, name: str) -> Any:
            topic = f"{prefix}/{name}"
            return node.create_lifecycle_publisher(kind, topic, output_qos(), **endpoint_options())

        self._node = node
        self.overlay_alpha = overlay_alpha
        self._vision = vision_messages() if tracking else None
        self._features = publisher(FeatureMap, "features")
        self._overlay = publisher(Image, "overlay")
        self._tracks: dict[str, Any] = {}
        if tracking:
            kinds = {"point_tracks": PointTracks, "box_tracks": BoxTracks, "mask_tracks": MaskTracks, "mask": Image}
            if self._vision is not None:
                kinds["detections"] = self._vision.Detection2DArray
            self._tracks = {name: publisher(kind, name) for name, kind in kinds.items()}
        self._pca, self._tails = RunningPCA(), TrackTails()

    def publish_features(self, message: FeatureMap) -> None:
        self._features.publish(message)

    def publish_tracks(self, messages: TrackMessages) -> None:
        """Publishes each kind of tracks of which there is something to say."""
        if Kind.POINT in messages.reported:
            self._tracks["point_tracks"].publish(messages.points())
        if Kind.BOX in messages.reported:
            self._tracks["box_tracks"].publish(messages.boxes())
            if self._vision is not None:
                self._tracks["detections"].publish(messages.detections(self._vision))
        if Kind.MASK in messages.reported:
            self._tracks["mask_tracks"].publish(messages.masks())
            if self._tracks["mask"].get_subscription_count():
                self._tracks["mask"].publish(messages.mask_image())

    def publish_overlay(self, result: Result, messages: TrackMessages | None) -> None:
        """Publishes the features as colours over the frame, and the tracks on top."""
        if not self._overlay.get_subscription_count():
            return
        valid = result.frame_map.valid_cells()
        self._pca.update(result.grid, valid if valid.any() else None)
        colors = self._pca.color(result.grid)
        picture = overlay(result.image, colors, result.frame_map.grid_to_image, self.overlay_alpha)
        if messages is not None:
            self._tails.update(messages.pixels, result.step.epoch)
            segments = messages.segments if len(messages.pixels.masks.ids) else None
            picture = draw_tracks(
                picture, messages.pixels, tails=self._tails, labels=messages.labels, segments=segments
            )
        self._overlay.publish(rgb_to_image(picture, result.header))

    def reset_pictures(self) -> None:
        """Starts the colours anew, as after a reset."""
        self._pca = RunningPCA()

    @property
    def names(self) -> list[str]:
        """The topics, resolved."""
        return [publisher.topic_name for publisher in self._publishers]

    @property
    def _publishers(self) -> list[Any]:
        return [self._features, self._overlay, *self._tracks.values()]

    def destroy(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)


@dataclass(kw_only=True)
class Camera:
    """One camera's own things."""

    name: str
    topic: str
    """What is subscribed to, with the suffix of the transport."""
    stream: Stream[ImageMessage]
    topics: CameraTopics
    session: TrackSession | None
    """None without tracking."""
    input: CameraInput | None = None
    """None while the node is inactive."""
    arrivals: Arrivals = field(default_factory=Arrivals)
    meters: CameraMeters = field(default_factory=CameraMeters)
    throttle: Throttle = field(default_factory=Throttle)
    """Of its warnings in the log."""
    last_rejection: str = ""
    last_failure: str = ""
    """What the last failed step said."""

    def set_parameters(self, parameters: NodeParameters) -> None:
        """Takes over the live parameters."""
        self.stream.rules = parameters.stream_rules
        self.topics.overlay_alpha = parameters.overlay_alpha
        if self.session is not None:
            self.session.parameters = parameters

    def values(self) -> dict[str, object]:
        """Everything that diagnostics tell about it."""
        rejected, resets = self.stream.reasons()
        return {
            **self.stream.ledger(),
            "lost": self.arrivals.lost,
            "lost_events": self.arrivals.lost_events,
            "stamp_gaps": self.arrivals.stamp_gaps,
            "epoch": self.stream.epoch,
            **{f"rejected_{reason}": count for reason, count in rejected.items()},
            **{f"resets_{reason}": count for reason, count in resets.items()},
            **self.meters.values(),
            **self.track_values(),
        }

    def totals(self) -> str:
        """The ledger in one line."""
        ledger = self.stream.ledger()
        rejected, resets = self.stream.reasons()
        rejected.pop(SUPERSEDED, None)
        reasons = {"rejected": rejected, "resets": resets}
        counts = {**ledger, "lost": self.arrivals.lost, "resets": ledger["resets"]}
        parts = []
        for name in ("received", "processed", "dropped", "rejected", "waiting", "lost", "resets"):
            why = ", ".join(f"{reason} {count}" for reason, count in reasons.get(name, {}).items())
            parts.append(f"{name} {counts[name]}" + (f" ({why})" if why else ""))
        return f"camera {self.name}: {', '.join(parts)}"

    def track_values(self) -> dict[str, object]:
        """What diagnostics say about its tracks."""
        if self.session is None:
            return {}
        state = self.stream.state
        live = state.tracks.live if state is not None and state.tracks is not None else {}
        kinds = [track.kind for track in live.values()]
        return {
            **{f"{kind.name.lower()}_tracks": kinds.count(kind) for kind in TRACKED},
            "queries_accepted": self.session.accepted,
            "queries_refused": self.session.refused,
            "queries_waiting": self.session.waiting,
        }

"""What of a recording is replayed: its cameras, its queries, and the names under which the node would publish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rvm_perception.bag_reader import Bag, BagError, BagTopic
from rvm_perception.bag_types import (
    BOX_TRACKS,
    COMPRESSED_IMAGE,
    FEATURE_MAP,
    IMAGE,
    MASK_TRACKS,
    POINT_TRACKS,
    QUERY_ANSWERS,
    TRACK_QUERIES,
)
from rvm_perception.parameters import NodeParameters

NODE = "rvm"
"""Name of the node whose topics the results have."""

_COMPRESSED = "/compressed"
_OUTPUTS = {
    "features": FEATURE_MAP, "point_tracks": POINT_TRACKS, "box_tracks": BOX_TRACKS, "mask_tracks": MASK_TRACKS,
    "mask": IMAGE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CameraPlan:
    """One camera."""

    name: str
    topic: str
    """In the bag."""
    message_type: str


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """What is read, and by which parameters."""

    parameters: NodeParameters
    """Those given, with the cameras that were chosen."""
    cameras: tuple[CameraPlan, ...]
    queries: tuple[str, ...]
    """Topic of the TrackQueries; none or one."""

    @property
    def topics(self) -> tuple[str, ...]:
        """All that is read."""
        return (*(camera.topic for camera in self.cameras), *self.queries)

    def outputs(self, camera: CameraPlan) -> dict[str, tuple[str, str]]:
        """Short name, such as features -> topic and type, of what is written for a camera; see the node's topics."""
        prefix = f"/{NODE}" if len(self.cameras) == 1 else f"/{NODE}/{camera.name}"
        kinds = _OUTPUTS if self.parameters.tracking != "none" else {"features": FEATURE_MAP}
        return {name: (f"{prefix}/{name}", kind) for name, kind in kinds.items()}

    @property
    def answers(self) -> tuple[str, str]:
        """Topic and type of the answers to queries."""
        return f"/{NODE}/track_answers", QUERY_ANSWERS


def make_plan(bag: Bag, parameters: NodeParameters, topics: Sequence[str] = ()) -> ReplayPlan:
    """Chooses the cameras: those of `topics`; else those of the parameters; else the only one that there is.

    A topic stands for its own images or, with the suffix /compressed or where there are no others, for the compressed
    ones. A topic of TrackQueries may be among `topics`; without, the only one that there is, is taken.
    Raises `BagError` where that leaves none or is ambiguous, `ParameterError` for cameras without names of their own.
    """
    images = {t.name: t for t in bag.topics.values() if t.message_type in (IMAGE, COMPRESSED_IMAGE)}
    if not bag.topics or not any(topic.count != 0 for topic in bag.topics.values()):
        raise BagError(f"{bag.path} is empty: it holds no message")
    if not images:
        raise BagError(f"{bag.path} holds no images; its topics: {_listed(bag.topics.values())}")
    queries = _queries(bag, parameters, topics)
    cameras = [name for name in topics if name not in queries]
    if not cameras:
        cameras = [topic for topic in parameters.camera_topics if _find(topic, images, parameters)]
        if cameras != list(parameters.camera_topics):
            cameras = _only(bag, images)
    chosen = {name: _find(name, images, parameters) for name in cameras}
    if missing := [name for name, topic in chosen.items() if topic is None]:
        raise BagError(f"{bag.path} holds no images on {', '.join(missing)}; its images: {_listed(images.values())}")
    bases = tuple(name.removesuffix(_COMPRESSED) for name in chosen)
    known = {topic: name for name, topic in parameters.cameras.items()}
    names = tuple(known[base] for base in bases) if all(base in known for base in bases) else ()
    parameters = replace(parameters, camera_topics=bases, camera_names=names)
    return ReplayPlan(
        parameters=parameters,
        cameras=tuple(
            CameraPlan(name=name, topic=topic.name, message_type=topic.message_type)
            for name, topic in zip(parameters.cameras, filter(None, chosen.values()), strict=True)
        ),
        queries=queries,
    )


def _find(name: str, images: dict[str, BagTopic], parameters: NodeParameters) -> BagTopic | None:
    compressed = images.get(f"{name}{_COMPRESSED}")
    if parameters.image_transport == "compressed" and compressed:
        return compressed
    return images.get(name) or compressed


def _only(bag: Bag, images: dict[str, BagTopic]) -> list[str]:
    """The only camera that there is, with its raw and compressed images taken as one."""
    cameras = {name.removesuffix(_COMPRESSED) for name in images}
    if len(cameras) > 1:
        raise BagError(f"{bag.path} has several cameras: choose with --topics among {_listed(images.values())}")
    return list(cameras)


def _queries(bag: Bag, parameters: NodeParameters, topics: Sequence[str]) -> tuple[str, ...]:
    found = [topic for topic in bag.topics.values() if topic.message_type == TRACK_QUERIES]
    named = [topic for topic in found if topic.name in topics]
    if parameters.tracking == "none":
        return ()
    if len(named or found) > 1:
        raise BagError(f"{bag.path} has several topics of queries: name one in --topics: {_listed(named or found)}")
    for topic in named or found:
        bag.check_definition(topic)
    return tuple(topic.name for topic in named or found)


def _listed(topics: Iterable[BagTopic]) -> str:
    return ", ".join(f"{topic.name} ({topic.message_type})" for topic in topics) or "none"

"""A camera's tracks: queries against frames, refusals, ids, resets, and that a rejected frame changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvm_core.preprocess import Preprocess
from rvm_core.tracking.base import Status
from rvm_perception.parameters import NodeParameters
from rvm_perception.stream import FrameKey, FrameRejected
from rvm_perception.track_ids import FIRST_MASK_ID, IdLedger
from rvm_perception.track_queries import Answer, Answers, Kind, read_request
from rvm_perception.track_session import MAX_WAITING, TrackSession, TrackState, make_tracker
from track_stand_ins import SPEED, ScriptedTracker, assert_identical, mask_message, query_message

DATA = Path(__file__).parents[1] / "data"
HEIGHT, WIDTH = 96, 192
FRAME_MAP = Preprocess(height=64, width=128, policy="letterbox").map(HEIGHT, WIDTH)
CELL = 24.0
"""Side of a cell in source pixels."""
MS = 1_000_000
START = 1_000_000 * MS
TOKENS = np.zeros((33, 5), np.float32)

FEATURE_TOLERANCE = 0.1
"""Cells. Neighbours pull at the sub-cell position, as random features are not quite unlike each other."""


class Camera:
    """A session with its state, as a stream keeps it, fed with frames 40 ms apart."""

    def __init__(self, tracker: Any = None, ids: IdLedger | None = None, **parameters: Any) -> None:
        self.tracker: Any = tracker if tracker is not None else ScriptedTracker()
        self.session = TrackSession(
            camera="camera",
            tracker=self.tracker,
            parameters=NodeParameters(**parameters),
            ids=ids if ids is not None else IdLedger(),
        )
        self.state: TrackState | None = None
        self.epoch = 0

    def frame(self, index: int, *, fresh: bool = False, tokens: np.ndarray = TOKENS) -> TrackState:
        key = FrameKey(stamp_ns=stamp(index), frame_id="optical", height=HEIGHT, width=WIDTH)
        self.epoch += fresh
        self.state = self.session.step(
            tokens, key=key, epoch=self.epoch, frame_map=FRAME_MAP, before=self.state, fresh=fresh
        )
        return self.state

    def ask(self, **fields: Any) -> list[Answers]:
        """The answers that are there at once; of one request, unless others waited."""
        full = self.session.receive(read_request(query_message(**fields)))
        return [full] if full else self.carry_out()

    def carry_out(self) -> list[Answers]:
        self.state, answers = self.session.apply(self.state)
        return answers

    def entries(self, **fields: Any) -> list[Answer]:
        (answers,) = self.ask(**fields)
        return list(answers)

    @property
    def live(self) -> list[int]:
        assert self.state is not None
        return sorted(self.state.live)


def stamp(index: float) -> int:
    return START + int(index * 40 * MS)


def points(*cells: tuple[float, float], **fields: Any) -> dict[str, Any]:
    """Points in cells, as pixels."""
    x, y = ([CELL * cell[axis] for cell in cells] for axis in range(2))
    return {"point_x": x, "point_y": y, **fields}


def boxes(*cells: tuple[float, float, float, float], **fields: Any) -> dict[str, Any]:
    names = ("box_x_min", "box_y_min", "box_x_max", "box_y_max")
    return {**{name: [CELL * box[i] for box in cells] for i, name in enumerate(names)}, **fields}


def mask(value: int = 7) -> Any:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:24, :48] = value
    return mask_message(labels)


@pytest.fixture
def camera() -> Camera:
    camera = Camera()
    camera.frame(0)
    return camera


def test_tracks_appear_with_the_next_frame(camera: Camera) -> None:
    (answers,) = camera.ask(**points((1.5, 0.5), point_labels=["corner"]), **boxes((1, 1, 3, 2)), mask=mask())
    assert [(answer.item.kind, answer.id, answer.reason) for answer in answers] == [
        (Kind.POINT, 1, ""),
        (Kind.BOX, 2, ""),
        (Kind.MASK, FIRST_MASK_ID, ""),
    ]
    assert (answers.stamp_ns, answers.frame_id, answers.epoch) == (stamp(0), "optical", 0)
    assert camera.tracker.added == [(1, 2, FIRST_MASK_ID)], "all in one call"
    state = camera.frame(1)
    assert state.tracks.points.ids.tolist() == [1] and state.tracks.points.xy.tolist() == [[1.5 + SPEED, 0.5]]
    assert state.tracks.boxes.ids.tolist() == [2] and state.tracks.masks.ids.tolist() == [FIRST_MASK_ID]
    assert state.reported == {Kind.POINT, Kind.BOX, Kind.MASK}
    assert state.live[1].label == "corner"


@pytest.mark.parametrize("offset", [0, 0.2, -0.2])
def test_a_query_finds_the_frame_of_its_stamp(offset: float) -> None:
    camera = Camera(query_tolerance=0.01)
    for i in range(4):
        camera.frame(i)
    (answers,) = camera.ask(stamp_ns=stamp(1 + offset), **points((1, 1)))
    assert not answers.entries[0].reason
    assert answers.stamp_ns == stamp(1)
    assert camera.frame(4).tracks.points.xy.tolist() == [[1 + 3 * SPEED, 1.0]]


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (0.5, r"no processed frame is within query_tolerance, 0.01 s, of stamp 1000.020000000 s; the nearest"),
        (-1, r"stamp 999.960000000 s is older than the oldest remembered frame, 1000.000000000 s"),
        (30, r"ahead of the newest frame, 1000.040000000 s, by more than query_wait, 1 s"),
    ],
)
def test_a_stamp_without_a_frame_is_refused(index: float, reason: str) -> None:
    camera = Camera(query_tolerance=0.01)
    camera.frame(0)
    camera.frame(1)
    camera.ask(**points((1, 1)))
    (answers,) = camera.ask(stamp_ns=stamp(index), remove_ids=[1], **points((2, 2)), **boxes((0, 0, 1, 1)))
    removed, point, box = answers
    assert not removed.reason, "what needs no frame is carried out"
    assert reason in point.reason and reason in box.reason
    assert answers.stamp_ns == stamp(index)
    assert camera.live == []


def test_frames_are_remembered_as_long_as_the_tracker_does() -> None:
    camera = Camera(ScriptedTracker(memory=2))
    for i in range(5):
        camera.frame(i)
    assert not camera.entries(stamp_ns=stamp(3), **points((1, 1)))[0].reason
    assert "older than the oldest" in camera.entries(stamp_ns=stamp(1), **points((1, 1)))[0].reason


def test_a_query_ahead_of_its_frame_waits_for_it(camera: Camera) -> None:
    assert camera.ask(stamp_ns=stamp(2), request_id="early", **points((1, 1))) == []
    assert camera.session.waiting == 1
    camera.frame(1)
    assert camera.carry_out() == []
    camera.frame(2)
    (answers,) = camera.carry_out()
    assert (answers.request_id, answers.stamp_ns) == ("early", stamp(2))
    assert camera.session.waiting == 0 and camera.live == [1]


def test_a_query_whose_frame_was_dropped_gets_the_nearest_or_is_refused(camera: Camera) -> None:
    camera.ask(stamp_ns=stamp(1), **points((1, 1)))
    camera.ask(stamp_ns=stamp(2), **points((1, 1)))
    camera.frame(3)
    early, late = camera.carry_out()
    assert not early.entries[0].reason and early.stamp_ns == stamp(0), "40 ms away, as is within 50 ms"
    assert not late.entries[0].reason and late.stamp_ns == stamp(3)


def test_before_the_first_frame_everything_waits() -> None:
    camera = Camera()
    assert camera.ask(**points((1, 1))) == []
    assert camera.ask(clear=True) == []
    camera.frame(0)
    added, cleared = camera.carry_out()
    assert not added.entries[0].reason and not cleared.entries[0].reason
    assert camera.live == []


def test_only_so_many_requests_wait(camera: Camera) -> None:
    for _ in range(MAX_WAITING):
        assert camera.ask(stamp_ns=stamp(5), **points((1, 1))) == []
    assert "requests wait already" in camera.entries(stamp_ns=stamp(5), **points((1, 1)))[0].reason


def test_clear_ends_tracks_and_refuses_what_waits(camera: Camera) -> None:
    camera.ask(**points((1, 1), (2, 2)))
    camera.ask(stamp_ns=stamp(3), request_id="waits", **points((1, 1)))
    waiting, cleared = camera.ask(clear=True, request_id="clears", **points((3, 3)))
    assert waiting.request_id == "waits" and waiting.entries[0].reason == "cleared by a later request"
    assert [answer.reason for answer in cleared] == ["", ""]
    assert camera.live == [3]
    assert camera.frame(1).tracks.points.ids.tolist() == [3]


def test_removed_tracks_are_gone_and_said_once_to_be(camera: Camera) -> None:
    camera.ask(**points((1, 1), (2, 2)), **boxes((0, 0, 1, 1)))
    camera.frame(1)
    answers = camera.entries(remove_ids=[3, 1, 1, 77])
    assert [answer.reason for answer in answers] == ["", "", "no track has the id 1", "no track has the id 77"]
    state = camera.frame(2)
    assert state.tracks.points.ids.tolist() == [2] and not len(state.tracks.boxes.ids)
    assert state.reported == {Kind.POINT, Kind.BOX} and state.lost == ()
    assert camera.frame(3).reported == {Kind.POINT}


def test_a_bad_query_does_not_keep_the_others_out() -> None:
    camera = Camera(ScriptedTracker(refused={12}))
    camera.frame(0)
    (answers,) = camera.ask(**points((1, 1), (99, 1), (float("nan"), 1), (2, 2), (3, 3), point_ids=[10, 0, 0, 12, 13]))
    reasons = [answer.reason for answer in answers]
    assert [bool(reason) for reason in reasons] == [False, True, True, True, False]
    assert "outside" in reasons[1] and "not finite" in reasons[2] and reasons[3] == "the tracker does not want 12"
    assert camera.tracker.added[-1] == (10, 13), "what is left is added in one call"
    assert camera.live == [10, 13]
    camera.tracker.refused.clear()
    assert not camera.entries(**points((1, 1), point_ids=[12]))[0].reason, "a refused id was not used"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.POINT, lambda: points((1, 1), (2, 2), (3, 3))),
        (Kind.BOX, lambda: boxes((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3))),
    ],
)
def test_more_than_the_maximum_is_refused(kind: Kind, fields: Callable[[], dict[str, Any]]) -> None:
    camera = Camera(max_points=2, max_boxes=2)
    camera.frame(0)
    answers = camera.entries(**fields())
    assert [bool(answer.reason) for answer in answers] == [False, False, True]
    assert "2, are followed already" in answers[2].reason
    assert not camera.entries(remove_ids=[1])[0].reason
    assert [bool(answer.reason) for answer in camera.entries(**fields())] == [False, True, True]


def test_no_masks_where_none_may_be() -> None:
    camera = Camera(max_masks=0)
    camera.frame(0)
    assert "max_masks, 0, are followed already" in camera.entries(mask=mask())[0].reason


def test_ids_are_never_used_again(camera: Camera) -> None:
    camera.ask(**points((1, 1), point_ids=[5]))
    assert camera.entries(**boxes((0, 0, 1, 1), box_ids=[5]))[0].reason == "id 5 is in use"
    camera.ask(remove_ids=[5])
    assert "used before" in camera.entries(**points((1, 1), point_ids=[5]))[0].reason
    camera.frame(1, fresh=True)
    assert "used before" in camera.entries(**points((1, 1), point_ids=[5]))[0].reason
    given = [camera.entries(**points((1, 1)))[0].id for _ in range(6)]
    assert given == [1, 2, 3, 4, 6, 7]
    second = Camera(ids=camera.session._ids)
    second.frame(0)
    assert second.entries(**points((1, 1)))[0].id == 8, "a session made later goes on"


def test_ids_asked_for_are_not_given_to_others_of_the_same_request(camera: Camera) -> None:
    answers = camera.entries(**points((1, 1), (1, 2), (1, 3), (2, 1), point_ids=[0, 1, 0, 1]))
    assert [answer.id for answer in answers] == [2, 1, 3, 1]
    assert [answer.reason for answer in answers] == ["", "", "", "id 1 is in use"]


def test_the_id_of_a_mask_fits_its_image(camera: Camera) -> None:
    assert "mono16" in camera.entries(mask=mask(), mask_ids=[65536])[0].reason
    assert camera.entries(mask=mask(), mask_ids=[65535])[0].id == 65535


def test_another_frame_id_is_refused(camera: Camera) -> None:
    camera.ask(**points((1, 1)))
    answers = camera.entries(frame_id="base_link", clear=True, **points((1, 1)))
    assert all("'base_link', but images of camera have 'optical'" in answer.reason for answer in answers)
    assert camera.live == [1]
    assert not camera.entries(frame_id="optical", **points((1, 1)))[0].reason


def test_a_reset_loses_every_track_once(camera: Camera) -> None:
    camera.ask(**points((1, 1), point_labels=["corner"]), **boxes((0, 0, 1, 1)))
    camera.frame(1)
    camera.ask(**points((2, 2)))
    state = camera.frame(2, fresh=True)
    assert [(track.id, track.kind, track.label) for track in state.lost] == [
        (1, Kind.POINT, "corner"),
        (2, Kind.BOX, ""),
        (3, Kind.POINT, ""),
    ]
    assert state.reported == {Kind.POINT, Kind.BOX} and not state.live and not len(state.tracks.points.ids)
    assert state.stamps == (stamp(2),), "older frames are forgotten"
    after = camera.frame(3)
    assert after.lost == () and after.reported == frozenset()
    assert camera.entries(remove_ids=[1])[0].reason == "no track has the id 1"


def test_a_rejected_frame_changes_nothing(camera: Camera) -> None:
    camera.ask(**points((1, 1)))
    camera.frame(1)
    before, kept = camera.state, copy.deepcopy(camera.state)
    camera.tracker.not_finite = True
    with pytest.raises(FrameRejected, match="NaN or infinite"):
        camera.frame(2)
    camera.tracker.breaks = True
    for fresh in (False, True):
        with pytest.raises(FrameRejected, match="RuntimeError: the tracker is broken") as caught:
            camera.frame(2, fresh=fresh)
        assert caught.value.reason == "tracking"
    assert camera.state is before
    assert_identical(camera.state, kept)
    camera.tracker.breaks = camera.tracker.not_finite = False
    assert camera.frame(2).tracks.points.xy.tolist() == [[1 + 2 * SPEED, 1.0]]


def test_a_request_at_which_the_tracker_fails_changes_nothing(camera: Camera) -> None:
    camera.ask(**points((1, 1)))
    before = camera.state
    camera.tracker.breaks = True
    answers = camera.entries(clear=True, **points((2, 2)))
    assert all("the tracker is broken" in answer.reason for answer in answers)
    assert camera.state is before


def test_what_waits_can_be_refused_and_all_is_counted(camera: Camera) -> None:
    camera.ask(**points((1, 1), (99, 99)))
    camera.ask(stamp_ns=stamp(2), **points((1, 1)))
    (answers,) = camera.session.refuse_waiting("the node was deactivated", epoch=3)
    assert (answers.entries[0].reason, answers.epoch) == ("the node was deactivated", 3)
    assert (camera.session.accepted, camera.session.refused, camera.session.waiting) == (1, 2, 0)


def test_status_of_the_tracker_is_passed_on(camera: Camera) -> None:
    camera.ask(**points((1, 1)))
    assert camera.frame(1).tracks.points.status.tolist() == [Status.VISIBLE]


def random_tokens(count: int) -> list[np.ndarray]:
    """Features of a scene that moves right by one cell per frame, every cell unlike the others."""
    generator = np.random.default_rng(0)
    scene = generator.normal(size=(4, 8 + count, 16)).astype(np.float32)
    grids = [scene[:, count - i : count - i + 8].reshape(32, 16) for i in range(count)]
    return [np.concatenate([np.zeros((1, 16), np.float32), grid]) for grid in grids]


def feature_camera(**parameters: Any) -> Camera:
    """With the tracker that needs no training."""
    tracker = make_tracker(NodeParameters(height=64, width=128), 16)
    assert tracker is not None
    return Camera(tracker, **parameters)


WANTED: dict[str, Any] = {**points((2.5, 1.5)), **boxes((1, 1, 3, 3)), "mask": mask()}


def test_features_follow_what_was_asked_for() -> None:
    camera = feature_camera()
    tokens = random_tokens(4)
    camera.frame(0, tokens=tokens[0])
    assert [answer.reason for answer in camera.entries(**WANTED)] == [""] * 3
    for i in range(1, 4):
        state = camera.frame(i, tokens=tokens[i])
        np.testing.assert_allclose(state.tracks.points.xy, [[2.5 + i, 1.5]], atol=FEATURE_TOLERANCE)
        assert state.tracks.boxes.ids.tolist() == [2] and state.tracks.masks.ids.tolist() == [FIRST_MASK_ID]


def test_features_find_at_an_older_stamp_what_they_would_have_found_in_time() -> None:
    early, late = feature_camera(), feature_camera()
    tokens = random_tokens(5)
    for i in range(5):
        for camera in (early, late):
            camera.frame(i, tokens=tokens[i])
        if i == 1:
            early.ask(**WANTED)
        if i == 3:
            assert [answer.reason for answer in late.entries(stamp_ns=stamp(1), **WANTED)] == [""] * 3
    assert early.state is not None and late.state is not None
    assert_identical(early.state.tracks, late.state.tracks)


def test_features_are_as_they_were_after_a_rejected_frame() -> None:
    camera = feature_camera()
    tokens = random_tokens(3)
    camera.frame(0, tokens=tokens[0])
    camera.ask(**WANTED)
    camera.frame(1, tokens=tokens[1])
    before, kept = camera.state, copy.deepcopy(camera.state)
    with pytest.raises(FrameRejected, match="expected tokens"):
        camera.frame(2, tokens=tokens[2][:-1])
    camera.session.step(
        tokens[2],
        key=FrameKey(stamp_ns=stamp(2), frame_id="optical", height=HEIGHT, width=WIDTH),
        epoch=0,
        frame_map=FRAME_MAP,
        before=before,
        fresh=False,
    )
    assert camera.state is before
    assert_identical(camera.state, kept)


def test_no_tracker_where_nothing_is_to_be_tracked() -> None:
    assert make_tracker(NodeParameters(tracking="none"), 16) is None


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises((ValueError, OSError), match="/nowhere/points.npz"):
        make_tracker(NodeParameters(point_head="/nowhere/points.npz"), 16)


def test_trained_heads_follow_what_they_are_given_for() -> None:
    heads = {"point_head": str(DATA / "tracking_head_points.npz"), "box_head": str(DATA / "tracking_head_boxes.npz")}
    tracker = make_tracker(NodeParameters(height=64, width=128, **heads), 40)
    camera = Camera(tracker)
    tokens = np.random.default_rng(0).normal(size=(3, 33, 40)).astype(np.float32)
    camera.frame(0, tokens=tokens[0])
    assert [answer.reason for answer in camera.entries(**WANTED)] == [""] * 3
    for i in (1, 2):
        tracks = camera.frame(i, tokens=tokens[i]).tracks
    assert (tracks.points.ids.tolist(), tracks.boxes.ids.tolist()) == ([1], [2])
    assert tracks.masks.ids.tolist() == [FIRST_MASK_ID]
    assert camera.session.tracker_name == "window_heads+label_propagation"

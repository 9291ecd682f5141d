"""Tracks on pictures: at their places, in their colours, whatever the numbers are."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rvm_core.draw_tracks import MOST_POINT_IDS, TrackTails, color_of, draw_tracks
from rvm_core.tracking.base import BoxTracks, MaskTracks, PointTracks, Status
from rvm_core.tracking.pixels import PixelTracks

HEIGHT, WIDTH = 120, 160
GREY = 90
BLANK = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)

COLOR_DISTANCE = 60
"""Sum of differences of the channels from which two colours are told apart at a glance."""


def points(xy: npt.ArrayLike, *, ids: list[int] | None = None, status: list[Status] | None = None) -> PointTracks:
    positions = np.asarray(xy, np.float32).reshape(-1, 2)
    count = len(positions)
    return PointTracks(
        ids=np.array(ids or range(1, count + 1), np.uint64).reshape(count),
        xy=positions,
        status=np.array(status or [Status.VISIBLE] * count, np.uint8).reshape(count),
        confidence=np.full(count, 0.5, np.float32),
    )


def boxes(xyxy: npt.ArrayLike, *, status: Status = Status.VISIBLE) -> BoxTracks:
    corners = np.asarray(xyxy, np.float32).reshape(-1, 4)
    count = len(corners)
    return BoxTracks(
        ids=np.arange(1, count + 1, dtype=np.uint64),
        xyxy=corners,
        status=np.full(count, status, np.uint8),
        confidence=np.full(count, 0.87, np.float32),
    )


def changed(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.asarray((image != GREY).any(axis=2))


def is_color(image: npt.NDArray[np.uint8], id: int) -> npt.NDArray[np.bool_]:
    return np.asarray((image == color_of(id)).all(axis=2))


def test_picture_is_a_copy_and_nothing_is_drawn_of_nothing() -> None:
    picture = draw_tracks(BLANK, PixelTracks(), tails=TrackTails(), segments=np.zeros((HEIGHT, WIDTH), np.uint16))
    np.testing.assert_array_equal(picture, BLANK)
    assert picture is not BLANK and not np.shares_memory(picture, BLANK)
    draw_tracks(BLANK, PixelTracks(points=points([[50, 50]])))
    assert not changed(BLANK).any()


def test_any_strides_will_do() -> None:
    tracks = PixelTracks(points=points([[50, 50]]), boxes=boxes([[10, 20, 30, 40]]))
    for image in (BLANK[:, ::-1], np.full((WIDTH, HEIGHT, 3), GREY, np.uint8).transpose(1, 0, 2), BLANK[..., ::-1]):
        np.testing.assert_array_equal(draw_tracks(image, tracks), draw_tracks(BLANK, tracks))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_image_is_refused(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        draw_tracks(image, PixelTracks())


def test_point_is_a_disc_at_its_place() -> None:
    many = points([[50.5, 40.5]] * (MOST_POINT_IDS + 1), ids=[*range(MOST_POINT_IDS), 7777])
    picture = draw_tracks(BLANK, PixelTracks(points=many))
    rows, columns = np.nonzero(is_color(picture, 7777))
    np.testing.assert_array_equal(np.stack(np.nonzero(changed(picture))), [rows, columns])
    # The pixel with its centre at (50.5, 40.5), as well as OpenCV draws a disc of three pixels.
    np.testing.assert_allclose((columns.mean(), rows.mean()), (50, 40), atol=0.25)
    assert 4 <= np.ptp(columns) <= 8


def test_occluded_point_is_hollow_and_a_lost_one_is_gone() -> None:
    seen = draw_tracks(BLANK, PixelTracks(points=points([[50.5, 40.5]])))
    hidden = draw_tracks(BLANK, PixelTracks(points=points([[50.5, 40.5]], status=[Status.OCCLUDED])))
    assert is_color(seen, 1)[40, 50] and not is_color(hidden, 1)[40, 50]
    assert is_color(hidden, 1)[36:45, 46:55].any()
    lost = draw_tracks(BLANK, PixelTracks(points=points([[50.5, 40.5]], status=[Status.LOST])))
    assert not changed(lost).any()


def test_few_points_have_ids_and_labels_and_many_have_none() -> None:
    one = PixelTracks(points=points([[50.5, 40.5]]))
    with_id, with_label = draw_tracks(BLANK, one), draw_tracks(BLANK, one, labels={1: "wheel"})
    assert changed(with_id)[:, 56:].any() and changed(with_label)[:, 75:].any() and not changed(with_id)[:, 75:].any()
    many = PixelTracks(points=points([[50.5, 40.5]] * (MOST_POINT_IDS + 1)))
    assert not changed(draw_tracks(BLANK, many))[:, 56:].any()


def test_visible_box_is_outlined_and_an_occluded_one_dashed() -> None:
    corners = [20, 50, 100, 110]
    visible = is_color(draw_tracks(BLANK, PixelTracks(boxes=boxes([corners]))), 1)
    occluded = is_color(draw_tracks(BLANK, PixelTracks(boxes=boxes([corners], status=Status.OCCLUDED))), 1)
    for side in (np.s_[109:111, 20:100], np.s_[50:110, 19:21], np.s_[50:110, 99:101]):
        along = visible[side].any(axis=0) if visible[side].shape[0] == 2 else visible[side].any(axis=1)
        assert along.all()
        dashes = occluded[side].any(axis=0) if visible[side].shape[0] == 2 else occluded[side].any(axis=1)
        assert 0.3 < dashes.mean() < 0.8
    assert not visible[60:100, 30:90].any()
    assert not changed(draw_tracks(BLANK, PixelTracks(boxes=boxes([corners], status=Status.LOST)))).any()


@pytest.mark.parametrize("corners", [[20, 0, 100, 60], [-30, -30, 50, 50], [150, 80, 300, 100], [-500, -500, 600, 600]])
def test_tag_of_a_box_lies_within_the_image(corners: list[float]) -> None:
    """The same tag as that of a box in the middle is somewhere in the picture, whole."""
    tag = draw_tracks(BLANK, PixelTracks(boxes=boxes([[40, 60, 42, 62]])))[:58]
    rows, columns = np.nonzero(changed(tag))
    tag = tag[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert tag.shape[0] >= 8 and tag.shape[1] >= 20
    picture = draw_tracks(BLANK, PixelTracks(boxes=boxes([corners])))
    assert cv2.matchTemplate(picture, tag, cv2.TM_SQDIFF).min() < 1


def test_segments_are_tinted_and_named() -> None:
    segments = np.zeros((HEIGHT, WIDTH), np.uint16)
    segments[10:40, 10:60], segments[60:100, 80:140] = 3, 40000
    picture = draw_tracks(BLANK, PixelTracks(), segments=segments)
    np.testing.assert_array_equal(changed(picture), segments != 0)
    for id, place in ((3, (12, 12)), (40000, (62, 82))):
        np.testing.assert_allclose(picture[place], (np.array(color_of(id)) + GREY) / 2, atol=1)
    masks = MaskTracks(
        ids=np.array([3, 40000, 70000, 5], np.uint64),
        soft=np.zeros((4, 1, 1), np.float32),
        status=np.ones(4, np.uint8),
        confidence=np.array([0.5, np.nan, 1, 1], np.float32),
    )
    named = draw_tracks(BLANK, PixelTracks(masks=masks), segments=segments, labels={3: "van"})
    assert is_color(named, 3).any() and is_color(named, 40000).any()
    assert not is_color(named, 70000).any() and not is_color(named, 5).any(), "these have no pixel"
    with pytest.raises(ValueError, match="expected segments"):
        draw_tracks(BLANK, PixelTracks(), segments=segments[1:])


def follow(tails: TrackTails, *frames: PointTracks, epoch: int = 0) -> PixelTracks:
    for frame in frames:
        tails.update(PixelTracks(points=frame), epoch)
    return PixelTracks(points=frames[-1])


def test_tail_goes_where_the_point_was_and_no_further_back_than_its_length() -> None:
    tails = TrackTails(4)
    path = [points([[10.5 + 20 * t, 60.5]]) for t in range(7)]
    picture = draw_tracks(BLANK, follow(tails, *path), tails=tails)
    line = is_color(picture, 1)[60]
    assert line[72:130].all() and not line[:68].any()
    np.testing.assert_array_equal(tails.xy[:, 0, 0], [70.5, 90.5, 110.5, 130.5])


def test_ids_that_vanish_or_of_another_epoch_are_forgotten() -> None:
    tails = TrackTails(4)
    both = points([[10, 10], [20, 20]], ids=[5, 9])
    follow(tails, both, points([[21, 20], [30, 30]], ids=[9, 4]))
    assert tails.ids.tolist() == [9, 4]
    np.testing.assert_array_equal(tails.xy[-2:, 0], [[20, 20], [21, 20]])
    assert np.isnan(tails.xy[-2, 1]).all()
    follow(tails, both)
    assert np.isnan(tails.xy[-2, 0]).all(), "5 comes again but has no past"
    follow(tails, both, epoch=1)
    assert np.isnan(tails.xy[:-1]).all()
    np.testing.assert_array_equal(tails.xy[-1], both.xy)


def test_tail_of_an_occluded_point_has_gaps_that_stay_where_they_are() -> None:
    tails = TrackTails(8)
    path = [points([[10.5 + 12 * t, 60.5]], status=[Status.OCCLUDED]) for t in range(9)]
    follow(tails, *path[:8])
    first = tails.drawn[1:, 0]
    assert 0 < first.sum() < len(first)
    follow(tails, path[8])
    np.testing.assert_array_equal(tails.drawn[:-1, 0], first)


def test_tail_is_broken_where_the_position_is_unknown() -> None:
    tails = TrackTails(6)
    path = [points([[10.5 + 20 * t if t != 3 else np.nan, 60.5]]) for t in range(6)]
    line = is_color(draw_tracks(BLANK, follow(tails, *path), tails=tails), 1)[60]
    assert line[12:50].all() and not line[52:88].any() and line[92:110].all()


def test_tails_need_a_length() -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        TrackTails(0)
    tails = TrackTails(1)
    draw_tracks(BLANK, follow(tails, points([[1, 1]]), points([[9, 9]])), tails=tails)


def test_lines_and_letters_grow_with_the_image() -> None:
    def share(factor: int) -> float:
        image = np.full((factor * HEIGHT * 4, factor * WIDTH * 4, 3), GREY, np.uint8)
        at = np.array([300, 200, 500, 400]) * factor
        tracks = PixelTracks(points=points([at[:2] // 2]), boxes=boxes([at]))
        return float(changed(draw_tracks(image, tracks)).mean())

    assert share(4) == pytest.approx(share(1), rel=0.5)


def test_colours_of_neighbours_differ_and_never_change() -> None:
    assert color_of(12) == color_of(12) and color_of(1) == (115, 156, 255)
    colors = np.array([color_of(id) for id in range(1, 25)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    assert distances[np.triu_indices(24, 1)].min() > COLOR_DISTANCE / 2
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > COLOR_DISTANCE
    assert color_of(2**64 - 1) != color_of(2**64 - 2)


numbers = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True), st.floats(-200, 400, width=32, allow_nan=False)
)


@settings(max_examples=60, deadline=None)
@given(
    xy=arrays(np.float32, st.tuples(st.just(5), st.integers(0, 4), st.just(2)), elements=numbers),
    xyxy=arrays(np.float32, (3, 4), elements=numbers),
    status=st.sampled_from([0, 1, 2, 3, 200]),
    size=st.sampled_from([(1, 1), (1, 300), (17, 9), (HEIGHT, WIDTH)]),
)
def test_no_number_makes_it_fail(
    xy: npt.NDArray[np.float32], xyxy: npt.NDArray[np.float32], status: int, size: tuple[int, int]
) -> None:
    tails, image = TrackTails(4), np.zeros((*size, 3), np.uint8)
    for frame in xy:
        tracks = PixelTracks(
            points=PointTracks(
                ids=np.arange(len(frame), dtype=np.uint64) + np.uint64(2**64 - 9),
                xy=frame,
                status=np.full(len(frame), status, np.uint8),
                confidence=frame[:, 0],
            ),
            boxes=BoxTracks(
                ids=np.arange(3, dtype=np.uint64),
                xyxy=xyxy,
                status=np.full(3, status, np.uint8),
                confidence=xyxy[:, 0],
            ),
        )
        tails.update(tracks)
        picture = draw_tracks(image, tracks, tails=tails, labels={0: "Fahrrad\n\0é"})
    assert picture.shape == image.shape

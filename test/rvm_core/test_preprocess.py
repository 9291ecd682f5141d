"""Resizing lands where the map says it does, does not alias, and never shares memory with its input."""

from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvm_core.preprocess import FrameMap, Preprocess, ResizePolicy

POLICIES = get_args(ResizePolicy)
SIZES = [(1080, 1920), (480, 640), (719, 1281), (641, 363), (800, 300), (128, 192), (50, 70), (31, 97), (50, 700)]
"""Source heights and widths: large and small, landscape and portrait, odd, the target's own, smaller than the target,
smaller in one direction only."""
HEIGHT, WIDTH = 128, 192
WHITE = 255

CENTROID_TOLERANCE = 0.02
"""Target pixels. Rounding to 8 bits and OpenCV's fixed-point weights stay under it; half a pixel off would be 0.5."""
INVERSE_TOLERANCE = 1e-9
"""Of the image's or the grid's size: a few roundings of float64."""


def preprocess(policy: ResizePolicy) -> Preprocess:
    return Preprocess(height=HEIGHT, width=WIDTH, policy=policy)


def cell_means(image: np.ndarray) -> np.ndarray:
    return image.reshape(HEIGHT // 16, 16, WIDTH // 16, 16, 3).mean(axis=(1, 3, 4))


def cell_size(frame_map: FrameMap) -> np.ndarray:
    """Width and height of a cell in source pixels."""
    return frame_map.grid_to_pixels([1, 1]) - frame_map.grid_to_pixels([0, 0])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_marked_square_lands_in_its_cell(policy: ResizePolicy, height: int, width: int) -> None:
    fit = preprocess(policy)
    frame_map = fit.map(height, width)
    size = cell_size(frame_map)
    for row, col in np.argwhere(frame_map.valid_cells())[::7]:
        x, y = frame_map.grid_to_pixels([col + 0.5, row + 0.5])
        left, top = round(x - size[0] / 4), round(y - size[1] / 4)
        right, bottom = max(left + 1, round(x + size[0] / 4)), max(top + 1, round(y + size[1] / 4))
        image = np.zeros((height, width, 3), np.uint8)
        image[max(0, top) : bottom, max(0, left) : right] = WHITE

        means = cell_means(fit(image))
        found = np.unravel_index(means.argmax(), means.shape)

        assert found == (row, col)
        mark = np.array([left + right, top + bottom]) / 2
        assert np.all(np.abs(frame_map.grid_to_pixels(np.array(found)[::-1] + 0.5) - mark) <= size)
        assert tuple(np.floor(frame_map.pixels_to_grid(mark))) == (col, row)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_centroid_of_a_blob_maps_back(policy: ResizePolicy, height: int, width: int) -> None:
    fit = preprocess(policy)
    frame_map = fit.map(height, width)
    pixel = cell_size(frame_map) / 16
    sigma = 3 * np.maximum(pixel, 1)
    centre_x, centre_y = np.array([width, height]) / 2 + [0.3, -0.4]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    blob = np.exp(-(((y - centre_y) / sigma[1]) ** 2)[:, None] / 2 - ((x - centre_x) / sigma[0]) ** 2 / 2)
    image = np.repeat(np.rint(WHITE * blob).astype(np.uint8)[:, :, None], 3, axis=2)
    image = np.ascontiguousarray(image)

    result = frame_map.grid_to_pixels(centroid(fit(image)) / 16)

    assert np.all(np.abs(result - centroid(image)) <= CENTROID_TOLERANCE * np.maximum(pixel, 1))


def centroid(image: np.ndarray) -> np.ndarray:
    """Centre of brightness (x, y), pixel centres at .5."""
    weights = image[:, :, 0].astype(np.float64)
    x, y = np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5
    return np.array([weights.sum(0) @ x, weights.sum(1) @ y]) / weights.sum()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_padding_is_black_and_flagged(policy: ResizePolicy, height: int, width: int) -> None:
    fit = preprocess(policy)
    result = fit(np.full((height, width, 3), WHITE, np.uint8))
    assert set(np.unique(result)) <= {0, WHITE}
    # A cell's centre is the corner of four pixels: it lies in the image if one of them does.
    white = result[:, :, 0] == WHITE
    corners = white[7::16, 7::16] | white[7::16, 8::16] | white[8::16, 7::16] | white[8::16, 8::16]
    np.testing.assert_array_equal(fit.map(height, width).valid_cells(), corners)
    if policy != "letterbox":
        assert white.all()


def test_letterbox_is_centred() -> None:
    rows = preprocess("letterbox")(np.full((100, 400, 3), WHITE, np.uint8))[:, 0, 0]
    np.testing.assert_array_equal(np.flatnonzero(rows), np.arange(40, 88))
    valid = preprocess("letterbox").map(100, 400).valid_cells()
    # The centres of the third and the sixth row lie just on the image's edge, which is not outside it.
    np.testing.assert_array_equal(valid.all(axis=1), [False, False, True, True, True, True, False, False])


def test_center_crop_takes_the_middle() -> None:
    frame_map = preprocess("center_crop").map(128, 400)
    np.testing.assert_allclose(frame_map.grid_to_pixels([[0, 0], [12, 8]]), [[104, 0], [296, 128]])


def test_stretch_covers_the_image() -> None:
    frame_map = preprocess("stretch").map(640, 200)
    np.testing.assert_allclose(frame_map.grid_to_pixels([[0, 0], [12, 8]]), [[0, 0], [200, 640]])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("period", [2, 3, 5])
def test_fine_stripes_become_grey(policy: ResizePolicy, period: int) -> None:
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[:, ::period] = WHITE
    fit = preprocess(policy)
    frame_map = fit.map(1080, 1920)
    result = fit(image)[frame_map.target_box.slices].astype(int)
    scale = cell_size(frame_map)[0] / 16
    # An average over `scale` pixels holds one stripe more or less than its share at most.
    assert np.abs(result - WHITE / period).max() <= WHITE / scale
    assert result.mean() == pytest.approx(WHITE / period, abs=2)


@pytest.mark.parametrize(("height", "width"), [(240, 360), (129, 193), (201, 383), (200, 192)])
def test_shrinking_averages_areas(height: int, width: int) -> None:
    image = noise(height, width)
    integral = np.zeros((height + 1, width + 1, 3))
    integral[1:, 1:] = image.astype(np.float64).cumsum(0).cumsum(1)
    for axis, (source, target) in enumerate([(height, HEIGHT), (width, WIDTH)]):
        edges = np.linspace(0, source, target + 1)
        lower = np.minimum(edges.astype(int), source - 1)
        rest = (edges - lower).reshape([-1 if i == axis else 1 for i in range(3)])
        integral = np.take(integral, lower, axis) * (1 - rest) + np.take(integral, lower + 1, axis) * rest
    expected = np.diff(np.diff(integral, axis=0), axis=1) * (HEIGHT * WIDTH) / (height * width)
    assert np.abs(preprocess("stretch")(image) - expected).max() <= 0.5 + 1e-3  # rounding to nearest, float32 inside


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_flat_and_linear_images_stay_so(policy: ResizePolicy, height: int, width: int) -> None:
    fit = preprocess(policy)
    frame_map = fit.map(height, width)
    ramp = np.linspace(20, 200, width).astype(np.float64)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.rint(ramp)[None, :, None]
    target = frame_map.target_box
    columns = np.arange(target.left, target.left + target.width) + 0.5
    x = frame_map.grid_to_pixels(np.stack([columns / 16, np.zeros_like(columns)], axis=1))[:, 0]
    expected = np.interp(x, np.arange(width) + 0.5, ramp)
    inner = slice(2, -2)
    result = fit(image)[target.slices][:, inner, 0]
    # One level for each rounding: of the input, of up to three halvings and of the result.
    assert np.abs(result - expected[inner]).max() <= 2


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), [(10, 4000), (4000, 10), (1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_extreme_aspect_ratios(policy: ResizePolicy, height: int, width: int) -> None:
    fit = Preprocess(height=16, width=256, policy=policy)
    result = fit(np.full((height, width, 3), WHITE, np.uint8))
    assert result.shape == (16, 256, 3)
    assert result.max() == WHITE
    frame_map = fit.map(height, width)
    assert min(frame_map.source_box[2:]) >= 1
    assert min(frame_map.target_box[2:]) >= 1
    cells = np.array([[0.0, 0.0], [16.0, 1.0]])
    np.testing.assert_allclose(frame_map.pixels_to_grid(frame_map.grid_to_pixels(cells)), cells, atol=1e-6)


def test_result_is_new_memory() -> None:
    fit = preprocess("letterbox")
    for image in (noise(HEIGHT, WIDTH), noise(300, 300)):
        first = fit(image)
        kept = first.copy()
        second = fit(WHITE - image)
        assert first.flags.c_contiguous and first.flags.writeable
        assert not np.shares_memory(first, image)
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("policy", POLICIES)
def test_out_is_filled_completely(policy: ResizePolicy) -> None:
    fit, image = preprocess(policy), noise(300, 300)
    out = np.full((HEIGHT, WIDTH, 3), 77, np.uint8)
    assert fit(image, out=out) is out
    np.testing.assert_array_equal(out, fit(image))


@pytest.mark.parametrize("policy", POLICIES)
def test_same_image_gives_the_same_bytes(policy: ResizePolicy) -> None:
    fit, image = preprocess(policy), noise(719, 1281)
    expected = fit(image)
    threads = cv2.getNumThreads()
    try:
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            np.testing.assert_array_equal(fit(image), expected)
    finally:
        cv2.setNumThreads(threads)


def test_views_and_read_only_images() -> None:
    fit, image = preprocess("center_crop"), noise(400, 600)
    for view in (image[::2, ::2], image[:, ::-1], image[:, :, ::-1], image[100:, 50:]):
        view.flags.writeable = False
        np.testing.assert_array_equal(fit(view), fit(np.ascontiguousarray(view)))


@pytest.mark.parametrize("bad", [{"height": 100}, {"width": 0}, {"width": -16}])
def test_sizes_must_be_multiples_of_the_patch(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(bad))} must be a positive multiple of 16, got -?\d+; use"):
        Preprocess(**{"height": 256, "width": 256, "policy": "stretch", **bad})  # type: ignore[arg-type]


def test_unknown_policy_names_the_known() -> None:
    with pytest.raises(ValueError, match="letterbox, center_crop, stretch, got 'pad'"):
        Preprocess(height=256, width=256, policy="pad")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) of uint8, got"):
        preprocess("stretch")(image)


def test_empty_image_and_wrong_out_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1x1 pixels, got 0x8"):
        preprocess("stretch")(np.zeros((8, 0, 3), np.uint8))
    with pytest.raises(ValueError, match="expected a contiguous out"):
        preprocess("stretch")(noise(8, 8), out=np.zeros((WIDTH, HEIGHT, 3), np.uint8))


@settings(deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    source=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    points=st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=1, max_size=5),
)
def test_map_then_inverse_is_identity(
    policy: ResizePolicy, source: tuple[int, int], target: tuple[int, int], points: list[tuple[float, float]]
) -> None:
    frame_map = Preprocess(height=16 * target[0], width=16 * target[1], policy=policy).map(*source)
    pixels = np.array(points) * [source[1], source[0]]
    cells = frame_map.pixels_to_grid(pixels)
    # The distance between what the two may differ by grows with the coordinates, which padding can make large.
    scale = np.abs(frame_map.grid_to_image).max() * max(1.0, np.abs(cells).max())
    np.testing.assert_allclose(frame_map.grid_to_pixels(cells), pixels, atol=INVERSE_TOLERANCE * scale)
    affine = frame_map.grid_to_image
    np.testing.assert_allclose(cells @ affine[:, :2].T + affine[:, 2], pixels, atol=INVERSE_TOLERANCE * scale)


@settings(deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    source=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_boxes_stay_inside_and_leave_out_less_than_a_target_pixel(
    policy: ResizePolicy, source: tuple[int, int], target: tuple[int, int]
) -> None:
    frame_map = Preprocess(height=16 * target[0], width=16 * target[1], policy=policy).map(*source)
    seen, shown = frame_map.source_box, frame_map.target_box
    assert 0 <= seen.left and seen.left + seen.width <= source[1]
    assert 0 <= seen.top and seen.top + seen.height <= source[0]
    assert 0 <= shown.left and shown.left + shown.width <= 16 * target[1]
    assert 0 <= shown.top and shown.top + shown.height <= 16 * target[0]
    assert abs(2 * seen.left + seen.width - source[1]) <= 2
    assert abs(2 * seen.top + seen.height - source[0]) <= 2
    if policy != "center_crop":
        assert (source[1] - seen.width) * shown.width < seen.width or seen.width == source[1]
        assert (source[0] - seen.height) * shown.height < seen.height or seen.height == source[0]

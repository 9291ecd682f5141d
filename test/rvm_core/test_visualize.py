"""Colours of feature maps: steady, deterministic, in the right place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rvm_core.visualize import (
    MAX_CELLS_TO_FIT,
    MAX_TURN,
    PCAColors,
    RunningPCA,
    contact_sheet,
    fit_pca,
    overlay,
    sample_cells,
    side_by_side,
)

ROWS, COLS, WIDTH = 10, 24, 96
FrameArray = npt.NDArray[np.float32]

LEVELS = 1.0
"""Colour levels of 255 by which a changing basis may move the colours beyond what the features' own change does.

Two noise-free frames of an exact PCA differ by 0; a swap or a change of sign costs 40 and more on average.
"""

SPECTRA = {
    "separated": (10.0, 4.0, 2.0, 1.0, 0.5),
    "near-degenerate": (1.05, 1.0, 0.98, 0.96, 0.95, 0.9),
    "degenerate": (1.0,) * 8,
}


def slow_stream(spectrum: tuple[float, ...], frames: int, seed: int = 0) -> Iterator[FrameArray]:
    """Feature maps whose latent values drift slowly, with fresh noise in every frame."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(WIDTH, len(spectrum))))[0] * np.sqrt(spectrum)
    latent = random.normal(size=(ROWS, COLS, len(spectrum)))
    offset = random.normal(size=WIDTH) * 5
    for _ in range(frames):
        yield (latent @ directions.T + offset + 0.05 * random.normal(size=(ROWS, COLS, WIDTH))).astype(np.float32)
        latent = 0.99 * latent + np.sqrt(1 - 0.99**2) * random.normal(size=latent.shape)


def fixed_colors(features: FrameArray) -> PCAColors:
    return fit_pca(features[None])


def mean_change(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_colours_change_only_as_the_features_do(spectrum: tuple[float, ...]) -> None:
    frames = list(slow_stream(spectrum, 120))
    fixed = fixed_colors(frames[0])
    unavoidable = np.mean([mean_change(fixed.color(a), fixed.color(b)) for a, b in pairwise(frames)])
    pca, images = RunningPCA(), []
    for features in frames:
        pca.update(features)
        images.append(pca.color(features))
    changes = [mean_change(a, b) for a, b in pairwise(images)]
    assert np.mean(changes) < unavoidable + LEVELS
    assert max(changes[10:]) < 2 * unavoidable


def test_a_new_pca_for_every_frame_would_flicker() -> None:
    """The test above can tell: without the memory, a near-degenerate spectrum swaps components and changes signs."""
    frames = list(slow_stream(SPECTRA["near-degenerate"], 40))
    images = [fixed_colors(features).color(features) for features in frames]
    fixed = fixed_colors(frames[0])
    unavoidable = np.mean([mean_change(fixed.color(a), fixed.color(b)) for a, b in pairwise(frames)])
    assert np.mean([mean_change(a, b) for a, b in pairwise(images)]) > 2 * unavoidable


DEGREES = 0.5
"""By which a direction may turn more than `MAX_TURN`, as all three are made orthogonal again afterwards."""


def scene(spectrum: tuple[float, ...], seed: int) -> FrameArray:
    """One feature map without noise."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(WIDTH, len(spectrum))))[0] * np.sqrt(spectrum)
    latent = random.normal(size=(ROWS, COLS, len(spectrum)))
    return (latent @ directions.T + random.normal(size=WIDTH) * 5).astype(np.float32)


def noisy(maps: list[FrameArray], noise: float = 0.05) -> Iterator[FrameArray]:
    random = np.random.default_rng(9)
    for features in maps:
        yield (features + noise * random.normal(size=features.shape)).astype(np.float32)


def turns(maps: Iterator[FrameArray]) -> npt.NDArray[np.floating]:
    """Degrees (frames - 1, 3) by which each direction turns from frame to frame; over 90 if it changes sign."""
    pca, bases = RunningPCA(), []
    for features in maps:
        pca.update(features)
        bases.append(pca.colors.basis)
    cosines = [np.clip((a * b).sum(axis=0), -1, 1) for a, b in pairwise(bases)]
    return np.degrees(np.arccos(cosines))


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_directions_turn_little_from_frame_to_frame(spectrum: tuple[float, ...]) -> None:
    """In a static scene, where scenes change, where a dark one becomes bright, and after a first frame of noise."""
    one, other = scene(spectrum, 1), scene(spectrum, 2)
    clips = {
        "static": [one] * 40,
        "cut": [one] * 20 + [other] * 40,
        "light": [0.05 * one] * 20 + [other] * 40,
        "dark": [one] * 20 + [0.05 * other] * 40,
        "start": [0 * one] + [one] * 40,
    }
    for name, maps in clips.items():
        angles = turns(noisy(maps))
        assert angles.max() < MAX_TURN + DEGREES, f"{name}: {angles.max()} degrees"
    assert turns(noisy(clips["static"]))[10:].max() < 0.5


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_colours_of_a_static_scene_stay_put(spectrum: tuple[float, ...]) -> None:
    """Without noise they do not change at all, with noise no more than noise itself changes fixed colours."""
    one = scene(spectrum, 1)
    pca, still = RunningPCA(), []
    for _ in range(60):
        pca.update(one)
        still.append(pca.color(one))
    assert max(np.abs(image.astype(int) - still[0]).max() for image in still) <= 1  # rounding
    frames = list(noisy([one] * 100))
    pca, images = RunningPCA(), []
    for features in frames:
        pca.update(features)
        images.append(pca.color(features))
    fixed = fixed_colors(one)
    unavoidable = max(mean_change(fixed.color(a), fixed.color(b)) for a, b in pairwise(frames))
    assert max(mean_change(a, b) for a, b in pairwise(images)) < unavoidable + LEVELS
    assert mean_change(images[10], images[-1]) < unavoidable + LEVELS, "they drift"


def test_directions_find_a_new_scene_within_seconds() -> None:
    """What keeps them from turning at once does not keep them where they are."""
    one, other = scene(SPECTRA["separated"], 1), scene(SPECTRA["separated"], 2)
    pca = RunningPCA()
    for features in noisy([one * 0.05] * 30 + [other] * 60):
        pca.update(features)
    reference = fixed_colors(other).basis
    assert np.linalg.svd(reference.T @ pca.colors.basis, compute_uv=False).min() > 0.95


def test_running_colours_find_the_main_directions_though_the_first_frame_lacks_them() -> None:
    random = np.random.default_rng(1)
    pca = RunningPCA(decay=0.9)
    pca.update(random.normal(size=(ROWS, COLS, WIDTH)).astype(np.float32))
    frames = list(slow_stream(SPECTRA["separated"], 150))
    for features in frames:
        pca.update(features)
    running = pca.color(frames[-1]).reshape(-1, 3).astype(float)
    exact = fixed_colors(frames[-1]).color(frames[-1]).reshape(-1, 3).astype(float)
    for component in range(3):
        correlation = np.corrcoef(running[:, component], exact[:, component])[0, 1]
        assert abs(correlation) > 0.9, f"component {component} of the stream is not that of the last frame"


def test_running_colours_are_deterministic() -> None:
    def run() -> npt.NDArray[np.uint8]:
        pca = RunningPCA()
        for features in slow_stream(SPECTRA["near-degenerate"], 20):
            pca.update(features)
        return pca.color(features)

    np.testing.assert_array_equal(run(), run())


def test_clip_colours_are_those_of_an_exact_decomposition() -> None:
    clip = np.stack(list(slow_stream(SPECTRA["separated"], 6))).astype(np.float64)
    colors = fit_pca(clip)
    cells = (clip - clip.mean(axis=(1, 2), keepdims=True)).reshape(-1, WIDTH)
    exact = np.linalg.svd(cells, full_matrices=False)[2][:3].T
    np.testing.assert_allclose(np.abs((colors.basis * exact).sum(axis=0)), 1, atol=1e-5)
    image = colors.color(clip)
    assert image.shape == (6, ROWS, COLS, 3) and image.dtype == np.uint8
    clipped = ((image == 0) | (image == 255)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(clipped, 0.04, atol=0.01)  # two percent at each end


def test_a_long_clip_is_sampled_all_over(tmp_path: Path) -> None:
    """From a memory-mapped file, as good as from memory, and close to what all cells give."""
    clip = np.stack(list(slow_stream(SPECTRA["separated"], 90)))
    assert clip[..., 0].size > 2 * MAX_CELLS_TO_FIT
    np.save(tmp_path / "clip.npy", clip)
    mapped = fit_pca(np.load(tmp_path / "clip.npy", mmap_mode="r"))
    np.testing.assert_array_equal(mapped.basis, fit_pca(clip).basis)
    cells = (clip - clip.mean(axis=(1, 2), keepdims=True)).reshape(-1, WIDTH)
    exact = np.linalg.eigh(cells.T @ cells)[1][:, -3:]
    assert np.linalg.svd(exact.T @ mapped.basis, compute_uv=False).min() > 0.99


def test_sampled_cells_are_spread_over_frames_and_places() -> None:
    inside = np.array([3, 5, 6, 9])
    number, cell = sample_cells(2, inside)
    assert number.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and cell.tolist() == [3, 5, 6, 9, 3, 5, 6, 9]
    # As many frames as cells are taken: at equal steps each would be the first one of its frame.
    number, cell = sample_cells(500, inside, most=500)
    assert (number == np.arange(500)).all()
    assert set(cell.tolist()) == {3, 5, 6, 9} and np.bincount(cell).max() < 200
    assert len(sample_cells(5, inside[:0])[0]) == 0


def test_what_a_whole_frame_shares_does_not_hide_what_its_cells_differ_in() -> None:
    """A stream whose mean jumps far between scenes still shows the structure within each frame."""
    random = np.random.default_rng(2)
    jumps = 20 * random.normal(size=(3, WIDTH))
    frames = list(slow_stream(SPECTRA["separated"], 90))
    stream = np.stack([features + jumps[i // 30] for i, features in enumerate(frames)])
    pca = RunningPCA()
    for features in stream:
        pca.update(features)
    reference = fixed_colors(frames[-1]).basis
    for basis in (fit_pca(stream).basis, pca.colors.basis):
        assert np.linalg.svd(reference.T @ basis, compute_uv=False).min() > 0.9


def test_few_cells_of_many_channels_and_many_of_few_agree_on_the_subspace() -> None:
    """The two ways to the eigenvectors, through cells and through channels, give the same colours up to sign."""
    features = next(slow_stream(SPECTRA["separated"], 1)).astype(np.float64)
    few = fit_pca(features[None, :1])  # 24 cells of 96 channels
    repeated = fit_pca(np.repeat(features[None, :1], 10, axis=1))  # the same cells, ten times
    np.testing.assert_allclose(np.abs((few.basis * repeated.basis).sum(axis=0)), 1, atol=1e-5)


def test_padding_does_not_count() -> None:
    features = next(slow_stream(SPECTRA["separated"], 1))
    valid = np.zeros((ROWS, COLS), bool)
    valid[2:8] = True
    spoilt = np.where(valid[..., None], features, 1e3).astype(np.float32)
    running, reference = RunningPCA(), RunningPCA()
    running.update(spoilt, valid)
    reference.update(features[2:8])
    np.testing.assert_array_equal(running.color(features), reference.color(features))
    np.testing.assert_array_equal(fit_pca(spoilt[None], valid).color(features), reference.color(features))
    before = running.color(features)
    running.update(spoilt, np.zeros_like(valid))
    np.testing.assert_array_equal(running.color(features), before)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_few_channels_still_give_a_colour(width: int) -> None:
    random = np.random.default_rng(0)
    pca = RunningPCA()
    for _ in range(5):
        features = random.normal(size=(4, 5, width)).astype(np.float32)
        pca.update(features)
    image = pca.color(features)
    assert image.shape == (4, 5, 3)
    assert (image[..., width:] == 128).all() and image[..., 0].std() > 20
    assert fit_pca(features[None]).color(features).shape == (4, 5, 3)


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("cells", [(1, 1), (4, 5)])
def test_constant_features_are_grey_and_recover(value: float, cells: tuple[int, int]) -> None:
    pca = RunningPCA(decay=0.5)
    constant = np.full((*cells, WIDTH), value, np.float32)
    for _ in range(3):
        pca.update(constant)
    np.testing.assert_allclose(pca.color(constant), 128, atol=1)
    np.testing.assert_allclose(fit_pca(constant[None]).color(constant), 128, atol=1)
    features = list(slow_stream(SPECTRA["separated"], 30))
    for frame in features:
        pca.update(frame)
    assert (pca.color(features[-1]).reshape(-1, 3).std(axis=0) > 20).all()


def test_rank_one_features_do_not_show_amplified_rounding() -> None:
    random = np.random.default_rng(0)
    direction, pca = random.normal(size=WIDTH), RunningPCA()
    for _ in range(30):
        features = (random.normal(size=(ROWS, COLS, 1)) * direction).astype(np.float32)
        pca.update(features)
    image = pca.color(features)
    assert image[..., 0].std() > 20
    assert image[..., 1:].std() < 3


def test_half_precision_features_are_accepted() -> None:
    features = next(slow_stream(SPECTRA["separated"], 1)).astype(np.float16)
    pca = RunningPCA()
    pca.update(features)
    assert pca.color(features).std() > 20


def test_bad_features_are_refused() -> None:
    pca = RunningPCA()
    with pytest.raises(ValueError, match="call update"):
        pca.color(np.zeros((2, 2, 8), np.float32))
    pca.update(np.random.default_rng(0).normal(size=(4, 4, 8)))
    with pytest.raises(ValueError, match="finite"):
        pca.update(np.full((4, 4, 8), np.nan))
    with pytest.raises(ValueError, match="8 channels, got 9"):
        pca.update(np.zeros((4, 4, 9)))
    with pytest.raises(ValueError, match="8 channels, got shape"):
        pca.color(np.zeros((4, 4, 9)))
    with pytest.raises(ValueError, match=r"\(T, rows, cols, D\)"):
        fit_pca(np.zeros((4, 4, 9)))
    with pytest.raises(ValueError, match="at least one valid"):
        fit_pca(np.zeros((1, 4, 4, 9)), np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="decay"):
        RunningPCA(decay=1.0)


def centre_of(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Centre (x, y) of the marked pixels, pixel centres at .5."""
    y, x = np.nonzero(mask)
    return float(x.mean()) + 0.5, float(y.mean()) + 0.5


@pytest.mark.parametrize("cell", [(0, 0), (3, 5), (7, 11)])
@pytest.mark.parametrize(
    "affine",
    [
        [[16, 0, 0], [0, 16, 0]],
        [[16, 0, 0], [0, 16, -40]],  # letterbox: padding above and below the image
        [[8, 0, 90], [0, 8, 56]],  # centre crop: the grid covers a part
        [[13.3, 0, 7.7], [0, 9.1, 3.2]],
    ],
    ids=["whole", "letterbox", "crop", "uneven"],
)
def test_a_marked_cell_lies_where_the_affine_says(affine: list[list[float]], cell: tuple[int, int]) -> None:
    colors = np.zeros((8, 12, 3), np.uint8)
    colors[cell] = 255
    painted = overlay(np.zeros((128, 192, 3), np.uint8), colors, affine, alpha=1.0)
    x, y = np.asarray(affine) @ (cell[1] + 0.5, cell[0] + 0.5, 1)
    if not 0 <= y <= 128:
        assert not (painted > 128).any()
        return
    # Above half of the peak, linear interpolation shows the cell itself; at the border it is cut by the grid's edge.
    at = centre_of(painted[..., 0] > 128)
    (width, _, _), (_, height, _) = np.asarray(affine)
    near = np.array([width, height]) / 32 + 0.5  # cv2 interpolates in steps of 1/32 cell; half a pixel for the edge
    assert abs(at[0] - x) <= near[0] and abs(at[1] - y) <= near[1]


def test_without_smoothing_a_cell_has_one_colour() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = np.zeros((64, 96, 3), np.uint8)
    painted = overlay(image, colors, [[16, 0, 0], [0, 16, 0]], alpha=1.0, smooth=False)
    np.testing.assert_array_equal(painted, colors.repeat(16, axis=0).repeat(16, axis=1))


def test_overlay_covers_exactly_the_grid() -> None:
    image = np.full((100, 120, 3), 10, np.uint8)
    colors = np.full((4, 4, 3), 210, np.uint8)
    painted = overlay(image, colors, [[16, 0, 20], [0, 16, 30]], alpha=0.5)
    expected = image.copy()
    expected[30:94, 20:84] = 110
    np.testing.assert_array_equal(painted, expected)


def test_overlay_of_a_half_pixel_shift_is_not_off_by_one() -> None:
    """One cell a pixel: the overlay is the colours themselves, unmoved."""
    colors = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    image = np.zeros((9, 14, 3), np.uint8)
    np.testing.assert_array_equal(overlay(image, colors, [[1, 0, 0], [0, 1, 0]], alpha=1.0), colors)
    shifted = overlay(image, colors, [[1, 0, 2], [0, 1, 1]], alpha=1.0)
    np.testing.assert_array_equal(shifted[1:, 2:], colors[:-1, :-2])
    assert not shifted[0].any() and not shifted[:, :2].any()


def test_overlay_leaves_its_arguments_alone_and_refuses_a_map_without_inverse() -> None:
    image, colors = np.full((32, 32, 3), 9, np.uint8), np.full((2, 2, 3), 200, np.uint8)
    affine = np.array([[16.0, 0, 0], [0, 16, 0]])
    affine.flags.writeable = False
    overlay(image, colors, affine, alpha=0.5)
    assert (image == 9).all() and (colors == 200).all()
    with pytest.raises(ValueError, match="invertible"):
        overlay(image, colors, np.zeros((2, 3)))


def test_side_by_side_scales_to_the_first_height() -> None:
    left, right = np.zeros((20, 30, 3), np.uint8), np.full((10, 8, 3), 100, np.uint8)
    image = side_by_side([left, right], gap=2)
    assert image.shape == (20, 30 + 2 + 16, 3)
    assert (image[:, :30] == 0).all() and (image[:, 30:32] == 255).all() and (image[:, 32:] == 100).all()
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])


def test_contact_sheet_places_images_row_by_row() -> None:
    images = [np.full((10, 16, 3), value, np.uint8) for value in (1, 2, 3)]
    sheet = contact_sheet(images, 2, gap=4)
    assert sheet.shape == (2 * 14 + 4, 2 * 20 + 4, 3)
    assert (sheet[4:14, 4:20] == 1).all() and (sheet[4:14, 24:40] == 2).all() and (sheet[18:28, 4:20] == 3).all()
    assert (sheet[18:28, 24:40] == 255).all()


def test_captions_are_drawn_under_the_images() -> None:
    images = [np.full((30, 80, 3), 50, np.uint8)] * 2
    sheet = contact_sheet(images, 2, captions=["t 0.0 s", ""])
    assert (sheet[4:34, 4:84] == 50).all()
    assert (sheet[34:, :84] < 128).any() and (sheet[34:, 88:] == 255).all()
    with pytest.raises(ValueError, match="one for each"):
        contact_sheet(images, 2, captions=["only one"])
    with pytest.raises(ValueError, match="one column"):
        contact_sheet(images, 0)

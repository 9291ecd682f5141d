"""Masks and joints to soft labels and back."""

from collections.abc import Mapping

import numpy as np
import pytest

from rvm_core.tracking.labels import joints_to_labels, labels_to_joints, labels_to_mask, mask_to_labels

LABELS = 1e-5
"""Between the release's soft labels and ours: both are float32."""
PIXELS = 1e-3
"""Between its joints and ours, in pixels of a few hundred."""

Golden = Mapping[str, np.ndarray]

GRID = (12, 16)
PROCESSING = (192, 256)
"""Of the reference: patches of 16 pixels."""


def test_first_mask_is_that_of_the_release(golden: Golden) -> None:
    labels, values = mask_to_labels(golden["mask"][0], processing_size=PROCESSING, grid=GRID)
    np.testing.assert_array_equal(values, golden["label_map"])
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, golden["heatmap"], atol=LABELS)


def test_predicted_masks_are_those_of_the_release(golden: Golden) -> None:
    for soft, expected in zip(golden["soft_labels"], golden["pred_mask"], strict=True):
        mask = labels_to_mask(soft, golden["label_map"], processing_size=PROCESSING, size=expected.shape)
        assert mask.dtype == expected.dtype
        np.testing.assert_array_equal(mask, expected)


def test_joints_are_those_of_the_release(golden: Golden) -> None:
    size = golden["mask"].shape[1:]
    heat = joints_to_labels(golden["pose"], size=size, grid=GRID)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, golden["pose_heatmap"], atol=LABELS)
    for soft, expected, visible in zip(golden["pose_soft"], golden["pose_coords"], golden["pose_visible"], strict=True):
        joints = labels_to_joints(soft, size=size)
        assert joints.dtype == np.float32
        np.testing.assert_allclose(joints, expected, atol=PIXELS)
        np.testing.assert_array_equal((joints != -1).all(axis=-1), visible)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_labels_of_any_value_come_back(dtype: type) -> None:
    """Also values that do not follow each other, more than four of them, and a size that is no multiple of a patch."""
    values: np.ndarray = np.array([0, 3, 7, 90, 100, 120], dtype)
    mask = np.kron(values.reshape(2, 3), np.ones((50, 40), dtype))
    labels, present = mask_to_labels(mask, processing_size=(64, 96), grid=(4, 6))
    assert labels.shape == (4, 6, 6)
    np.testing.assert_array_equal(present, values)
    back = labels_to_mask(labels, present, processing_size=(64, 96), size=mask.shape)
    assert (back.dtype, back.shape) == (dtype, (100, 120))
    np.testing.assert_array_equal(back, mask)


def test_labels_that_are_missing_in_the_mask_have_no_plane() -> None:
    labels, values = mask_to_labels(np.full((20, 30), 5, np.uint8), processing_size=(32, 48), grid=(2, 3))
    np.testing.assert_array_equal(values, [5])
    np.testing.assert_array_equal(labels, np.ones((2, 3, 1)))


def test_first_of_equal_labels_wins() -> None:
    mask = labels_to_mask(
        np.full((2, 2, 3), 1 / 3, np.float32), np.array([4, 2, 9], np.uint8), processing_size=(32, 32), size=(5, 7)
    )
    np.testing.assert_array_equal(mask, np.full((5, 7), 4))


def test_joint_is_a_gaussian_around_its_cell() -> None:
    """Half a cell wide, on four by four cells, highest at the corner nearest to the joint."""
    labels = joints_to_labels(np.array([[102.0, 38.0]]), size=(80, 160), grid=(8, 16))
    assert labels.shape == (8, 16, 2)
    rows, columns = np.nonzero(labels[..., 1])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 8, 11)
    assert labels[4, 10, 1] == 1
    np.testing.assert_allclose(labels[4, 11, 1], np.exp(-2), atol=LABELS)
    np.testing.assert_allclose(labels[3, 9, 1], np.exp(-4), atol=LABELS)
    np.testing.assert_array_equal(labels[..., 0], labels[..., 1] == 0)


@pytest.mark.parametrize("joint", [(-40.0, 40.0), (80.0, 500.0), (-1000.0, -1000.0), (260.0, 40.0)])
def test_joint_outside_of_the_image_is_empty(joint: tuple[float, float]) -> None:
    labels = joints_to_labels(np.array([joint, (80.0, 40.0)]), size=(80, 160), grid=(8, 16))
    assert not labels[..., 1].any()
    joints = labels_to_joints(labels, size=(80, 160))
    np.testing.assert_array_equal(joints[0], [-1, -1])
    assert (joints[1] >= 0).all()


def test_joint_at_the_border_is_cut() -> None:
    labels = joints_to_labels(np.array([(0.0, 40.0), (159.0, 40.0)]), size=(80, 160), grid=(8, 16))
    assert np.flatnonzero(labels[..., 1].any(axis=0)).tolist() == [0, 1]
    assert np.flatnonzero(labels[..., 2].any(axis=0)).tolist() == [14, 15]


def test_position_is_the_mean_of_the_best_five() -> None:
    plane = np.zeros((4, 6), np.float32)
    plane[1, 1:6] = [4, 3, 2, 1, 0.5]
    plane[3, 0] = 0.25
    labels = np.stack([np.zeros_like(plane), plane], axis=-1)
    x = (4 * 1 + 3 * 2 + 2 * 3 + 1 * 4 + 0.5 * 5) / 10.5
    np.testing.assert_allclose(labels_to_joints(labels, size=(40, 120)), [[x * 20, 10]], atol=PIXELS)

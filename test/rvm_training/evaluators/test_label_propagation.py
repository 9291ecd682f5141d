"""Propagation and its scores are those of the release, on the same inputs; and a stream needs no past frames."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rvm_core.tracking.labels import joints_to_labels, labels_to_joints, labels_to_mask, mask_to_labels
from rvm_core.tracking.propagation import TrackingConfig, propagate_labels
from rvm_training.evaluators.boundary import boundary_f
from rvm_training.evaluators.davis2017 import frame_scores
from rvm_training.evaluators.jhmdb import THRESHOLDS, joint_hits, pck
from rvm_training.evaluators.label_propagation import propagate_stream
from rvm_training.evaluators.overlap import mask_iou
from rvm_training.evaluators.vip import confusion

LABELS = 1e-5
"""Between soft labels in float32."""
PIXELS = 1e-3
"""Between joints in pixels of a few hundred."""
ROUNDING = 1e-12
"""Between means of the same float64 values in another order."""
PROCESSING = (192, 256)
GRID = (12, 16)
SIZE = (150, 200)

Golden = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def golden() -> Golden:
    """What the release's own code computes; test/data/README.md says how."""
    with np.load(Path(__file__).parents[2] / "data" / "label_propagation.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def config(golden: Golden) -> TrackingConfig:
    return TrackingConfig(
        n_context=int(golden["n_context"]), top_k=int(golden["topk"]), temperature=float(golden["temperature"])
    )


def stream(features: np.ndarray) -> Iterator[Tensor]:
    """Features (T, h, w, D) as tokens, with a [CLS] that must not count."""
    for frame in torch.from_numpy(features).flatten(1, 2):
        yield torch.cat([torch.full_like(frame[:1], 7.0), frame])


def test_j_and_f_are_those_of_the_release(golden: Golden) -> None:
    truth, found = golden["mask"], golden["pred_mask"]
    scores = [frame_scores(t, p, [1, 2, 3]) for t, p in zip(truth, found, strict=True)]
    j, f = np.array(scores).transpose(1, 2, 0)
    assert (j == golden["J"]).all() and (f == golden["F"]).all()
    assert boundary_f(truth[1] == 2, found[1] == 2) == golden["F"][1, 1]
    assert mask_iou(truth[1] == 2, found[1] == 2) == golden["J"][1, 1]


def test_the_confusion_matrix_is_that_of_the_release(golden: Golden) -> None:
    counts = sum(confusion(t, p) for t, p in zip(golden["mask"], golden["pred_mask"], strict=True))
    np.testing.assert_array_equal(counts, golden["miou_hist"])


def test_pck_is_that_of_the_release(golden: Golden) -> None:
    found, counted = joint_hits(golden["gt_pose"], golden["pose_coords"])
    assert (counted == golden["pose_visible"][1:].sum(axis=0)).all()
    values = [100 * pck(found, counted)[f"pck_{threshold}"] for threshold in THRESHOLDS]
    assert values == pytest.approx(golden["pck"].tolist(), rel=ROUNDING)


def test_masks_by_the_stream_are_those_of_the_release(golden: Golden, config: TrackingConfig) -> None:
    labels, values = mask_to_labels(golden["mask"][0], processing_size=PROCESSING, grid=GRID)
    soft = np.stack(list(propagate_stream(stream(golden["features"]), labels, config)))
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, golden["soft_labels"], rtol=0, atol=LABELS)
    found = [labels_to_mask(frame, values, processing_size=PROCESSING, size=SIZE) for frame in soft]
    assert (np.stack(found) == golden["pred_mask"]).all()


def test_joints_by_the_stream_are_those_of_the_release(golden: Golden, config: TrackingConfig) -> None:
    labels = joints_to_labels(golden["pose"], size=SIZE, grid=GRID)
    soft = np.stack(list(propagate_stream(stream(golden["features"]), labels, config)))
    np.testing.assert_allclose(soft, golden["pose_soft"], rtol=0, atol=LABELS)
    # Where cells are equally good, a rounding in the soft labels decides which five of them make a joint, so positions
    # are compared from the same soft labels.
    joints = np.stack([labels_to_joints(frame, size=SIZE) for frame in golden["pose_soft"]])
    np.testing.assert_allclose(joints, golden["pose_coords"], rtol=0, atol=PIXELS)
    joints = np.stack([labels_to_joints(frame, size=SIZE) for frame in soft])
    found, counted = joint_hits(golden["gt_pose"], joints)
    values = [100 * pck(found, counted)[f"pck_{threshold}"] for threshold in THRESHOLDS]
    assert values == pytest.approx(golden["pck"].tolist(), rel=ROUNDING)


@pytest.mark.parametrize("settings", [{"radius": 3.0}, {"n_context": 1, "top_k": 2}, {"top_k": 1}])
def test_the_stream_equals_the_whole_clip(golden: Golden, settings: Mapping[str, float]) -> None:
    # The first frame is in the context with two kinds of labels; top_k must not cut between such equals.
    config = TrackingConfig(**settings)  # type: ignore[arg-type]
    features, labels = torch.from_numpy(golden["features"]), torch.from_numpy(golden["heatmap"])
    whole = propagate_labels(features, labels, **settings)  # type: ignore[arg-type]
    soft = np.stack(list(propagate_stream(stream(golden["features"]), golden["heatmap"], config)))
    np.testing.assert_allclose(soft, whole.numpy(), rtol=0, atol=LABELS)


def test_a_frame_is_given_up_before_the_next_is_asked_for(golden: Golden) -> None:
    past: list[weakref.ref[Tensor]] = []

    def watched() -> Iterator[Tensor]:
        for tokens in stream(golden["features"]):
            # The frame before this one may still be bound, those before it may not.
            assert [frame() is None for frame in past[:-1]] == [True] * max(0, len(past) - 1)
            past.append(weakref.ref(tokens))
            yield tokens
            del tokens

    assert len(list(propagate_stream(watched(), golden["heatmap"], TrackingConfig(n_context=2)))) == 8

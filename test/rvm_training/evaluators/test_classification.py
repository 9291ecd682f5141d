"""Top-1 accuracy and the average of clips on hand-made cases."""

import math

import numpy as np
import pytest

from rvm_training.evaluators.classification import average_clips, top_1


def test_share_of_right_videos() -> None:
    scores = [[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.2], [1.0, 2.0, 0.0]]
    assert top_1(scores, [1, 0, 1, 1]) == 0.75


def test_a_constant_is_right_for_the_first_class_only() -> None:
    assert top_1(np.zeros((4, 4)), [0, 1, 2, 3]) == 0.25


def test_clips_are_averaged_as_probabilities() -> None:
    """One sure clip outweighs two that hardly lean the other way; the sum of logits would not."""
    logits = np.log([[[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]])
    averaged = average_clips(logits)
    assert averaged[0] == pytest.approx([1.7 / 3, 1.3 / 3])
    assert top_1(averaged, [0]) == 1.0
    assert average_clips([[[1e4, 0.0]]])[0] == pytest.approx([1.0, 0.0])


def test_no_videos() -> None:
    assert math.isnan(top_1(np.zeros((0, 3)), np.zeros(0, np.int64)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(3,\)"):
        top_1(np.zeros((2, 3)), [0, 1, 2])
    with pytest.raises(ValueError, match="labels from 0 to 2, got 0 to 3"):
        top_1(np.zeros((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="2 scores that are not"):
        top_1([[math.nan, math.nan]], [0])
    with pytest.raises(ValueError, match=r"of one clip or more, got \(2, 0, 3\)"):
        average_clips(np.zeros((2, 0, 3)))

"""What a picture of reconstructions shows where."""

from __future__ import annotations

import numpy as np

from rvm_training.pretrain_batch import ClipBatch, PretrainBatch
from rvm_training.train_picture import draw_reconstructions


def test_source_masked_target_reconstruction_and_truth_stand_side_by_side() -> None:
    source = np.zeros((2, 3, 32, 32, 3), np.uint8)
    source[:, -1] = 10
    target = np.full((2, 2, 32, 32, 3), 200, np.uint8)
    visible = np.asarray([[[0], [1]], [[3], [1]]], np.int32)
    pixels = np.full((2, 2, 3, 32, 32), 0.5, np.float32)
    pixels[0, 0, 0], pixels[0, 0, 1], pixels[1, 0, 2] = 2.0, -1.0, np.nan
    picture = draw_reconstructions(PretrainBatch(source, target, np.zeros((2, 2)), visible), pixels)
    assert picture.shape == (2 * 32 + 4, 4 * 32 + 3 * 4, 3) and picture.dtype == np.uint8
    first, second = picture[:32], picture[36:]
    assert (picture[32:36] == 255).all() and (picture[:, 32:36] == 255).all()
    assert (first[:, :32] == 10).all()
    masked = first[:, 36:68]
    assert (masked[:16, :16] == 200).all() and (masked[16:] == 110).all() and (masked[:16, 16:] == 110).all()
    assert (second[:, 36:68][16:, 16:] == 200).all() and (second[:, 36:68][:16, :16] == 110).all()
    assert (first[:, 72:104] == (255, 0, 128)).all()
    assert (second[:, 72:104] == (128, 128, 0)).all()
    assert (picture[:32, 108:] == 200).all()


def test_clips_show_their_first_and_last_frame() -> None:
    frames = np.arange(4, dtype=np.uint8).reshape(1, 4, 1, 1, 1) * np.full((1, 4, 32, 32, 3), 20, np.uint8)
    pixels = np.zeros((1, 4, 3, 32, 32), np.float32)
    pixels[:, 3] = 1
    tubes = draw_reconstructions(ClipBatch(frames, np.asarray([[1]])), pixels)
    assert tubes.shape == (32, 6 * 32 + 5 * 4, 3)
    first, _, _, last, painted, truth = (tubes[:, begin : begin + 32] for begin in range(0, 216, 36))
    for shown, level in ((first, 0), (last, 60)):
        assert (shown[:16, 16:] == level).all() and (shown[16:] == 110).all() and (shown[:16, :16] == 110).all()
    assert (painted == 255).all() and (truth == 60).all()
    # Of tubelets, place 1 is in the first pair of frames, place 4 + 2 in the second.
    tubelets = draw_reconstructions(ClipBatch(frames, np.asarray([[1, 6]])), pixels, mask="tubelets")
    first, last = tubelets[:, :32], tubelets[:, 108:140]
    assert (first[:16, 16:] == 0).all() and (first[16:] == 110).all()
    assert (last[16:, :16] == 60).all() and (last[:16] == 110).all() and (last[16:, 16:] == 110).all()

"""4DS with windows of another length than its own."""

from __future__ import annotations

import pytest
import torch

from rvm_core.config import FourDSConfig
from rvm_core.fourds import FourDS

CONFIG = FourDSConfig(width=32, depth=2, heads=2, mlp_width=48, position_grid=(4, 2, 2))


def test_own_length_gives_the_same_features() -> None:
    model = FourDS(CONFIG).eval()
    clip = torch.rand(1, 8, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.with_frames(8)(clip), model(clip))


def test_other_lengths_share_the_weights_and_resize_the_positions() -> None:
    model = FourDS(CONFIG).eval()
    longer = model.with_frames(20)
    assert longer.config.frames == 20
    assert longer.blocks is model.blocks and longer.patch_embedding is model.patch_embedding
    assert longer.position_table.shape == (10, 2, 2, 32)
    assert not longer.position_table.is_meta
    with torch.inference_mode():
        features = longer(torch.rand(2, 20, 3, 32, 48))
    assert features.shape == (2, 20, 6, 32) and bool(torch.isfinite(features).all())
    # Nothing is known of time but the positions: where these are the same in every tube, twice as many still are.
    with torch.no_grad():
        model.position_table.copy_(model.position_table[:1].expand_as(model.position_table))
    torch.testing.assert_close(model.with_frames(16).position_table[5], model.position_table[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("frames", [0, 1, 7])
def test_lengths_that_are_no_whole_tubes(frames: int) -> None:
    with pytest.raises(ValueError, match=f"even number of frames, got {frames}"):
        FourDS(CONFIG).with_frames(frames)

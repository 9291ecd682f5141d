"""4DS of all sizes as masked autoencoders: 95 % of the tubelets hidden at random, decoded by the last blocks.

command:   rvm-train pretrain --config 4ds_b16 --out runs/4ds_b16 --resume     (on every host of the slice)
hardware:  a slice of TPUs
cost:      not known; `rvm-train plan --config 4ds_b16 --topology v6e:16x16`
result:    not run

Tubelets, ratio, sizes of the model, rate, warm-up, decay and betas are the paper's (arXiv 2412.15212). The number of
blocks that decode, stride, batch and steps are ours.
"""

from __future__ import annotations

from rvm_core.config import FOURDS_SIZES
from rvm_training.configs import PAPER_DATA
from rvm_training.mae_config import TubeletMAEConfig
from rvm_training.pretrain_config import ClipSamplingConfig, OptimizerConfig, PretrainConfig

CONFIGS = {
    name: PretrainConfig(
        objective="4ds_mae",
        model=TubeletMAEConfig(encoder=encoder),
        sampling=ClipSamplingConfig(frames=encoder.frames, mask="tubelets", mask_ratio=0.95),
        optimizer=OptimizerConfig(steps=1_000_000),
        data=PAPER_DATA,
        batch_size=2048,
        checkpoint_every=5000,
        log_every=100,
        picture_every=10_000,
    )
    for name, encoder in FOURDS_SIZES.items()
}

"""TRecViT-B as a masked autoencoder: the same 90 % of the patches hidden in all frames, L2 over all pixels.

command:   rvm-train pretrain --config trecvit_b16 --out runs/trecvit_b16 --resume     (on every host of the slice)
hardware:  a slice of TPUs
cost:      not known; `rvm-train plan --config trecvit_b16 --topology v6e:16x16`
result:    not run; the released weights have 53.9 on SSv2 and 46.0 on Kinetics-400, frozen

Tubes, ratio, size of the model and loss are the paper's (arXiv 2412.14294). Decoder, frames, stride, batch and steps
are ours; rate, warm-up, decay and betas are those of 4DS.
"""

from __future__ import annotations

from rvm_core.config import TRecViTConfig
from rvm_training.configs import PAPER_DATA
from rvm_training.mae_config import TubeMAEConfig
from rvm_training.pretrain_config import ClipSamplingConfig, OptimizerConfig, PretrainConfig

CONFIGS = {
    "trecvit_b16": PretrainConfig(
        objective="trecvit_mae",
        model=TubeMAEConfig(encoder=TRecViTConfig.named("trecvit_b16")),
        sampling=ClipSamplingConfig(frames=16, mask="tubes", mask_ratio=0.9),
        optimizer=OptimizerConfig(steps=1_000_000),
        data=PAPER_DATA,
        batch_size=1024,
        checkpoint_every=5000,
        log_every=100,
        picture_every=10_000,
    )
}

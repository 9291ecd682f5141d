"""RVM-L, 375 M parameters without the decoder, with the settings of the paper.

command:   rvm-train pretrain --config rvm_l16 --out runs/rvm_l16 --resume     (on every host of the slice)
hardware:  the paper's, 256 TPU v6e cores of 32 GB (v6e:16x16)
cost:      2.0 billion examples, 1,000,000 steps of 2048; hours: `rvm-train plan --size L --topology v6e:16x16`
result:    not run

Rate, warm-up, decay and betas are those of 4DS, as RVM's own are not public.
"""

from __future__ import annotations

from rvm_core.config import RVMConfig
from rvm_training.configs import PAPER_DATA
from rvm_training.pretrain_config import OptimizerConfig, PretrainConfig

CONFIGS = {
    "rvm_l16": PretrainConfig(
        model=RVMConfig.named("rvm_l16", decoder=True),
        optimizer=OptimizerConfig(steps=1_000_000),
        data=PAPER_DATA,
        batch_size=2048,
        checkpoint_every=5000,
        log_every=100,
        picture_every=10_000,
    )
}

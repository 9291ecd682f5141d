"""The small model that ships: it runs on two cores of a CPU.

command:   rvm-train pretrain --config rvm_nano --out runs/rvm_nano
hardware:  one GPU, or a CPU
cost:      not measured yet
result:    not run
"""

from __future__ import annotations

from rvm_core.config import DecoderConfig, RVMConfig
from rvm_training.pretrain_config import DataConfig, OptimizerConfig, PretrainConfig, SamplingConfig, SourceConfig

CONFIGS = {
    "rvm_nano": PretrainConfig(
        model=RVMConfig(
            width=128,
            encoder_depth=6,
            encoder_heads=4,
            encoder_mlp_width=512,
            core_depth=2,
            core_heads=4,
            core_mlp_width=512,
            decoder=DecoderConfig(width=128, depth=3, num_heads=4, mlp_width=512),
        ),
        sampling=SamplingConfig(image_size=128),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, steps=2000, clip_norm=1.0),
        data=DataConfig(
            sources=(
                SourceConfig(name="scenes", path="data/nano/scenes", weight=2.0),
                SourceConfig(name="videos", path="data/nano/videos", weight=1.0),
            ),
            held_out=(SourceConfig(name="scenes", path="data/nano/held_out"),),
        ),
        batch_size=32,
        compute_dtype="float32",
        remat=False,
        scan_layers=False,
        eval_every=100,
        checkpoint_every=100,
        log_every=10,
        picture_every=250,
    )
}

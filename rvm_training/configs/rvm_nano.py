"""The small model that ships (MODEL_CARD.md): it runs on two cores of a CPU.

command:   rvm-train pretrain --config rvm_nano --platform cpu --out runs/rvm_nano
hardware:  2 cores of an AMD EPYC with AVX-512, without an accelerator
cost:      3,200 steps of 16 examples, 67 minutes
result:    mean square error of held-out scenes 0.0230; that of a mean colour is 0.044, of the last source frame 0.036
"""

from __future__ import annotations

from rvm_core.config import RVMConfig
from rvm_training.pretrain_config import DataConfig, OptimizerConfig, PretrainConfig, SamplingConfig, SourceConfig

CONFIGS = {
    "rvm_nano": PretrainConfig(
        model=RVMConfig.named("rvm_nano", decoder=True),
        # Frames cropped alike and near each other: what the paper does takes more steps than a CPU has time for.
        sampling=SamplingConfig(image_size=128, crops="clip", min_gap=1, max_gap=16, mask_ratio=0.75),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, steps=3200, clip_norm=1.0),
        data=DataConfig(
            sources=(
                SourceConfig(name="scenes", path="data/nano/scenes", weight=4.0),
                SourceConfig(name="videos", path="data/nano/videos", weight=1.0),
            ),
            held_out=(SourceConfig(name="scenes", path="data/nano/held_out"),),
        ),
        batch_size=16,
        compute_dtype="float32",
        remat=False,
        scan_layers=False,
        eval_every=100,
        checkpoint_every=100,
        log_every=10,
        picture_every=200,
    )
}

"""The image baseline: RVM-S that learns from one source frame and has no memory, as SiamMAE (arXiv 2305.14344) learns.

command:   rvm-train pretrain --config rvm_s16_image --out runs/rvm_s16_image --resume     (on every host of the slice)
hardware:  as rvm_s16
cost:      less than rvm_s16, of whose four source frames it encodes one
result:    not run

Everything else is as in rvm_s16, so that what the memory is worth can be read off the two. Its state is reset at every
frame wherever it runs.
"""

from __future__ import annotations

from dataclasses import replace

from rvm_core.config import RVMConfig
from rvm_training.configs.rvm_s16 import CONFIGS as RECURRENT

_BASE = RECURRENT["rvm_s16"]

CONFIGS = {
    "rvm_s16_image": replace(
        _BASE,
        model=RVMConfig.named("rvm_s16_image", decoder=True),
        sampling=replace(_BASE.rvm_sampling, source_frames=1),
    )
}

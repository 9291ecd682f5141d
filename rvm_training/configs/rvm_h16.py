"""RVM-H, 743 M parameters without the decoder, with the settings of the paper.

command:   rvm-train pretrain --config rvm_h16 --out runs/rvm_h16 --resume     (on every host of the slice)
hardware:  the paper's, 256 TPU v6e cores of 32 GB (v6e:16x16)
cost:      4.1 billion examples, 2,000,000 steps of 2048; hours: `rvm-train plan --size H --topology v6e:16x16`
result:    not run

Rate, warm-up, decay and betas are those of 4DS, as RVM's own are not public.
"""

from __future__ import annotations

from rvm_training.configs import paper_config

CONFIGS = {"rvm_h16": paper_config("rvm_h16", steps=2_000_000)}

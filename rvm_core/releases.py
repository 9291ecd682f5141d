"""The released checkpoints that can be fetched by name."""

from __future__ import annotations

from dataclasses import dataclass

_RVM_AND_4DS = "https://storage.googleapis.com/representations4d/checkpoints/"
_TRECVIT = "https://storage.googleapis.com/trecvit/model_checkpoints/"
_TRECVIT_MAE = "https://storage.googleapis.com/dm-perception-test/trecvit/"


@dataclass(frozen=True)
class Release:
    """A released checkpoint, in the release's .npz."""

    url: str
    file_bytes: int
    """As published, rounded; where nothing is published, four for each parameter."""
    model: str = ""
    """Name of the model's size; empty: that of the release."""
    tolerance: float = 0.02
    """How much the size may differ, as a share."""

    @property
    def allowed_bytes(self) -> range:
        slack = int(self.file_bytes * self.tolerance)
        return range(self.file_bytes - slack, self.file_bytes + slack + 1)


RELEASES: dict[str, Release] = {
    "rvm_s16": Release(_RVM_AND_4DS + "pretrain_rvm_small16_256_204031069.npz", 270_000_000),
    "rvm_b16": Release(_RVM_AND_4DS + "pretrain_rvm_base16_256_203916225.npz", 641_000_000),
    "rvm_l16": Release(_RVM_AND_4DS + "pretrain_rvm_large16_256_202497301.npz", 1_636_000_000),
    "rvm_h16": Release(_RVM_AND_4DS + "pretrain_rvm_huge16_256_203854202.npz", 3_108_000_000),
    "trecvit_b16_k400": Release(_TRECVIT + "trecvit_B_k400.npz", 547_000_000, "trecvit_b16", 0.05),
    # It may hold a decoder, of which nothing is published.
    "trecvit_b16_mae": Release(_TRECVIT_MAE + "trecvit_B_mae.npz", 533_000_000, "trecvit_b16", 0.5),
    "4ds_b16": Release(_RVM_AND_4DS + "scaling4d_dist_b.npz", 350_000_000),
    "4ds_e16": Release(_RVM_AND_4DS + "scaling4d_e.npz", 15_240_000_000),
    "4ds_b16_depth": Release(_RVM_AND_4DS + "scaling4d_dist_b_depth.npz", 420_000_000, "4ds_b16"),
}
"""By name: RVM with its decoder; TRecViT as classifier of Kinetics-400 and from masked pretraining; the clip encoder
4DS alone and with its readout of depth on ScanNet."""

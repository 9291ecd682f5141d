"""What an ablation measures of a pretrained model: reconstruction, tracking in synthetic scenes, and seen motion.

Shapes: B batch, S source frames, N patch tokens of a frame, D width; tokens carry [CLS] first, so N+1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.config import PATCH_SIZE
from rvm_core.model import RVM
from rvm_core.tracking import FeatureTracker
from rvm_training import objective
from rvm_training.baselines import pixel_tokens
from rvm_training.data.moving_noise import NoiseConfig
from rvm_training.data.scenes import SceneConfig
from rvm_training.eval_cli import FIRST_SEED
from rvm_training.eval_report import make_report
from rvm_training.evaluation.frame_encoder import FrameEncoder, model_step
from rvm_training.evaluators.noise_square import NoiseSquareBenchmark
from rvm_training.evaluators.synthetic import Evaluation, Method, evaluate
from rvm_training.objective import PretrainBatch
from rvm_training.pretrain_model import SelfAttentionAggregator

NOISE_GROUPS = 1
"""Groups of clips that the probe of moving noise learns from."""
NOISE_CLIPS = 4
"""Clips of moving noise that are measured."""

UInt8Array = npt.NDArray[np.uint8]
Scores = dict[str, float]


def model_encoder(name: str, model: RVM, *, source_frames: int, random: bool = False) -> FrameEncoder:
    """The features of a pretrained model: a recurrent one steps; one with self-attention looks at the newest frames.

    source_frames: how many frames self-attention joins, as many as it was trained with; the features are those of the
    last of them, so that no frame is known beforehand.
    """
    step = _attending(model, source_frames) if isinstance(model.core, SelfAttentionAggregator) else model_step(model)
    return FrameEncoder(name, model.config.width, step, random=random)


def pixel_encoder() -> FrameEncoder:
    """Raw pixels of patches in the place of features."""
    return FrameEncoder("raw pixels", 3 * PATCH_SIZE**2, lambda frame, state: (pixel_tokens(frame), state))


def _attending(model: RVM, source_frames: int) -> Callable[[UInt8Array, Any], tuple[Tensor, Any]]:
    @torch.inference_mode()
    def step(frame: UInt8Array, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        encoded = (*(state or ()), model.encoder(_pixels(frame)))[-source_frames:]
        return model.core.unroll(torch.stack(encoded, dim=1))[0, -1], encoded

    return step


def _pixels(frame: UInt8Array) -> Tensor:
    return objective.to_unit(torch.from_numpy(frame)[None])


@torch.inference_mode()
def reconstruction_loss(model: RVM, batches: Sequence[PretrainBatch]) -> float:
    """Mean of the objective over batches of numpy arrays, of equal size."""
    return float(np.mean([float(objective.loss(model, _tensors(batch))) for batch in batches]))


def copy_loss(batches: Sequence[PretrainBatch]) -> float:
    """The same of a model that says of every target that it is the last source frame."""
    losses = []
    for batch in map(_tensors, batches):
        still = objective.to_unit(batch.source[:, -1:])
        losses.append(float((objective.to_unit(batch.target) - still).square().mean()))
    return float(np.mean(losses))


def _tensors(batch: PretrainBatch) -> PretrainBatch:
    return PretrainBatch(*(torch.from_numpy(np.asarray(array)) for array in batch))


def tracking_scores(encoder: FrameEncoder, *, image_size: int, scenes: int, frames: int) -> Scores:
    """Points, boxes and masks followed by the features alone through held-out synthetic scenes; shares in [0, 1]."""
    tracker = FeatureTracker(grid=(image_size // PATCH_SIZE, image_size // PATCH_SIZE))
    config = SceneConfig(height=image_size, width=image_size, num_frames=frames)
    evaluation = Evaluation(config, [encoder.name])
    method = Method(encoder.name, tracker, encoder.step, lambda: None)
    evaluate([method], evaluation, range(FIRST_SEED, FIRST_SEED + scenes), lambda text, done: None)
    row = make_report(evaluation, {}, {}, interrupted=False)["rows"][0]
    return {key: float("nan") if row[key] is None else row[key] for key in ("average_jaccard", "box_iou", "mask_iou")}


def noise_scores(encoder: FrameEncoder, *, image_size: int) -> Scores:
    """A square of noise that only its motion gives away: IoU of its clusters, and area under the ROC of a probe."""
    config = NoiseConfig(size=image_size, square=image_size // 2)
    benchmark = NoiseSquareBenchmark(encoder, config, clips=NOISE_CLIPS, groups=NOISE_GROUPS)
    results = [
        benchmark.evaluate(video, pictures=False, advance=lambda share: None).summary for video in benchmark.videos()
    ]
    return {f"noise_{key}": float(np.mean([result[key] for result in results])) for key in ("kmeans", "auc")}

"""Losses of the heads, after the protocol of 4DS (arXiv 2412.15212).

Shapes: B batch, T frames, Q tracks. Every loss is a scalar: the mean over what counts, zero where nothing does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.heads import PointOutput, Pose
from rvm_training.evaluators.depth import MAX_DEPTH, MIN_DEPTH


@dataclass(frozen=True, kw_only=True)
class PointLossConfig:
    """Weights of `point_loss`. Raises `ValueError` at construction for a negative one."""

    position: float = 100.0
    """Weight of the Huber loss of the position."""
    visible: float = 0.1
    """Weight of the cross-entropy of the visibility."""
    certainty: float = 0.1
    """Weight of the cross-entropy of the certainty."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from square to straight, in shares of the image. The protocol names none; with 1, the
    default of the usual libraries, it is square throughout."""
    certain_within: float = 6 / 256
    """A position is to be called certain if it is nearer than this, in shares of the image (as in TAPIR)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"PointLossConfig.{name} must not be negative, got {value}")
        if not self.huber_delta:
            raise ValueError("PointLossConfig.huber_delta must be positive, got 0")


def point_loss(
    output: PointOutput,
    positions: Tensor,
    visible: Tensor,
    *,
    valid: Tensor | None = None,
    config: PointLossConfig | None = None,
) -> Tensor:
    """Of a `PointHead`'s output (B, T, Q, ...).

    positions (B, T, Q, 2): the true ones in shares of the image, looked at only where visible; visible (B, T, Q) bool;
    valid (B, T, Q) bool: what counts at all, None for everything. Positions and certainties count where visible.
    """
    config = config or PointLossConfig()
    valid = torch.ones_like(visible) if valid is None else valid
    seen = visible & valid
    positions = torch.where(seen.unsqueeze(-1), positions, output.positions.detach())
    huber = F.huber_loss(output.positions, positions, reduction="none", delta=config.huber_delta).sum(-1)
    near = (output.positions.detach() - positions).norm(dim=-1) < config.certain_within
    of_visible = _cross_entropy(output.logits_visible, visible)
    of_certainty = _cross_entropy(output.logits_certainty, near)
    return (
        config.position * _mean(huber, seen)
        + config.visible * _mean(of_visible, valid)
        + config.certainty * _mean(of_certainty, seen)
    )


def box_loss(boxes: Tensor, truth: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Mean square of the difference of boxes (B, T, Q, 4), over those that are valid, bool (B, T, Q); None: all."""
    square = (boxes - torch.where(truth.isfinite(), truth, boxes.detach())).square().mean(-1)
    return _mean(square, torch.ones_like(square, dtype=torch.bool) if valid is None else valid)


def depth_loss(log_depth: Tensor, depth: Tensor) -> Tensor:
    """Mean square of the difference of log depths: a `DepthHead`'s output and depth in metres, both (B, T, H, W, 1).

    Pixels whose true depth is not between `MIN_DEPTH` and `MAX_DEPTH`, or not finite, do not count.
    """
    valid = (depth > MIN_DEPTH) & (depth < MAX_DEPTH)
    log_truth = torch.where(valid, depth, torch.ones_like(depth)).log()
    return _mean((log_depth - log_truth).square(), valid)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, classes) with labels (B,) int64."""
    return F.cross_entropy(logits, labels)


def pose_loss(pose: Pose, rotation: Tensor, translation: Tensor) -> Tensor:
    """Mean square of the difference of the 12 numbers of a pose: rotation (B, 3, 3), translation (B, 3)."""
    predicted = torch.cat((pose.rotation, pose.translation.unsqueeze(-1)), dim=-1)
    return F.mse_loss(predicted, torch.cat((rotation, translation.unsqueeze(-1)), dim=-1))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.squeeze(-1)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    kept = torch.where(counts, values, torch.zeros_like(values))
    return kept.sum() / counts.sum().clamp(min=1)

"""What readouts of points and boxes learn: recurrent ones through time, heads of the protocol over windows.

Shapes: B clips, T frames, N+1 tokens with [CLS] first, D width, Q tracks, C coordinates. Truth as in `readouts.clips`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.heads import BoxHead, PointHead, PointOutput
from rvm_core.recurrent_readout import FrameContext, RecurrentReadout, TrackState
from rvm_training.feature_cache import Examples
from rvm_training.losses import PointLossConfig, box_loss, point_loss

OVERLAP = 0.5
"""A box is to be called certain if its IoU with the true one is over this."""
YXYX = [1, 0, 3, 2]
"""The release's box heads say and take corners as (y, x)."""


@dataclass(frozen=True, kw_only=True)
class TrackLossConfig:
    """Weights of the losses of recurrent readouts. Raises `ValueError` at construction for a negative one."""

    points: PointLossConfig = PointLossConfig(huber_delta=6 / 256)
    """Straight beyond 6 pixels of 256: tracks that are lost do not outweigh those that are almost right."""
    certain_cells: float = 0.5
    """A point is to be called certain if it is nearer than so many cells of the grid. (The 6 pixels of 256 of
    `PointLossConfig` are out of reach on a coarse grid; then nothing would ever be called visible.)"""
    overlap: float = 1.0
    """Of boxes: weight of the generalised IoU loss."""

    def __post_init__(self) -> None:
        for name in ("certain_cells", "overlap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrackLossConfig.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrackTargets:
    """What a batch asks for."""

    starts: Tensor
    """int64 (B, Q): the frame of each query; T where there is none."""
    queries: Tensor
    """(B, Q, C): positions there, 0 where there is none."""
    positions: Tensor
    """(B, T, Q, C)."""
    visible: Tensor
    """bool (B, T, Q)."""
    valid: Tensor
    """bool (B, T, Q): what counts, which is after the query only."""


def draw_queries(truth: Mapping[str, Tensor], rng: np.random.Generator) -> TrackTargets:
    """Asks for each track in a random frame of those where it may begin; never in the last."""
    startable = truth["startable"].clone()
    frames = startable.shape[1]
    startable[:, -1] = False
    dice = torch.from_numpy(rng.random(startable.shape, dtype=np.float32)).to(startable.device)
    starts = torch.where(startable, dice, -1.0).argmax(dim=1)
    asked = startable.any(dim=1)
    positions = truth["positions"]
    index = starts[:, None, :, None].expand(-1, 1, -1, positions.shape[-1])
    queries = torch.where(asked.unsqueeze(-1), positions.gather(1, index).squeeze(1), 0.0)
    starts = torch.where(asked, starts, frames)
    after = torch.arange(frames, device=starts.device)[None, :, None] > starts.unsqueeze(1)
    return TrackTargets(
        starts=starts,
        queries=queries,
        positions=positions,
        visible=truth["visible"],
        valid=truth["valid"] & after,
    )


def unroll(
    readout: RecurrentReadout, features: Tensor, targets: TrackTargets, grid: tuple[int, int], truncate: int | None
) -> PointOutput:
    """The readout's output in every frame, (B, T, Q, ...); before the query of a track it means nothing.

    truncate: after so many frames gradients of later ones go no further back; None: they go through all frames.
    """
    batch, frames = features.shape[:2]
    # All frames at once, as much of the work does not depend on the tracks.
    seen = readout.look(features.transpose(0, 1).flatten(0, 1), grid)
    contexts = [FrameContext(*parts) for parts in zip(*(part.split(batch) for part in seen), strict=True)]
    state = readout.start(features[:, 0], targets.queries, grid)
    nothing = state.position.new_zeros(*state.position.shape[:2], 1)
    outputs = [PointOutput(state.position, nothing, nothing)]
    for t in range(1, frames):
        if truncate and t % truncate == 0:
            state = TrackState(*(part.detach() for part in state))
        output, state = readout.advance(contexts[t], state, grid)
        outputs.append(output)
        begins = (targets.starts == t).unsqueeze(-1)
        if bool(begins.any()):
            begun = readout.start(features[:, t], targets.queries, grid)
            state = TrackState(*(torch.where(begins, new, old) for new, old in zip(begun, state, strict=True)))
    return PointOutput(*(torch.stack(parts, dim=1) for parts in zip(*outputs, strict=True)))


def recurrent_loss(
    readout: RecurrentReadout,
    examples: Examples,
    rng: np.random.Generator,
    *,
    grid: tuple[int, int],
    truncate: int | None = None,
    config: TrackLossConfig | None = None,
) -> Tensor:
    """Loss of positions where visible, visibility everywhere and certainty where visible, after random queries."""
    config = config or TrackLossConfig()
    targets = draw_queries(examples.truth, rng)
    output = unroll(readout, examples.features, targets, grid, truncate)
    if readout.config.kind == "points":
        weights = replace(config.points, certain_within=config.certain_cells / max(grid))
        return point_loss(output, targets.positions, targets.visible, valid=targets.valid, config=weights)
    return track_box_loss(output, targets.positions, targets.visible, valid=targets.valid, config=config)


def track_box_loss(
    output: PointOutput, boxes: Tensor, visible: Tensor, *, valid: Tensor, config: TrackLossConfig
) -> Tensor:
    """`point_loss` of both corners together, where certain means a large IoU, plus the generalised IoU loss."""
    seen = visible & valid
    truth = torch.where(seen.unsqueeze(-1), boxes, output.positions.detach())
    weights = config.points
    huber = F.huber_loss(output.positions, truth, reduction="none", delta=weights.huber_delta).sum(-1)
    iou, generalised = box_overlaps(output.positions, truth)
    terms = (
        (weights.position / 2, huber, seen),
        (config.overlap, 1 - generalised, seen),
        (weights.visible, _cross_entropy(output.logits_visible, visible), valid),
        (weights.certainty, _cross_entropy(output.logits_certainty, iou.detach() > OVERLAP), seen),
    )
    total = output.positions.new_zeros(())
    for weight, values, counts in terms:
        total = total + weight * torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)
    return total


def box_overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630), each (...), of boxes (..., 4) in pairs."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = _area(first) + _area(second) - shared
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    around = hull.clamp(min=0).prod(dim=-1)
    iou = shared / union.clamp(min=_TINY)
    return iou, iou - (around - union) / around.clamp(min=_TINY)


def window_point_loss(head: PointHead, examples: Examples, rng: np.random.Generator, *, frames: int) -> Tensor:
    """Of a head of the protocol, over a random window of each batch: queries are of its first frame."""
    window = draw_window(examples, rng, frames)
    asked = window.truth["startable"][:, 0]
    queries = torch.where(asked.unsqueeze(-1), window.truth["positions"][:, 0], 0.0)
    output = head(window.features, queries)
    valid = window.truth["valid"] & asked.unsqueeze(1)
    return point_loss(output, window.truth["positions"], window.truth["visible"], valid=valid)


def window_box_loss(head: BoxHead, examples: Examples, rng: np.random.Generator, *, frames: int) -> Tensor:
    """Of a head of the protocol, over a random window of each batch: queries are of its first frame."""
    window = draw_window(examples, rng, frames)
    asked = window.truth["startable"][:, 0]
    boxes = window.truth["positions"][..., YXYX]
    queries = torch.where(asked.unsqueeze(-1), boxes[:, 0], 0.0)
    valid = window.truth["valid"] & window.truth["visible"] & asked.unsqueeze(1)
    return box_loss(head(window.features, queries), boxes, valid=valid)


def draw_window(examples: Examples, rng: np.random.Generator, frames: int) -> Examples:
    """The same random frames in a row of all clips."""
    start = int(rng.integers(examples.features.shape[1] - frames + 1))
    part = slice(start, start + frames)
    return Examples(
        features=examples.features[:, part], truth={name: values[:, part] for name, values in examples.truth.items()}
    )


_TINY = 1e-9


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.squeeze(-1)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")

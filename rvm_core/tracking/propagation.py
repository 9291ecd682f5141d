"""Label propagation over a memory of features, for a whole clip and frame by frame (protocol of the release).

Shapes: T frames, h rows and w columns of the grid, N = h * w, D width, K labels, k matches.

Each cell takes the labels of its k best matches in the context, weighted by the softmax of similarity / temperature.
The context is the first frame, with the labels given for it, and a queue of the last `n_context` frames with the labels
predicted for them; the queue starts as copies of the first frame, so that this counts n_context + 1 times at first.
Every frame, the first one too, is predicted and enters the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.tracking.matching import Context, FrameKeys, Matches, Workspace


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Settings of training-free tracking; the defaults are the release's.

    Raises `ValueError` for one that makes no sense.
    """

    n_context: int = 20
    """Frames in the queue."""
    top_k: int = 7
    """Matches a cell takes its labels from; the release's 10 for VIP."""
    temperature: float = 0.7
    """Similarities are divided by this before the softmax."""
    radius: float | None = None
    """Cells of the queue at least so far from a cell, in cells, are no match; never applied to the first frame."""

    def __post_init__(self) -> None:
        for name in ("n_context", "top_k", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive or None, got {self.radius}")


def near_cells(height: int, width: int, radius: float, device: torch.device | str = "cpu") -> Tensor:
    """bool (N, N): whether the centres of two cells are less than `radius` cells apart."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([rows, columns], dim=-1).reshape(-1, 2).float()
    return (torch.cdist(cells, cells) < radius).to(device)


def propagate_labels(
    features: Tensor,
    labels: Tensor,
    *,
    n_context: int = 20,
    top_k: int = 7,
    temperature: float = 0.7,
    radius: float | None = None,
) -> Tensor:
    """The labels of every frame of a clip, written down as the protocol says; `LabelPropagator` gives the same, faster.

    Args:
        features: (T, h, w, D), any float dtype.
        labels: (h, w, K) of the first frame.
        n_context, top_k, temperature, radius: see `TrackingConfig`.

    Returns soft labels, float32 (T, h, w, K). Raises `ValueError` for shapes that do not fit or a setting that makes no
    sense.
    """
    if features.ndim != 4 or labels.ndim != 3 or features.shape[1:3] != labels.shape[:2] or not len(features):
        raise ValueError(
            f"expected features (T, h, w, D) and labels (h, w, K) of one grid, got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}"
        )
    TrackingConfig(n_context=n_context, top_k=top_k, temperature=temperature, radius=radius)
    frames = F.normalize(features.flatten(1, 2).float(), dim=-1)
    first = labels.flatten(0, 1).float()
    queue = deque([(frames[0], first)] * n_context, maxlen=n_context)
    near = None if radius is None else near_cells(labels.shape[0], labels.shape[1], radius, features.device)
    predicted = []
    for frame in frames:
        context = [(frames[0], first), *queue]
        predicted.append(propagate_frame(frame, context, top_k=top_k, temperature=temperature, near=near))
        queue.append((frame, predicted[-1]))
    return torch.stack(predicted).unflatten(1, labels.shape[:2])


def propagate_frame(
    frame: Tensor,
    context: Sequence[tuple[Tensor, Tensor]],
    *,
    top_k: int = 7,
    temperature: float = 0.7,
    near: Tensor | None = None,
) -> Tensor:
    """The labels of one frame, float32 (N, K), as the protocol says.

    Args:
        frame: float32 (N, D), L2-normalised, as the features of the context.
        context: features (N, D) and labels (N, K) of the first frame, then of those in the queue.
        top_k, temperature: see `TrackingConfig`.
        near: bool (N, N): which cells of each frame in the queue each cell may be matched with; None: all.
    """
    affinity = frame @ torch.cat([keys for keys, _ in context]).T / temperature
    if near is not None:
        affinity[:, len(near) :].masked_fill_(~near.repeat(1, len(context) - 1), -torch.inf)
    score, index = affinity.topk(min(top_k, affinity.shape[1]))
    weight = score.softmax(-1)
    labels = torch.cat([labels for _, labels in context])
    return (weight[..., None] * labels[index]).sum(1)


@dataclass(frozen=True)
class LabelTrack:
    """Labels that start at one frame, and what is remembered of them."""

    anchor: FrameKeys
    """Of the first frame."""
    first: Tensor
    """float32 (N, K): the labels given for it."""
    recent: tuple[Tensor, ...]
    """float32 (N, K) each: the labels predicted for the last frames, newest first, at most n_context."""

    @property
    def newest(self) -> Tensor:
        """float32 (N, K): the labels of the newest frame."""
        return self.recent[0]

    def keep(self, columns: Sequence[int]) -> LabelTrack:
        """The same with some of the labels only."""
        index = list(columns)
        return LabelTrack(self.anchor, self.first[:, index], tuple(labels[:, index] for labels in self.recent))


class _Source(NamedTuple):
    """Frames of the context and the matches in them."""

    matches: Matches
    labels: Tensor
    """float32 (M, K): of all their cells."""
    copies: int
    """How often each cell counts."""


class LabelPropagator:
    """Label propagation frame by frame, for labels that start at different frames.

    The similarities with the queue are computed once for all of them; each start adds those with its own first frame.
    Cost and memory of a frame are constant from n_context frames after the start on.
    """

    def __init__(self, grid: tuple[int, int], config: TrackingConfig) -> None:
        self.config = config
        self._near = None if config.radius is None else near_cells(*grid, config.radius)
        self._workspace = Workspace()

    def start(self, keys: FrameKeys, labels: Tensor) -> LabelTrack:
        """Labels (N, K) of a frame as a track whose newest frame this is."""
        first = labels.float()
        anywhere = Context(keys, [keys], workspace=self._workspace).best(self.config.top_k)
        predicted = self._mix(self._first_frame(keys, keys, anywhere, first, queued=self.config.n_context))
        return LabelTrack(keys, first, (predicted,))

    def step(self, keys: FrameKeys, memory: Sequence[FrameKeys], tracks: Sequence[LabelTrack]) -> list[LabelTrack]:
        """The tracks after the next frame.

        `memory` holds the last frames before it, newest first, at least as many as the longest track remembers.
        """
        if not tracks:
            return []
        n_context, top_k = self.config.n_context, self.config.top_k
        lengths = {min(len(track.recent), n_context) for track in tracks}
        anchors = {id(track.anchor): track.anchor for track in tracks}
        near, remembered = self._on(keys), memory[: max(lengths)]
        context = Context(keys, remembered, near=near, anchors=list(anchors.values()), workspace=self._workspace)
        in_anchor = {key: context.best_in_anchor(top_k, number) for number, key in enumerate(anchors)}
        matches = {length: context.best(top_k, newest=length) for length in lengths}
        stepped = []
        for track in tracks:
            length = min(len(track.recent), n_context)
            anywhere = in_anchor[id(track.anchor)]
            sources = self._first_frame(keys, track.anchor, anywhere, track.first, queued=n_context - length)
            sources.append(_Source(matches[length], torch.cat(track.recent[:length]), 1))
            predicted = self._mix(sources)
            stepped.append(LabelTrack(track.anchor, track.first, (predicted, *track.recent[: n_context - 1])))
        return stepped

    def _on(self, keys: FrameKeys) -> Tensor | None:
        if self._near is not None:
            self._near = self._near.to(keys.exact.device)
        return self._near

    def _first_frame(
        self, keys: FrameKeys, anchor: FrameKeys, anywhere: Matches, labels: Tensor, *, queued: int
    ) -> list[_Source]:
        """The first frame and the `queued` copies of it that are in the queue, where the radius holds for them."""
        near = self._on(keys)
        if near is None:
            return [_Source(anywhere, labels, 1 + queued)]
        sources = [_Source(anywhere, labels, 1)]
        if queued:
            sources.append(_Source(Context(keys, [anchor], near=near).best(self.config.top_k), labels, queued))
        return sources

    def _mix(self, sources: Sequence[_Source]) -> Tensor:
        """Weighted labels (N, K) of the best matches in several sources."""
        score = torch.cat([source.matches.score for source in sources], dim=1)
        counts = torch.cat([torch.full_like(matches.score, copies) for matches, _, copies in sources], dim=1)
        score, order = score.sort(dim=1, descending=True, stable=True)
        counts = counts.gather(1, order)
        taken = (self.config.top_k - counts.cumsum(1) + counts).clamp(min=0).minimum(counts)
        weight = taken * ((score - score[:, :1]) / self.config.temperature).exp()
        weight = torch.empty_like(weight).scatter_(1, order, weight / weight.sum(1, keepdim=True))
        labels = torch.cat([labels[matches.cell] for matches, labels, _ in sources], dim=1)
        return torch.bmm(weight[:, None], labels)[:, 0]

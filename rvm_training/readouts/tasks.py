"""Each task: its head, its loss, and which frames of a clip it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from rvm_core.config import PATCH_SIZE
from rvm_core.heads import (
    BoxHead,
    BoxHeadConfig,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PointHeadConfig,
    PoseHead,
    PoseHeadConfig,
)
from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig
from rvm_training.feature_cache import Examples
from rvm_training.losses import class_loss, depth_loss, pose_loss
from rvm_training.readouts.clips import Task
from rvm_training.readouts.track_tasks import recurrent_loss, window_box_loss, window_point_loss

HeadKind = Literal["recurrent", "window"]


class Loss(Protocol):
    """Of a head on a batch; whatever is random comes from `rng`."""

    def __call__(self, head: Any, examples: Examples, rng: np.random.Generator) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ReadoutTask:
    """What is trained."""

    task: Task
    head: HeadKind = "window"
    """recurrent for points and boxes only; all other heads read a window."""
    features: int
    """Width D."""
    image_size: tuple[int, int]
    """(height, width) of the frames."""
    frames: int = 16
    """Frames of the window that a head reads. Recurrent readouts and poses take clips of any length."""
    channels: int | None = None
    """Of the head; None: the protocol's."""
    num_heads: int | None = None
    """Of its attention; None: the protocol's."""
    classes: int | None = None
    """How many, for classes."""
    truncate: int | None = None
    """Recurrent: gradients go so many frames back; None: through the whole clip."""
    seed: int = 0
    """Of the first weights."""

    def __post_init__(self) -> None:
        if self.head == "recurrent" and self.task not in ("points", "boxes"):
            raise ValueError(f"there are recurrent readouts of points and boxes, not of {self.task}; use --head window")
        if self.task == "class" and not self.classes:
            raise ValueError("a readout of classes needs their number")
        for name in ("features", "frames", "channels", "num_heads", "truncate"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"ReadoutTask.{name} must be positive, got {value}")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features."""
        return self.image_size[0] // PATCH_SIZE, self.image_size[1] // PATCH_SIZE

    def keep(self, frames: int) -> slice:
        """Which frames of a clip of so many are read: for poses the first and the last, otherwise all."""
        return slice(0, None, max(1, frames - 1)) if self.task == "pose" else slice(None)

    def identity(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"image_size": list(self.image_size)}

    def make_head(self) -> nn.Module:
        """A new one, on the CPU."""
        sizes: dict[str, Any] = {"features": self.features}
        sizes |= {name: value for name in ("channels", "num_heads") if (value := getattr(self, name))}
        if self.task == "pose":
            return PoseHead(PoseHeadConfig(**sizes), seed=self.seed)
        if self.head == "recurrent":
            kind: Literal["points", "boxes"] = "points" if self.task == "points" else "boxes"
            return RecurrentReadout(RecurrentReadoutConfig(kind=kind, **sizes), seed=self.seed)
        sizes["frames"] = self.frames
        if self.task == "points":
            return PointHead(PointHeadConfig(copies=_copies(self.frames), **sizes), seed=self.seed)
        if self.task == "boxes":
            return BoxHead(BoxHeadConfig(**sizes), seed=self.seed)
        if self.task == "depth":
            return DepthHead(DepthHeadConfig(image_size=self.image_size, **sizes), seed=self.seed)
        return ClassHead(ClassHeadConfig(classes=self.classes or 1, **sizes), seed=self.seed)

    @property
    def loss(self) -> Loss:
        """Its loss, of all that a source knows."""
        return partial(_own_loss, self._loss, self.task)

    @property
    def _loss(self) -> Loss:
        if self.head == "recurrent":
            return partial(recurrent_loss, grid=self.grid, truncate=self.truncate)
        losses: dict[Task, Loss] = {
            "points": partial(window_point_loss, frames=self.frames),
            "boxes": partial(window_box_loss, frames=self.frames),
            "depth": _depth_loss,
            "class": _class_loss,
            "pose": _pose_loss,
        }
        return losses[self.task]


def own_truth(examples: Examples, task: Task) -> Examples:
    """With the truth of one task, by its short names."""
    prefix = f"{task}."
    truth = {name.removeprefix(prefix): values for name, values in examples.truth.items() if name.startswith(prefix)}
    return Examples(features=examples.features, truth=truth)


def _own_loss(loss: Loss, task: Task, head: Any, examples: Examples, rng: np.random.Generator) -> Tensor:
    return loss(head, own_truth(examples, task), rng)


def _copies(frames: int) -> int:
    # The protocol has two frames a query.
    return max(1, frames // 2) if frames % 2 == 0 else frames


def _depth_loss(head: DepthHead, examples: Examples, rng: np.random.Generator) -> Tensor:
    return depth_loss(head(examples.features), examples.truth["metres"].unsqueeze(-1))


def _class_loss(head: ClassHead, examples: Examples, rng: np.random.Generator) -> Tensor:
    return class_loss(head(examples.features), examples.truth["label"])


def _pose_loss(head: PoseHead, examples: Examples, rng: np.random.Generator) -> Tensor:
    return pose_loss(head(examples.features), examples.truth["rotation"], examples.truth["translation"])

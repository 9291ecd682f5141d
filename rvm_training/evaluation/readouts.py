"""Trained readouts under evaluation: loaded, told apart by what is in their file, and given the features of a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rvm_core.checkpoint import CheckpointError
from rvm_core.heads import ClassHead, DepthHead, PoseHead
from rvm_core.preprocess import ResizePolicy
from rvm_core.readout_checkpoint import Kind, load_readout
from rvm_training.evaluation.benchmark import UInt8Array
from rvm_training.evaluation.features import Encoder

Head = TypeVar("Head", DepthHead, ClassHead, PoseHead)

_KINDS: dict[type, Kind] = {DepthHead: "depth", ClassHead: "classes", PoseHead: "pose"}


def load_head(path: str | Path, head_class: type[Head], width: int, **options: Any) -> Head:
    """The head of a file, for features of `width` channels; options as of `load_readout`.

    Raises `CheckpointError` for a file that is no such head, or one for features of another width.
    """
    head = load_readout(path, kind=_KINDS[head_class], **options)
    assert isinstance(head, head_class)
    if head.config.features != width:
        raise CheckpointError(path, f"expected a head for features of {width} channels, got {head.config.features}")
    return head


def head_hash(path: str | Path) -> str:
    """sha256 of the file, for the settings of a benchmark."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def clip_features(
    encoder: Encoder, frames: Iterable[UInt8Array], image_size: tuple[int, int], policy: ResizePolicy
) -> Tensor:
    """Features float32 (1, T, N+1, D) of a clip, which the encoder sees as the start of a video."""
    # An engine may write the next frame's features where it wrote these.
    return torch.stack([tokens.float().clone() for tokens in encoder.encode(frames, image_size, policy=policy)])[None]


@torch.no_grad()
def read(head: torch.nn.Module, features: Tensor) -> Any:
    """What a head says of features, computed where these are."""
    return head.to(features.device)(features)

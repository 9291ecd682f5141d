"""What a streaming encoder is: the contract between a model and all that steps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

State: TypeAlias = Any
"""What a model carries from frame to frame: a float32 tensor or a tuple of them, each with the streams of the batch on
its first axis; the empty tuple for a model without memory."""


class EncoderConfig(Protocol):
    """What every configuration tells."""

    @property
    def name(self) -> str:
        """The name of the size."""

    @property
    def width(self) -> int:
        """Channels of the features."""

    @property
    def encoder_only(self) -> EncoderConfig:
        """Without decoder or classifier: all that features depend on."""


class StreamingEncoder(nn.Module, ABC):
    """One frame and a state in, features and the new state out. The state is a value: never kept on the module.

    Shapes: B batch, H W image in pixels (multiples of 16), N = H/16 * W/16 patch tokens in row-major order, D width;
    tokens carry [CLS] first, so N+1.
    """

    config: EncoderConfig

    @property
    def features_are_state(self) -> bool:
        """Whether features and new state are one tensor, so that those who copy them need to do so once."""
        return False

    @abstractmethod
    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: frames (B, 3, H, W) float RGB in [0, 1] -> (features (B, N+1, D) float32, the new state)."""

    @abstractmethod
    def init_state(self, batch_size: int, height: int, width: int) -> State:
        """The state before the first frame, on the device of the weights.

        Raises `ValueError` unless height and width, in pixels, are multiples of 16.
        """


def state_tensors(state: State) -> tuple[Tensor, ...]:
    """The tensors of a state, in order."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def state_like(example: State, tensors: tuple[Tensor, ...]) -> State:
    """The state of these tensors, of the form of another one: a tensor, a plain tuple or a named one."""
    if isinstance(example, Tensor):
        (tensor,) = tensors
        return tensor
    return type(example)(*tensors) if hasattr(example, "_fields") else tensors

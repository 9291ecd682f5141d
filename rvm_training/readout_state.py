"""The state of a stopped training of readouts: one .safetensors, written whole, that goes on to the same end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rvm_core.atomic import atomic_file

FORMAT_VERSION = "1"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class StateError(ValueError):
    """The file of a stopped training cannot be used; says why."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A line of the curve."""

    learning_rate: float
    """The highest of the schedule."""
    step: int
    """How many steps were done."""
    loss: float | None
    """Mean over the steps since the last line; None in the first."""
    held_out: float | None
    """Loss on the held-out clips; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class RateResult:
    """How the training with one rate ended."""

    learning_rate: float
    held_out: float | None
    """Loss on the held-out clips; None where the loss or the gradient stopped being finite."""
    stopped_at: int | None = None
    """The step in which that was."""


@dataclass(kw_only=True)
class Progress:
    """Where a training is. Plain JSON beside the tensors."""

    rate_index: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the steps since the last point of the curve."""
    loss_count: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    results: list[RateResult] = field(default_factory=list)
    """Of the rates that are done."""


def save_state(
    path: Path,
    identity: Mapping[str, Any],
    progress: Progress,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None,
) -> None:
    """Writes all that a training needs to go on. `identity`: what it must agree with; `best`: the best head so far."""
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    for name, parameter in head.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "identity": json.dumps(identity, sort_keys=True),
        "progress": json.dumps(asdict(progress)),
    }
    with atomic_file(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What `load_state` found."""

    progress: Progress
    tensors: dict[str, Tensor]

    def restore(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor] | None:
        """Puts head and optimiser where they were; returns the best head so far. Raises `StateError`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in self.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        try:
            head.load_state_dict(parts["head"])
            for name, parameter in head.named_parameters():
                if self.progress.step:
                    moments = {moment: parts[moment][name].to(parameter.device) for moment in _MOMENTS}
                    optimizer.state[parameter] = {"step": torch.tensor(float(self.progress.step)), **moments}
        except (KeyError, RuntimeError) as error:
            raise StateError(f"the stopped training does not fit the head: {error}") from error
        return parts.get("best")


def load_state(path: Path, identity: Mapping[str, Any]) -> SavedState:
    """Reads a stopped training. Raises `StateError` for a damaged file, and for one of other settings, naming them."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError(f"expected format_version {FORMAT_VERSION}, got {metadata['format_version']!r:.100}")
        progress, before = json.loads(metadata["progress"]), json.loads(metadata["identity"])
        progress["curve"] = [CurvePoint(**point) for point in progress["curve"]]
        progress["results"] = [RateResult(**result) for result in progress["results"]]
        found = Progress(**progress)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StateError(
            f"{path} is no stopped training that can be read: {error}; start again without --resume"
        ) from error
    now = json.loads(json.dumps(identity))
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    if changed:
        raise StateError(
            f"{path} was trained with other settings ({', '.join(changed)}); give the same ones to go on, or start "
            "again without --resume"
        )
    return SavedState(progress=found, tensors=tensors)

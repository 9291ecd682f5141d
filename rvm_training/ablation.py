"""Pretrains several configurations with equal budgets and several seeds, and measures each of them alike.

The folder of an ablation: plan.json says what is compared, VARIANT/seed_K holds a pretraining run and its result.json.
A run with a result is not done again, and one that was interrupted goes on, so the same command finishes what it began.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rvm_core.atomic import atomic_file
from rvm_training.pretrain_config import PretrainConfig, from_dict, to_dict

HELD_OUT_SEED = 2**20
"""Of the examples that the reconstruction loss is measured on; another one than training draws its examples with."""
HELD_OUT_BATCHES = 8
"""Batches that the reconstruction loss is measured on."""
MOST_SOURCES = 4
"""Source frames of held-out examples; a configuration with fewer sees the last of them, for the same targets."""
UNTRAINED = "untrained"
RAW_PIXELS = "raw pixels"
RESULT = "result.json"
PLAN = "plan.json"

Result = dict[str, Any]


class AblationError(ValueError):
    """The configurations cannot be compared, or the folder holds another ablation."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared. Raises `AblationError` at construction if the budgets are not equal."""

    variants: Mapping[str, PretrainConfig]
    """Configurations by name, which differ in what is asked about. The first one is also measured untrained."""
    seeds: tuple[int, ...]
    """Of initial weights and of the data."""
    scenes: int = 10
    """Held-out synthetic scenes."""
    frames: int = 24
    """Of each scene."""

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise AblationError("expected at least one configuration and at least one seed, each once")
        for name, config in self.variants.items():
            if config.objective != "rvm":
                raise AblationError(f"only configurations of RVM can be compared; {name} is of {config.objective}")
        first, *others = self.variants
        for name in others:
            if _budget(self.variants[name]) != _budget(self.variants[first]):
                raise AblationError(
                    f"{name} and {first} cannot be compared: budget, data and image size must be equal, and are "
                    f"{_budget(self.variants[name])} and {_budget(self.variants[first])}"
                )
        if not self.variants[first].data.held_out:
            raise AblationError("the configurations have no data.held_out to measure the reconstruction loss on")

    @property
    def first(self) -> PretrainConfig:
        """The configuration that the others are compared with."""
        return next(iter(self.variants.values()))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "variants": {name: to_dict(config) for name, config in self.variants.items()},
            "seeds": list(self.seeds),
            "scenes": self.scenes,
            "frames": self.frames,
        }


def _budget(config: PretrainConfig) -> dict[str, Any]:
    return {
        "examples": config.batch_size * config.optimizer.steps,
        "optimizer": to_dict(config.optimizer),
        "data": to_dict(config.data),
        "image_size": config.sampling.image_size,
    }


@dataclass(frozen=True)
class Task:
    """One pretrained model, or one of what they are compared with."""

    name: str
    """Of a variant, or `UNTRAINED` or `RAW_PIXELS`."""
    seed: int

    def folder(self, root: Path) -> Path:
        return root / self.name.replace(" ", "_") / f"seed_{self.seed}"


def tasks(ablation: Ablation) -> list[Task]:
    """All that there is to do, seed by seed, so that an interrupted ablation has whole seeds."""
    return [Task(RAW_PIXELS, ablation.seeds[0])] + [
        Task(name, seed) for seed in ablation.seeds for name in (UNTRAINED, *ablation.variants)
    ]


def open_folder(ablation: Ablation, root: Path) -> None:
    """Writes the plan, or checks that the folder has the same one, but for the seeds: those may become more or fewer.

    Raises `AblationError` otherwise.
    """
    path = root / PLAN
    plan = json.loads(json.dumps(ablation.plain()))
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise AblationError(f"{root} is not empty and holds no ablation; give another folder")
        root.mkdir(parents=True, exist_ok=True)
    elif _whole(json.loads(path.read_text(encoding="utf-8"))) | {"seeds": plan["seeds"]} != plan:
        raise AblationError(f"{root} holds another ablation, see {path}; give another folder, or the same arguments")
    _write(path, plan)


def _whole(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan whose configurations have the keys that they lack, which came later, with their defaults."""
    variants = {name: to_dict(from_dict(PretrainConfig, config)) for name, config in plan.get("variants", {}).items()}
    whole: dict[str, Any] = json.loads(json.dumps({**plan, "variants": variants}))
    return whole


def read_results(ablation: Ablation, root: Path) -> dict[str, list[Result]]:
    """What is measured so far: results by name, in the order of the seeds."""
    found: dict[str, list[Result]] = {}
    for task in tasks(ablation):
        path = task.folder(root) / RESULT
        if path.is_file():
            found.setdefault(task.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def run_task(ablation: Ablation, task: Task, root: Path, *, is_stopped: Callable[[], bool] = lambda: False) -> bool:
    """Trains, if the task has to, and measures. Returns False if it was interrupted before its end.

    Raises what pretraining raises.
    """
    from rvm_training.ablation_measures import noise_scores, pixel_encoder, tracking_scores

    folder = task.folder(root)
    if (folder / RESULT).is_file():
        return True
    size = ablation.first.sampling.image_size
    if task.name == RAW_PIXELS:
        encoder, scores = pixel_encoder(), _copy_scores(ablation.first)
    else:
        trained = _model(ablation, task, folder, is_stopped)
        if trained is None:
            return False
        encoder, scores = trained
    scores |= tracking_scores(encoder, image_size=size, scenes=ablation.scenes, frames=ablation.frames)
    scores |= noise_scores(encoder, image_size=size)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RESULT, {"name": task.name, "seed": task.seed, "scores": _without_nan(scores)})
    return True


def _copy_scores(config: PretrainConfig) -> dict[str, float]:
    from rvm_training.ablation_measures import copy_loss

    return {"loss": copy_loss(_held_out(config))}


def _model(ablation: Ablation, task: Task, folder: Path, is_stopped: Callable[[], bool]) -> Any:
    from rvm_training.ablation_measures import model_encoder, reconstruction_loss
    from rvm_training.pretrain_model import build_model

    untrained = task.name == UNTRAINED
    config = ablation.first if untrained else ablation.variants[task.name]
    config = replace(config, seed=task.seed, data=replace(config.data, seed=task.seed))
    if untrained:
        model = build_model(config, seed=task.seed).eval()
    else:
        model = _train(config, folder / "run", is_stopped)
        if model is None:
            return None
    encoder = model_encoder(task.name, model, source_frames=config.rvm_sampling.source_frames, random=untrained)
    return encoder, {"loss": reconstruction_loss(model, _held_out(config))}


def _train(config: PretrainConfig, folder: Path, is_stopped: Callable[[], bool]) -> Any:
    from rvm_training.data.loader import make_loader
    from rvm_training.pretrain import RunOptions, pretrain
    from rvm_training.pretrain_loop import Hooks
    from rvm_training.run_folder import RunFolder
    from rvm_training.train_export import load_trained

    run = RunFolder(folder)
    outcome = pretrain(
        config, RunOptions(folder=run, make_loader=make_loader, resume=True, hooks=Hooks(is_stopped=is_stopped))
    )
    return None if outcome.interrupted else load_trained(run, outcome.step)


def _held_out(config: PretrainConfig) -> list[Any]:
    """The same clips, frames and masks for all configurations and seeds."""
    from rvm_training.data.loader import make_loader

    data = replace(config.data, sources=config.data.held_out, held_out=(), workers=0, seed=0)
    sampling = replace(config.rvm_sampling, source_frames=MOST_SOURCES)
    with make_loader(data, sampling, batch_size=config.batch_size, seed=HELD_OUT_SEED) as loader:
        batches: list[Any] = [next(loader) for _ in range(HELD_OUT_BATCHES)]
    frames = config.rvm_sampling.source_frames
    return [batch._replace(source=np.asarray(batch.source)[:, -frames:]) for batch in batches]


def _without_nan(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in scores.items()}


def _write(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def missing(ablation: Ablation, root: Path) -> list[Task]:
    """What is still to do."""
    return [task for task in tasks(ablation) if not (task.folder(root) / RESULT).is_file()]

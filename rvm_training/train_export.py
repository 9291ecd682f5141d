"""Weights of a pretraining run as a torch model and as a checkpoint of rvm_core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rvm_core.checkpoint import save_checkpoint
from rvm_core.model import RVM
from rvm_training.pretrain_model import PretrainModel, build_model
from rvm_training.run_folder import RunFolder, RunFolderError
from rvm_training.train_checkpoint import TrainCheckpointError, read_parameters


def newest_step(folder: RunFolder) -> int:
    """Of the newest checkpoint. Raises `RunFolderError` if there is none."""
    if not (steps := folder.steps()):
        raise RunFolderError(f"there is no checkpoint in {folder.checkpoints}")
    return steps[-1]


def load_trained(folder: RunFolder, step: int | None = None) -> PretrainModel:
    """The model of a run's checkpoint, of the newest one for None.

    It has its decoder, is float32, on the CPU, in eval mode. With the aggregator "self_attention" it reconstructs, but
    has no recurrent step. Raises `TrainCheckpointError` if it cannot be read, and `RunFolderError` if there is no run.
    """
    checkpoint = folder.checkpoints / str(newest_step(folder) if step is None else step)
    model = build_model(folder.read_config(), seed=None)
    weights = {name: torch.from_numpy(value.copy()) for name, value in read_parameters(checkpoint).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainCheckpointError(f"{checkpoint} does not hold the model of {folder.config}: {error}") from error
    return model.eval()


def export_checkpoint(folder: RunFolder, step: int, path: Path, *, decoder: bool = True) -> nn.Module:
    """Writes the model of a run's checkpoint, whole or not at all, as `save_checkpoint` does. Returns it.

    Of a masked autoencoder it is the TRecViT or 4DS alone, as their checkpoints have no decoder.

    Raises `ValueError` if it has no recurrent core, and the errors of `load_trained` and `save_checkpoint`.
    """
    aggregator = folder.read_config().aggregator
    if aggregator != "core":
        raise ValueError(
            f"only a model with the recurrent core can be written as a checkpoint; this one has {aggregator}"
        )
    model = load_trained(folder, step)
    if not isinstance(model, RVM):
        model = model.pretrained()
    elif not decoder:
        trained, model = model.state_dict(), RVM(replace(model.config, decoder=None), seed=None)
        model.load_state_dict({name: trained[name] for name in model.state_dict()})
    save_checkpoint(model, path)
    return model

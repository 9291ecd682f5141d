"""A trainer and a loader that stand in for the model's in tests of the run around them: they compile in no time."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvm_core.config import DecoderConfig, RVMConfig
from rvm_training.objective import PretrainBatch
from rvm_training.pretrain_config import (
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    SamplingConfig,
    SourceConfig,
    from_dict,
    to_dict,
)
from rvm_training.sharding import batch_sharding, make_mesh, sharding
from rvm_training.train_step import Metrics, TrainState

SIZES: dict[str, Any] = {
    "width": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_mlp_width": 32,
    "core_depth": 1,
    "core_heads": 2,
    "core_mlp_width": 32,
}
DECODER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 32}


def tiny_config(**changes: Any) -> PretrainConfig:
    """Six steps of the smallest model, a checkpoint after every second one, a row of the log for each."""
    config = PretrainConfig(
        model=RVMConfig(**SIZES, decoder=DecoderConfig(**DECODER)),
        sampling=SamplingConfig(image_size=32, source_frames=1, targets=1, mask_ratio=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1, steps=6),
        data=DataConfig(sources=(SourceConfig(name="clips", path="clips"),)),
        batch_size=2,
        compute_dtype="float32",
        remat=False,
        scan_layers=False,
        checkpoint_every=2,
        keep_checkpoints=2,
        log_every=1,
        picture_every=4,
        eval_every=2,
        eval_batches=1,
    )
    return from_dict(PretrainConfig, to_dict(config) | changes)


class StandInTrainer:
    """Learns the mean colour of the targets. Its numbers depend on every step before, through AdamW."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.mesh = make_mesh(jax.devices() if jax.process_count() > 1 else jax.devices()[:1])
        self._optimizer = optax.adamw(config.optimizer.learning_rate)
        self._step = jax.jit(self._train, donate_argnums=0)

    def init(self) -> TrainState:
        parameters = {"colour": jnp.full((16, 3), 0.1), "a.b.scale": jnp.ones(())}
        state = TrainState(jnp.zeros((), jnp.int32), parameters, self._optimizer.init(parameters))
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state()))

    def abstract_state(self) -> TrainState:
        parameters: dict[str, Any] = {
            "colour": jax.ShapeDtypeStruct((16, 3), jnp.float32),
            "a.b.scale": jax.ShapeDtypeStruct((), jnp.float32),
        }
        optimizer = jax.eval_shape(self._optimizer.init, parameters)
        step: Any = jax.ShapeDtypeStruct((), jnp.int32)
        state = TrainState(step, parameters, optimizer)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(self.mesh, leaf.shape)), state
        )

    def place(self, batch: PretrainBatch) -> PretrainBatch:
        lies = batch_sharding(self.mesh)
        return PretrainBatch(*(jax.make_array_from_process_local_data(lies, np.asarray(array)) for array in batch))

    def step(self, state: TrainState, batch: PretrainBatch) -> tuple[TrainState, Metrics]:
        return self._step(state, batch)

    def loss(self, state: TrainState, batch: PretrainBatch) -> float:
        return float(_loss(state.parameters, batch))

    def reconstruct(self, state: TrainState, batch: PretrainBatch) -> jax.Array:
        colour = state.parameters["colour"].mean(0)[:, None, None]
        shape = batch.target.shape
        return jnp.broadcast_to(colour, (*shape[:2], 3, *shape[2:4]))

    def _train(self, state: TrainState, batch: PretrainBatch) -> tuple[TrainState, Metrics]:
        loss, gradients = jax.value_and_grad(_loss)(state.parameters, batch)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.parameters)
        metrics = Metrics(loss, optax.global_norm(gradients), jnp.asarray(self.config.optimizer.learning_rate))
        return TrainState(state.step + 1, optax.apply_updates(state.parameters, updates), optimizer), metrics


def _loss(parameters: dict[str, jax.Array], batch: PretrainBatch) -> jax.Array:
    truth = batch.target.astype(jnp.float32).mean((1, 2, 3)) / 255
    return jnp.square(parameters["colour"][None] * parameters["a.b.scale"] - truth[:, None]).mean()


class StandInLoader:
    """Noise by the number of the batch. One batch may do something else: `at` counts from 1."""

    def __init__(self, data: DataConfig, sampling: SamplingConfig, batch_size: int, seed: int) -> None:
        self._sampling, self._size, self._seed = sampling, batch_size, seed
        self._held_out = data.sources[0].name == "held out"
        self._given = 0
        self.skipped = {"clips": 0}
        self.closed = False

    def __next__(self) -> PretrainBatch:
        self._given += 1
        sampling = self._sampling
        random = np.random.default_rng((self._seed, self._held_out, self._given))
        frame = (sampling.image_size, sampling.image_size, 3)
        visible = [
            np.sort(random.permutation(sampling.patches)[: sampling.visible])
            for _ in range(self._size * sampling.targets)
        ]
        return PretrainBatch(
            random.integers(0, 256, (self._size, sampling.source_frames, *frame), np.uint8),
            random.integers(0, 256, (self._size, sampling.targets, *frame), np.uint8),
            random.integers(4, 49, (self._size, sampling.targets), np.int32),
            np.asarray(visible, np.int32).reshape(self._size, sampling.targets, sampling.visible),
        )

    def get_state(self) -> dict[str, Any]:
        return {"given": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self._given = state["given"]

    def close(self) -> None:
        self.closed = True


def make_stand_in_loader(
    data: DataConfig,
    sampling: SamplingConfig,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> StandInLoader:
    return StandInLoader(data, sampling, batch_size, seed + process_index)


def run_and_die(folder: str, at: int) -> None:
    """For a process of its own: a run that is killed while step `at` is shown, without any notice."""

    def show(step: int, last: int, row: object) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    _run(folder, show=show)


def run_as_one_of_two(folder: str, process: int) -> None:
    """For one of two processes that have joined: a run of which the second one is asked to stop after step 3."""
    asked = iter([False, False, process == 1])
    _run(folder, is_stopped=lambda: next(asked))


def _run(folder: str, **hooks: Any) -> None:
    from rvm_training import pretrain
    from rvm_training.run_folder import RunFolder

    pretrain.Trainer = StandInTrainer  # type: ignore[misc,assignment]
    options = pretrain.RunOptions(
        folder=RunFolder(Path(folder)), make_loader=make_stand_in_loader, hooks=pretrain.Hooks(**hooks)
    )
    outcome = pretrain.pretrain(tiny_config(), options)
    print(json.dumps({"step": outcome.step, "interrupted": outcome.interrupted}))

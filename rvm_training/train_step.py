"""The training step: the torch model under torchax and `jax.jit`, sharded over all devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.sharding import NamedSharding, PartitionSpec

from rvm_training import objective
from rvm_training.jax_model import JaxModel
from rvm_training.optimizer import learning_rate, make_optimizer
from rvm_training.pretrain_batch import Batch, batch_layout, batch_like
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.pretrain_model import PretrainModel, build_model
from rvm_training.sharding import AXIS, batch_sharding, make_mesh, sharding, spec

Parameters = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array
    """int32 scalar: steps done."""
    parameters: Parameters
    """float32, by their names in the torch model."""
    optimizer: Any
    """State of the optimiser; its moments lie as the parameters do."""


class Metrics(NamedTuple):
    """Of one step, over the whole batch; scalars, float32."""

    loss: jax.Array
    """Mean square error of the pixels before the step."""
    gradient_norm: jax.Array
    """Over all parameters, before clipping."""
    learning_rate: jax.Array
    """Of this step."""


class Trainer:
    """Initial state and training step of a configuration, on the given devices or those of all processes.

    Raises `ValueError` if the devices do not divide the batch.
    """

    def __init__(self, config: PretrainConfig, devices: Sequence[jax.Device] | None = None) -> None:
        self.config = config
        self.mesh = make_mesh(devices)
        if config.batch_size % self.mesh.size:
            raise ValueError(f"batch_size must be a multiple of the {self.mesh.size} devices, got {config.batch_size}")
        self._model = JaxModel(config, self.mesh.size)
        self._optimizer = make_optimizer(config.optimizer)
        self._schedule = learning_rate(config.optimizer)
        self._specs = {name: spec(shape, self.mesh.size) for name, shape in self._model.shapes.items()}
        self._step = jax.jit(self._train, donate_argnums=0, out_shardings=(self._state_shardings(), None))
        self._gradients = jax.jit(self._mapped(self._local_gradients, (PartitionSpec(), self._specs)))
        self._loss = jax.jit(self._mapped(self._local_loss, PartitionSpec()))
        self._reconstruct = jax.jit(self._mapped(self._local_reconstruction, PartitionSpec(AXIS)))

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step. The old state's memory is reused: it must not be read again."""
        return self._step(state, batch)

    def loss(self, state: TrainState, batch: Batch) -> float:
        """The loss of a batch."""
        return float(self._loss(state.parameters, batch))

    def gradients(self, state: TrainState, batch: Batch) -> tuple[jax.Array, Parameters]:
        """The loss of a batch and its gradients, float32, before clipping; they lie as the parameters do."""
        return self._gradients(state.parameters, batch)

    def reconstruct(self, state: TrainState, batch: Batch) -> jax.Array:
        """Reconstructed targets, or all frames of a clip: (B, K, 3, H, W) float32, in the scale of [0, 1], not cut."""
        return self._reconstruct(state.parameters, batch)

    def lower(self) -> jax.stages.Lowered:
        """The step, lowered for these devices, which may be of another machine."""
        return self._step.lower(self.abstract_state(), self.abstract_batch())

    def init(self) -> TrainState:
        """The state before the first step: the weights of `build_model` with the configured seed."""
        weights = build_model(self.config, seed=self.config.seed).state_dict()
        return self.from_weights({name: value.numpy() for name, value in weights.items()})

    def from_weights(self, weights: dict[str, np.ndarray]) -> TrainState:
        """The state before the first step with given weights, by their names in the torch model."""
        parameters = {name: self._put(weights[name], shape) for name, shape in self._model.shapes.items()}
        abstract = self.abstract_state()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
        optimizer = jax.jit(self._optimizer.init, out_shardings=shardings)(parameters)
        return TrainState(self._put(np.zeros((), np.int32), ()), parameters, optimizer)

    def _put(self, value: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
        # jax may use the memory of a numpy array as it is. Each device needs its own, which the step may write to.
        return jax.make_array_from_callback(shape, sharding(self.mesh, shape), lambda index: value[index].copy())

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a state."""
        parameters = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in self._model.shapes.items()}
        optimizer = jax.eval_shape(self._optimizer.init, parameters)
        state = TrainState(cast(Any, jax.ShapeDtypeStruct((), jnp.int32)), cast(Any, parameters), optimizer)
        return jax.tree.map(self._with_sharding, state)

    def _with_sharding(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(self.mesh, leaf.shape))

    def _state_shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

    def abstract_batch(self) -> Batch:
        """Shapes, dtypes and shardings of a batch of all processes."""
        lies = batch_sharding(self.mesh)
        layout = batch_layout(self.config.sampling, self.config.batch_size)
        return batch_like(layout, (jax.ShapeDtypeStruct(shape, dtype, sharding=lies) for shape, dtype in layout))

    def place(self, batch: Batch) -> Batch:
        """This process's part of a batch, of numpy, as its part of the arrays over all devices."""
        lies = batch_sharding(self.mesh)
        return batch_like(batch, (jax.make_array_from_process_local_data(lies, np.asarray(array)) for array in batch))

    def to_torch(self, state: TrainState) -> PretrainModel:
        """The torch model with the weights of a state, float32 on the CPU. All processes must call it."""
        model = build_model(self.config, seed=None)
        gathered = jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(state.parameters)
        model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in gathered.items()})
        return model

    def _train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, gradients = self._gradients(state.parameters, batch)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        metrics = Metrics(loss, optax.tree.norm(gradients), jnp.asarray(self._schedule(state.step), jnp.float32))
        return TrainState(state.step + 1, parameters, optimizer), metrics

    def _mapped(self, function: Any, out_specs: Any) -> Any:
        """A function of shards of parameters and batch, on all devices."""
        specs = (self._specs, PartitionSpec(AXIS))
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)

    def _local_gradients(self, shards: Parameters, batch: Batch) -> tuple[jax.Array, Parameters]:
        loss, gradients = jax.value_and_grad(self._share_of_loss)(shards, batch)
        return jax.lax.psum(loss, AXIS), gradients

    def _local_loss(self, shards: Parameters, batch: Batch) -> jax.Array:
        return jax.lax.psum(self._share_of_loss(shards, batch), AXIS)

    def _share_of_loss(self, shards: Parameters, batch: Batch) -> jax.Array:
        """What this device's examples add to the mean over all."""
        return self._model(objective.loss, shards, batch) / self.mesh.size

    def _local_reconstruction(self, shards: Parameters, batch: Batch) -> jax.Array:
        return self._model(lambda model, batch: objective.reconstruct(model, batch)[0], shards, batch)

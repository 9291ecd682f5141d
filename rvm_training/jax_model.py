"""The torch model as the jax step runs it: through torchax, block by block, each with parameters gathered at its use.

No layer is defined here. Blocks are wrapped, equal ones become one loop, and so do the time steps of RVM's core.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import torch
import torchax
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchax.interop import call_jax, call_torch

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES
from rvm_core.encoder import PatchEmbedding
from rvm_core.fourds import TubeEmbedding
from rvm_core.layers import Linear, MergeHeads, SplitHeads
from rvm_core.recurrent import RecurrentCore
from rvm_training.pretrain_config import PretrainConfig
from rvm_training.pretrain_model import build_model
from rvm_training.sharding import gather, split_axis

Arrays = Mapping[str, jax.Array]


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """(..., N, C), (..., M, C), (..., M, C) -> (..., N, C); scores and softmax in float32 for any dtype."""
    scores = jnp.einsum("...nc,...mc->...nm", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("...nm,...mc->...nc", weights.astype(value.dtype), value)


# torchax's own takes the softmax in the dtype of its inputs.
torchax.default_env().override_op_definition(F.scaled_dot_product_attention, partial(call_jax, attention))


class PatchProduct(PatchEmbedding):
    """The same patch embedding as one matrix product: gradients of large strided convolutions are slow."""

    def forward(self, frames: Tensor) -> Tensor:
        patches = frames.unflatten(-1, (-1, PATCH_SIZE)).unflatten(-3, (-1, PATCH_SIZE))  # (B, 3, h, 16, w, 16)
        tokens = F.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3), self.weight.flatten(1), self.bias)
        return tokens.permute(0, 3, 1, 2)


class TubeProduct(TubeEmbedding):
    """The same for the tubelets of clips."""

    def forward(self, clips: Tensor) -> Tensor:
        # (B, 3, t, 2, h, 16, w, 16)
        tubes = clips.unflatten(-1, (-1, PATCH_SIZE)).unflatten(-3, (-1, PATCH_SIZE)).unflatten(2, (-1, TUBE_FRAMES))
        tokens = F.linear(tubes.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4), self.weight.flatten(1), self.bias)
        return tokens.permute(0, 4, 1, 2, 3)


class ScannedCore(RecurrentCore):
    """The core with its time steps as one loop."""

    def unroll(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, call_jax(self._scan, tokens))

    def _scan(self, tokens: jax.Array) -> jax.Array:
        def step(state: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = call_torch(self.forward, frame, state)
            return state, state

        _, features = jax.lax.scan(step, jnp.zeros_like(tokens[:, 0]), jnp.moveaxis(tokens, 1, 0))
        return jnp.moveaxis(features, 0, 1)


class ShardedBlock(nn.Module):
    """A block whose parameters hold this device's shards while it runs."""

    def __init__(self, block: nn.Module, config: PretrainConfig, devices: int) -> None:
        super().__init__()
        self.block = block
        products = {
            f"{module_name}.{name}"
            for module_name, module in block.named_modules()
            if isinstance(module, (Linear, SplitHeads, MergeHeads))
            for name, _ in module.named_parameters()
        }
        self._dtypes = {
            name: config.compute_dtype if name in products else "float32" for name, _ in block.named_parameters()
        }
        self._axes = {name: split_axis(value.shape, devices) for name, value in block.named_parameters()}
        self._run: Callable[..., jax.Array] = self._gather_and_run
        if config.remat:
            # Products with weights are kept. What is computed again is cheap, but for the two products of attention.
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            self._run = jax.checkpoint(self._gather_and_run, policy=policy)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return cast(Tensor, call_jax(self._run, dict(self.block.named_parameters()), x, *context))

    def _gather_and_run(self, shards: Arrays, *inputs: jax.Array) -> jax.Array:
        whole = {name: gather(shard, self._axes[name], self._dtypes[name]) for name, shard in shards.items()}
        return cast(jax.Array, call_torch(partial(functional_call, self.block), whole, inputs))


class ScannedBlocks(ShardedBlock):
    """Equal blocks as one loop: the parameters of the one block have a leading axis, one entry a block."""

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return cast(Tensor, call_jax(self._scan, dict(self.block.named_parameters()), x, *context))

    def _scan(self, stacked: Arrays, x: jax.Array, *context: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, shards: (self._run(shards, x, *context), None), x, stacked)[0]


class JaxModel:
    """Calls functions of the torch model on shards of its parameters, inside `shard_map`.

    Parameters keep the names that they have in the torch model.
    """

    def __init__(self, config: PretrainConfig, devices: int) -> None:
        with torch.device("meta"):
            model = build_model(config, seed=None)
            for name, module in list(model.named_modules()):
                if (other := _faster(module, config)) is not None:
                    model.set_submodule(name, other)
        self.shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        """Of all parameters, by name."""
        self._scanned = config.scan_layers
        self._buffers = {name: jnp.asarray(value.numpy()) for name, value in model.named_buffers()}
        self._axes = {name: split_axis(shape, devices) for name, shape in self.shapes.items()}
        self._depths = {
            name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
        }
        for name in self._depths:
            blocks = cast(nn.ModuleList, model.get_submodule(name))
            if config.scan_layers:
                wrapped: list[nn.Module] = [ScannedBlocks(blocks[0], config, devices)]
            else:
                wrapped = [ShardedBlock(block, config, devices) for block in blocks]
            model.set_submodule(name, nn.ModuleList(wrapped))
        self._model = model

    def __call__(self, function: Callable[..., Any], shards: Arrays, *arguments: Any) -> Any:
        """function(model, *arguments) as torch code, with arguments and result of jax."""

        def run(tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
            return functional_call(_Function(self._model, function), _prefixed(tensors), arguments)

        with warnings.catch_warnings():
            # torch wants int64 for places, jax has int32.
            warnings.filterwarnings("ignore", message="Explicitly requested dtype.*int64")
            return call_torch(run, self._arranged(shards) | self._buffers, arguments)

    def _arranged(self, shards: Arrays) -> dict[str, jax.Array]:
        """Parameters as the wrapped model names them: those of blocks as shards, the others whole."""
        arranged = {}
        for name, shard in shards.items():
            if not any(name.startswith(f"{blocks}.") for blocks in self._depths):
                arranged[name] = gather(shard, self._axes[name], "float32")
        for blocks, depth in self._depths.items():
            for first in [name for name in shards if name.startswith(f"{blocks}.0.")]:
                leaf = first.removeprefix(f"{blocks}.0.")
                layers = [shards[f"{blocks}.{i}.{leaf}"] for i in range(depth)]
                if self._scanned:
                    arranged[f"{blocks}.0.block.{leaf}"] = jnp.stack(layers)
                else:
                    arranged |= {f"{blocks}.{i}.block.{leaf}": layer for i, layer in enumerate(layers)}
        return arranged


def _faster(module: nn.Module, config: PretrainConfig) -> nn.Module | None:
    """What takes the place of a module: the same function of the same parameters."""
    if isinstance(module, PatchEmbedding):
        return PatchProduct(module.weight.shape[0])
    if isinstance(module, TubeEmbedding):
        return TubeProduct(module.weight.shape[0])
    if isinstance(module, RecurrentCore) and config.scan_layers:
        return ScannedCore(config.rvm_model)
    return None


class _Function(nn.Module):
    """A function of a model as a module, so that it can be called with other parameters."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(self.model, *arguments)


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in tensors.items()}

"""How arrays lie on the devices: one mesh axis, over which batch, parameters and moments are split.

As in FSDP, no device holds all of a parameter for longer than the layer that needs it runs: it is gathered there, and
its gradient is summed up and split again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

AXIS = "data"
"""Name of the one mesh axis."""
SMALLEST_SPLIT = 2**14
"""Arrays of fewer elements are whole on each device: gathering them would cost more than it saves."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the given devices, or over those of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def split_axis(shape: Sequence[int], devices: int) -> int | None:
    """The longest axis that divides evenly over the devices, the first of several; None for a whole array."""
    if devices == 1 or int(np.prod(shape)) < SMALLEST_SPLIT:
        return None
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def spec(shape: Sequence[int], devices: int) -> PartitionSpec:
    """Of a parameter, its gradient or a moment: their shape alone decides, so that they all lie alike."""
    axis = split_axis(shape, devices)
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)


def sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    return NamedSharding(mesh, spec(shape, mesh.size))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(shard: jax.Array, axis: int | None, dtype: DTypeLike) -> jax.Array:
    """Inside `shard_map`: the whole of a parameter, in `dtype`, from this device's shard of it.

    `axis` is from `split_axis`; for None the parameter is whole already. The gradient on the way back is summed over
    all devices in the dtype of the shard, and split as the parameter is.
    """
    cast = shard.astype(dtype)
    return cast if axis is None else jax.lax.all_gather(cast, AXIS, axis=axis, tiled=True)


def _gather_forward(shard: jax.Array, axis: int | None, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    return gather(shard, axis, dtype), jnp.zeros((), shard.dtype)


def _gather_backward(axis: int | None, _: DTypeLike, like: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    gradient = gradient.astype(like.dtype)
    if axis is None:
        return (jax.lax.psum(gradient, AXIS),)
    return (jax.lax.psum_scatter(gradient, AXIS, scatter_dimension=axis, tiled=True),)


gather.defvjp(_gather_forward, _gather_backward)

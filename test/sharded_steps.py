"""Takes steps of a tiny model on the first so many virtual devices, for each number given, and prints what came out.

Run by test_train_step.py in a process of its own, which asks for the devices. The first number is what gradients of the
others are compared with.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
import optax

from pretrain_examples import random_batch, tiny_config
from rvm_training import sharding
from rvm_training.train_step import Trainer, TrainState


def share(state: TrainState) -> float:
    """The part of parameters and moments that the first device holds."""
    leaves = jax.tree.leaves((state.parameters, state.optimizer))
    return sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)


def take_steps(devices: int, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fills `expected` with gradients if it is empty, compares with it otherwise."""
    config = tiny_config(scan_layers=True, remat=True)
    trainer = Trainer(config, jax.devices()[:devices])
    state, batch = trainer.init(), trainer.place(random_batch(config))
    held = share(state)
    state, metrics = trainer.step(state, batch)
    # After the first step the first moment is the gradient, scaled.
    found = {name: np.asarray(value) for name, value in optax.tree_utils.tree_get(state.optimizer, "mu").items()}
    expected |= {} if expected else found
    largest = max(float(np.abs(value).max()) for value in expected.values())
    error = max(float(np.abs(found[name] - value).max()) for name, value in expected.items()) / largest
    losses = [float(metrics.loss)]
    for _ in range(2):  # the first had a rate of 0
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics.loss))
    return {
        "devices": devices,
        "losses": losses,
        "gradient_error": error,
        "share": max(held, share(state)),
    }


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    sharding.SMALLEST_SPLIT = 64
    expected: dict[str, np.ndarray] = {}
    print(json.dumps([take_steps(int(number), expected) for number in sys.argv[1:]]))


if __name__ == "__main__":
    main()

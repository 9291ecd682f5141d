"""The optimiser of pretraining: AdamW, with linear warm-up and cosine decay."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from rvm_training.pretrain_config import OptimizerConfig


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Rises linearly from 0 over the warm-up, then falls along a cosine to the end rate at the last step."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warmup_steps else config.learning_rate,
        config.learning_rate,
        config.warmup_steps,
        config.steps,
        config.end_learning_rate,
    )


def decays(parameter_name: str) -> bool:
    """Whether a parameter of the model decays: weights of products do; norms, biases and tokens do not.

    The name decides. The shape cannot: biases of attention keep the axis of the heads.
    """
    module, _, leaf = parameter_name.rpartition(".")
    return leaf == "weight" and not module.endswith("norm")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Works on a mapping from names of parameters to arrays."""

    def mask(parameters: Mapping[str, jax.Array]) -> dict[str, bool]:
        return {name: decays(name) for name in parameters}

    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate(config)),
    )

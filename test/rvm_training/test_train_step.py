"""The jax step against torch in plain autograd, and its variants against each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax", reason="needs the extra `train`")
pytest.importorskip("torchax", reason="needs the extra `train`")

from pretrain_examples import as_torch, random_batch, tiny_config  # noqa: E402
from rvm_core.model import RVM  # noqa: E402
from rvm_training import objective  # noqa: E402
from rvm_training.objective import PretrainBatch  # noqa: E402
from rvm_training.optimizer import decays, learning_rate  # noqa: E402
from rvm_training.pretrain_config import OptimizerConfig, PretrainConfig  # noqa: E402
from rvm_training.pretrain_model import build_model  # noqa: E402
from rvm_training.train_step import Trainer, TrainState  # noqa: E402

SAME = 2e-5
"""Relative to the largest gradient of a parameter: float32 sums over some hundred tokens, in another order."""
BFLOAT16 = 0.06
"""Relative to the norm of a parameter's gradient: bfloat16 has 8 binary digits, and errors add up over the blocks."""
FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def quick_compiler() -> Iterator[None]:
    """Nothing here is timed, and most of the time is the compiler's."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def torch_gradients(config: PretrainConfig) -> tuple[float, dict[str, np.ndarray]]:
    model = build_model(config, seed=config.seed)
    loss = objective.loss(model, as_torch(random_batch(config)))
    loss.backward()
    return loss.item(), {name: numpy_gradient(value) for name, value in model.named_parameters()}


def numpy_gradient(parameter: torch.Tensor) -> np.ndarray:
    assert parameter.grad is not None
    return parameter.grad.numpy()


@cache
def jax_gradients(**changes: Any) -> tuple[float, dict[str, np.ndarray]]:
    config = tiny_config(**changes)
    trainer = one_device(config)
    loss, gradients = trainer.gradients(trainer.init(), trainer.place(random_batch(config)))
    return float(loss), {name: np.asarray(value) for name, value in gradients.items()}


def one_device(config: PretrainConfig) -> Trainer:
    return Trainer(config, jax.devices()[:1])


def assert_same(gradients: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        # Softmax does not see the bias of the keys: its gradient is rounding, and compared with that of the weights.
        largest = np.abs(expected[name.replace(".key.bias", ".key.weight")]).max()
        assert largest > 0, f"{name} has no gradient: the test compares nothing"
        np.testing.assert_allclose(gradients[name], value, rtol=0, atol=SAME * largest, err_msg=name)


@pytest.mark.parametrize(
    ("aggregator", "loops"),
    [("core", False), ("core", True), ("self_attention", True)],
    ids=["core", "core, scan and remat", "self-attention, scan and remat"],
)
def test_agrees_with_torch(aggregator: str, loops: bool) -> None:
    loss, gradients = jax_gradients(aggregator=aggregator, scan_layers=loops, remat=loops)
    expected_loss, expected = torch_gradients(tiny_config(aggregator=aggregator))
    assert loss == pytest.approx(expected_loss, rel=SAME)
    assert_same(gradients, expected)


def test_bfloat16_is_near_float32() -> None:
    loss, gradients = jax_gradients(compute_dtype="bfloat16", scan_layers=True, remat=True)
    expected_loss, expected = jax_gradients(aggregator="core", scan_layers=True, remat=True)
    assert loss == pytest.approx(expected_loss, rel=BFLOAT16)
    differences = {
        name: np.linalg.norm(gradients[name] - value) / np.linalg.norm(value)
        for name, value in expected.items()
        if not name.endswith(".key.bias")  # softmax does not see it: its gradient is rounding
    }
    assert max(differences.values()) < BFLOAT16, max(differences.items(), key=lambda item: item[1])
    assert max(differences.values()) > 10 * SAME, "nothing was computed in bfloat16"


def test_steps_are_those_of_torch() -> None:
    """Warm-up, clipping, decay of some, and two moments."""
    config = tiny_config()
    trainer, model = one_device(config), build_model(config, seed=config.seed)
    state, optimizer = trainer.init(), torch_optimizer(model, config.optimizer)
    schedule = learning_rate(config.optimizer)
    for step in range(3):
        batch = random_batch(config, seed=step)
        state, metrics = trainer.step(state, trainer.place(batch))
        for group in optimizer.param_groups:
            group["lr"] = float(cast(float, schedule(step)))
        optimizer.zero_grad()
        loss = objective.loss(model, as_torch(batch))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cast(float, config.optimizer.clip_norm))
        optimizer.step()
        assert float(metrics.loss) == pytest.approx(loss.item(), rel=SAME)
        assert float(metrics.gradient_norm) == pytest.approx(norm.item(), rel=10 * SAME)
        assert float(metrics.learning_rate) == pytest.approx(group["lr"])
    assert int(state.step) == 3
    trained, start = trainer.to_torch(state).state_dict(), build_model(config, seed=config.seed).state_dict()
    for name, value in model.state_dict().items():
        moved = (value - start[name]).abs().max().item()
        if not name.endswith(".key.bias"):  # its gradient is rounding, which the optimiser scales up
            np.testing.assert_allclose(trained[name], value, rtol=0, atol=0.01 * moved, err_msg=name)
    assert_state_is_usable(trainer, state, trainer.to_torch(state), random_batch(config))


def torch_optimizer(model: RVM, config: OptimizerConfig) -> torch.optim.AdamW:
    """With its own idea of what decays: all but vectors, tokens and the biases of attention."""
    parameters = dict(model.named_parameters())
    free = {name for name, value in parameters.items() if value.ndim == 1 or name.endswith(("_token", ".bias"))}
    groups = [
        {"params": [parameters[name] for name in parameters if name not in free], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in parameters if name in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=(config.b1, config.b2), eps=config.epsilon)


def assert_state_is_usable(trainer: Trainer, state: TrainState, model: RVM, batch: PretrainBatch) -> None:
    """The torch model of a state computes what the trainer computes with it."""
    with torch.no_grad():
        pixels, _ = objective.reconstruct(model, as_torch(batch))
        loss = objective.loss(model, as_torch(batch))
    placed = trainer.place(batch)
    np.testing.assert_allclose(trainer.reconstruct(state, placed), pixels, rtol=0, atol=SAME * 10)
    assert trainer.loss(state, placed) == pytest.approx(loss.item(), rel=SAME)


def test_the_loss_is_the_mean_over_all_pixels() -> None:
    config = tiny_config()
    batch, model = random_batch(config), build_model(config, seed=1)
    with torch.no_grad():
        pixels, target = objective.reconstruct(model, as_torch(batch))
        loss = objective.loss(model, as_torch(batch))
    expected = np.mean((pixels.numpy() - np.moveaxis(batch.target, -1, 2) / 255) ** 2)
    assert target.shape == (8, 3, 3, 48, 48)
    assert loss.item() == pytest.approx(expected, rel=SAME)


def test_names_and_start_are_those_of_the_torch_model() -> None:
    for config in (tiny_config(seed=3), tiny_config(aggregator="self_attention", scan_layers=True)):
        state, model = one_device(config).init(), build_model(config, seed=config.seed)
        expected = model.state_dict()
        assert state.parameters.keys() == expected.keys()
        for name, value in state.parameters.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_given_weights_are_left_alone() -> None:
    config = tiny_config()
    trainer = one_device(config)
    weights = {name: value.numpy() for name, value in build_model(config, seed=0).state_dict().items()}
    for name, value in trainer.from_weights(weights).parameters.items():
        assert value.unsafe_buffer_pointer() != weights[name].ctypes.data, name


def test_abstract_state_is_that_of_a_real_one() -> None:
    trainer = one_device(tiny_config())
    state, abstract = trainer.init(), trainer.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for real, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype, real.sharding) == (shape.shape, shape.dtype, shape.sharding)
    placed = trainer.place(random_batch(trainer.config))
    assert [(a.shape, a.dtype) for a in placed] == [(a.shape, a.dtype) for a in trainer.abstract_batch()]


def test_what_decays() -> None:
    for aggregator in ("core", "self_attention"):
        parameters = dict(build_model(tiny_config(aggregator=aggregator), seed=None).named_parameters())
        for name, value in parameters.items():
            expected = value.ndim > 1 and not name.endswith(("bias", "cls_token", "mask_token"))
            assert decays(name) == expected, name
    assert not decays("encoder.blocks.0.attention.query.bias"), "of shape (heads, channels), but a bias"
    assert decays("decoder.to_pixels.weight") and decays("encoder.patch_embedding.weight")


def test_schedule() -> None:
    schedule = learning_rate(OptimizerConfig(learning_rate=0.1, end_learning_rate=0.01, warmup_steps=10, steps=110))
    rates = [float(cast(float, schedule(step))) for step in (0, 1, 10, 60, 110, 500)]
    assert rates == pytest.approx([0, 0.01, 0.1, 0.055, 0.01, 0.01], abs=1e-7)
    without = learning_rate(OptimizerConfig(learning_rate=0.1, warmup_steps=0, steps=100))
    assert float(cast(float, without(0))) == pytest.approx(0.1)


def test_batch_must_divide() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 devices, got 8"):
        Trainer(tiny_config(), jax.devices()[:1] * 3)


def test_sharded_steps_agree() -> None:
    """On 1, 4 and 8 virtual devices, which a process must ask for before jax starts."""
    command = [sys.executable, str(FOLDER / "sharded_steps.py"), "1", "4", "8"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | flags | {"PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout.splitlines()[-1])
    assert one["share"] == 1
    for other in others:
        assert other["losses"] == pytest.approx(one["losses"], rel=SAME)
        assert other["gradient_error"] < SAME
        # Nearly everything is split, so a device holds little more than its share.
        assert 1 / other["devices"] <= other["share"] < 1.3 / other["devices"]

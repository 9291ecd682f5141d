"""The jax step of the masked autoencoders against torch in plain autograd, and a whole run of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the extra `train`")
optax = pytest.importorskip("optax", reason="needs the extra `train`")
pytest.importorskip("torchax", reason="needs the extra `train`")

from pretrain_examples import as_torch, random_batch, tiny_clip_config  # noqa: E402
from rvm_core.checkpoint import load_model  # noqa: E402
from rvm_training import objective, pretrain  # noqa: E402
from rvm_training.data.loader import make_loader  # noqa: E402
from rvm_training.peaks import Peak  # noqa: E402
from rvm_training.pretrain_config import DataConfig, OptimizerConfig, SourceConfig  # noqa: E402
from rvm_training.pretrain_model import build_model  # noqa: E402
from rvm_training.run_folder import RunFolder  # noqa: E402
from rvm_training.train_export import export_checkpoint  # noqa: E402
from rvm_training.train_log import read_scalars  # noqa: E402
from rvm_training.train_step import Trainer  # noqa: E402
from training_clips import numbered_clips, write_shards  # noqa: E402

SAME = 5e-5
"""Relative to the largest gradient of a parameter: float32 sums over some hundred tokens, in another order."""


@pytest.fixture(scope="module", autouse=True)
def quick_compiler() -> Iterator[None]:
    """Nothing here is timed, and most of the time is the compiler's."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@cache
def make_trainer(kind: str) -> Trainer:
    """Equal blocks are a loop, and computed again on the way back."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, steps=3)
    config = tiny_clip_config(
        kind, optimizer=optimizer, batch_size=2, scan_layers=True, remat=True, log_every=1, checkpoint_every=2
    )
    return Trainer(config, jax.devices()[:1])


@pytest.mark.parametrize("kind", ["trecvit_mae", "4ds_mae"])
def test_agrees_with_torch(kind: str) -> None:
    trainer = make_trainer(kind)
    config = trainer.config
    batch, model = random_batch(config), build_model(config, seed=config.seed)
    expected = objective.loss(model, as_torch(batch))
    expected.backward()
    state, metrics = trainer.step(trainer.init(), trainer.place(batch))
    assert float(metrics.loss) == pytest.approx(expected.item(), rel=SAME)
    # After the first step the first moment is the gradient, scaled.
    moments = optax.tree_utils.tree_get(state.optimizer, "mu")
    gradients = {name: np.asarray(moment) / (1 - config.optimizer.b1) for name, moment in moments.items()}
    parameters = dict(model.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        # Softmax does not see the bias of the keys: its gradient is rounding, and compared with that of the weights.
        reference = parameters[name.replace(".key.bias", ".key.weight")].grad
        assert parameter.grad is not None and reference is not None
        largest = float(reference.abs().max())
        assert largest > 0, f"{name} has no gradient: the test compares nothing"
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=0, atol=SAME * largest, err_msg=name)


@pytest.mark.parametrize("kind", ["trecvit_mae", "4ds_mae"])
def test_a_run_goes_on_and_its_weights_load(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path / "shards", numbered_clips(2, frames=12, size=48))
    data = DataConfig(sources=(SourceConfig(name="clips", path=str(shards)),))
    config = replace(make_trainer(kind).config, data=data)
    monkeypatch.setattr(pretrain, "Trainer", lambda config: make_trainer(kind))
    options = pretrain.RunOptions(
        folder=RunFolder(tmp_path / "run"), make_loader=make_loader, peak=Peak("test", 1e12), stop_after=2
    )
    assert pretrain.pretrain(config, options).step == 2
    outcome = pretrain.pretrain(config, replace(options, resume=True, stop_after=None))
    assert outcome.step == 3 and not outcome.interrupted
    rows = read_scalars(options.folder.scalars)
    assert [row["step"] for row in rows] == [1, 2, 3] and all(np.isfinite(row["loss"]) for row in rows)
    assert [path.name for path in sorted(options.folder.pictures.iterdir())] == ["00000002.png", "00000003.png"]
    assert json.loads(options.folder.config.read_text())["objective"] == kind
    path = tmp_path / "model.safetensors"
    exported = export_checkpoint(options.folder, 3, path)
    again = load_model(path)
    assert type(again) is type(exported) and again.config == config.model.encoder  # type: ignore[union-attr]
    start = build_model(config, seed=config.seed).pretrained().state_dict()
    assert any(not np.array_equal(value, start[name]) for name, value in again.state_dict().items())

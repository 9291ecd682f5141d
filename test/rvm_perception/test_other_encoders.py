"""TRecViT and RVM without memory wherever RVM is used: replay, its continuation, the live node, pictures and tracks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from readout_data import write_release
from rvm_core import cli, create_engine
from rvm_core.checkpoint import load_encoder, weights_hash
from rvm_core.config import ENCODER_NAMES
from rvm_core.trecvit import TRecViTState
from rvm_perception.parameters import NodeParameters
from rvm_perception.saved_state import load_value, save_value
from track_stand_ins import assert_identical
from video_clip import FRAMES, make_clip

RVM = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
TOLERANCE = 1e-3
"""Between live features and those computed directly, both float32 on one machine."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release("trecvit_tiny", tmp_path_factory.mktemp("weights"))


def test_every_encoder_is_a_choice_of_the_node() -> None:
    for name in ENCODER_NAMES:
        assert NodeParameters(model=name).model == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [
        TRecViTState(torch.rand(1, 2, 3, 5, 4), torch.rand(1, 2, 5, 4), torch.ones(1)),
        (torch.rand(2), torch.ones(1)),
        (),
    ],
    ids=["named", "plain", "none"],
)
def test_states_are_saved(tmp_path: Path, state: Any) -> None:
    save_value(tmp_path / "state", state)
    assert_identical(load_value(tmp_path / "state"), state)


def of_encoder(parameters: NodeParameters, weights: Path, model: str) -> NodeParameters:
    return replace(parameters, weights=str(weights), model=model)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["trecvit", "image"])
def test_replay_goes_on_where_it_was_stopped(tmp_path: Path, weights: Path, kind: str) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from bag_files import PARAMETERS, clip_bag
    from rvm_perception.replay import Interrupted
    from rvm_perception.replay_job import ReplayOptions, make_stepper, replay_bag

    path, model = (weights, "rvm_s16") if kind == "trecvit" else (RVM, "rvm_s16_image")
    parameters = of_encoder(PARAMETERS, path, model)
    stepper = make_stepper(parameters, print)
    options = ReplayOptions(film=False, report=False, quiet=True)
    bag = clip_bag(tmp_path, frames=6)
    turns = 0

    def stop() -> bool:
        nonlocal turns
        turns += 1
        return turns > 4

    whole = replay_bag(bag, tmp_path / "whole", parameters, lambda: stepper, options)
    with pytest.raises(Interrupted):
        replay_bag(bag, tmp_path / "parts", parameters, lambda: stepper, options, is_stopped=stop)
    parts = replay_bag(bag, tmp_path / "parts", parameters, lambda: stepper, replace(options, resume=True))
    assert whole.engine.model == ("trecvit_custom" if kind == "trecvit" else "rvm_custom_image")
    assert whole.fingerprint == parts.fingerprint
    with (
        np.load(tmp_path / "whole/camera/features.npz") as first,
        np.load(tmp_path / "parts/camera/features.npz") as second,
    ):
        assert len(first["features"]) == 6
        np.testing.assert_array_equal(first["features"], second["features"])


def test_live_node_steps_trecvit(ros_environment: dict[str, str], clip: list[np.ndarray], weights: Path) -> None:
    pytest.importorskip("rclpy", reason="ROS is not installed")
    from live_node import Client, NodeProcess, image
    from rvm_core import Preprocess
    from rvm_perception import feature_map_to_numpy

    size = (64, 128)
    parameters: dict[str, Any] = {
        "input_reliability": "reliable", "device": "cpu", "backend": "torch", "precision": "fp32",
        "height": size[0], "width": size[1], "weights": str(weights), "model": "trecvit_b16",
    }  # fmt: skip
    model = load_encoder(weights)
    engine = create_engine(model, backend="torch", precision="fp32", image_size=size, device="cpu")
    preprocess, state = Preprocess(height=size[0], width=size[1], policy="letterbox"), engine.init_state()
    with NodeProcess(ros_environment, name="trecvit", **parameters), Client("trecvit") as client:
        client.wait_for_node()
        for i, frame in enumerate(clip[:5]):
            message = client.exchange(image(frame, i))
            features, state = engine.step(preprocess(np.ascontiguousarray(frame[..., ::-1]))[None], state)
            grid = feature_map_to_numpy(message)
            assert np.abs(grid - features[0, 1:].numpy().reshape(grid.shape)).max() < TOLERANCE
            assert (message.model, message.weights_hash) == ("trecvit_custom", weights_hash(model))


@pytest.mark.parametrize("kind", ["trecvit", "image"])
def test_features_are_shown(tmp_path: Path, weights: Path, kind: str) -> None:
    pytest.importorskip("av", reason="films are written with PyAV (extra: demo)")
    chosen = {"trecvit": ["--weights", str(weights)], "image": ["--weights", str(RVM), "--model", "rvm_s16_image"]}
    engine = ["--backend", "torch", "--precision", "fp32", "--size", "48x80"]
    out = tmp_path / "out"
    arguments = ["show", str(make_clip(tmp_path)), "--out", str(out), "--views", "pca", *chosen[kind], *engine]
    assert cli.main(arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == FRAMES
    assert summary["model"] == ("trecvit_custom" if kind == "trecvit" else "rvm_custom_image")


def test_weights_are_told_and_converted(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "converted.safetensors"
    assert cli.main(["weights", "convert", str(weights), str(target)]) == 0
    assert "trecvit_custom, with classifier" in capsys.readouterr().out
    assert cli.main(["weights", "info", "--json", str(target)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == "trecvit_custom" and shown["config"]["classes"] == 10
    assert shown["weights_hash"] == weights_hash(load_encoder(weights))
    assert cli.main(["weights", "info", str(weights)]) == 0
    assert "recurrent_width 128" in capsys.readouterr().out

"""The weights that ship: they are of the model that the experiment trains, and have learnt what it asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rvm_core import load_checkpoint
from rvm_core.config import PATCH_SIZE
from rvm_core.model import RVM
from rvm_core.tracking import create_tracker
from rvm_core.weights import find_weights
from rvm_training import objective
from rvm_training.config_files import load_config
from rvm_training.data.sampling import draw_frames, draw_visible
from rvm_training.data.scenes import SceneConfig, generate_scene
from rvm_training.eval_report import make_report
from rvm_training.evaluation.frame_encoder import model_step
from rvm_training.evaluators.synthetic import Evaluation, Method, evaluate
from rvm_training.pretrain_batch import PretrainBatch

CONFIG = load_config("rvm_nano")
SCENES = range(3_000_000, 3_000_008)
"""Seeds that neither training nor its evaluation uses."""
SHARE_OF_MEAN_COLOUR = 0.65
"""Of the error of a frame's mean colour, the model's own is at most so much; it is 0.56."""
SHARE_OF_COPY = 0.65
"""Of the error of the last source frame in the target's place; it is 0.55."""
WITHOUT_SOURCES = 1.7
"""With another clip's source frames the error grows at least by this factor; it is 2.0."""
LEAST_BOX_IOU = 0.5
"""Mean over the boxes; it is 0.62."""
LEAST_POSITION_ACCURACY = 0.25
"""Of TAP-Vid; it is 0.31."""


@pytest.fixture(scope="module")
def nano() -> RVM:
    return load_checkpoint(find_weights("rvm_nano"), decoder=True)


@pytest.fixture(scope="module")
def batch() -> PretrainBatch:
    sampling, random = CONFIG.rvm_sampling, np.random.default_rng(0)
    size = sampling.image_size
    config = SceneConfig(height=size, width=size, num_frames=sampling.source_frames + sampling.max_gap)
    sources, targets, gaps, visible = [], [], [], []
    for seed in SCENES:
        video = generate_scene(config, seed).video
        drawn = draw_frames(random, sampling, len(video))
        sources.append(video[drawn.source])
        targets.append(video[drawn.target])
        gaps.append(drawn.gaps)
        visible.append(draw_visible(random, sampling, sampling.targets))
    return PretrainBatch(*(torch.from_numpy(np.stack(part)) for part in (sources, targets, gaps, visible)))


def test_it_is_the_model_of_the_experiment(nano: RVM) -> None:
    assert nano.config == CONFIG.rvm_model and nano.config.name == "rvm_nano"


@torch.inference_mode()
def test_it_reconstructs_later_frames_of_new_scenes(nano: RVM, batch: PretrainBatch) -> None:
    target = objective.to_unit(batch.target)
    loss = float(objective.loss(nano, batch))
    mean_colour = float((target - target.mean(dim=(2, 3), keepdim=True)).square().mean())
    copied = float((target - objective.to_unit(batch.source[:, -1:])).square().mean())
    assert loss < SHARE_OF_MEAN_COLOUR * mean_colour
    assert loss < SHARE_OF_COPY * copied


@torch.inference_mode()
def test_it_looks_at_the_source_frames(nano: RVM, batch: PretrainBatch) -> None:
    others = batch._replace(source=batch.source.roll(1, dims=0))
    assert float(objective.loss(nano, others)) > WITHOUT_SOURCES * float(objective.loss(nano, batch))


def test_its_readouts_follow_points_and_boxes_of_new_scenes(nano: RVM) -> None:
    config = SceneConfig(num_frames=16, num_points=16)
    grid = (config.height // PATCH_SIZE, config.width // PATCH_SIZE)
    tracker = create_tracker(grid, nano.config.width, point_head="rvm_nano_points", box_head="rvm_nano_boxes")
    evaluation = Evaluation(config, ["readouts"])
    evaluate(
        [Method("readouts", tracker, model_step(nano), lambda: None)], evaluation, SCENES[:4], lambda text, done: None
    )
    (row,) = make_report(evaluation, {}, {}, interrupted=False)["rows"]
    assert row["box_iou"] > LEAST_BOX_IOU
    assert row["position_accuracy"] > LEAST_POSITION_ACCURACY

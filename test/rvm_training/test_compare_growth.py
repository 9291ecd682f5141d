"""Latency and memory against the number of frames seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from rvm_core.checkpoint import save_checkpoint
from rvm_core.config import FourDSConfig
from rvm_core.fourds import FourDS
from rvm_core.layers import EncoderBlock
from rvm_training.compare_growth import (
    ALL,
    STEP,
    WINDOW,
    GrowthJob,
    GrowthPoint,
    Task,
    from_json,
    measure_growth,
    points_up_to,
    to_json,
    ways_of,
)
from rvm_training.compare_models import Source


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "fourds.safetensors"
    # Of two blocks none would be run: the features are those before the last but one.
    config = FourDSConfig(width=32, depth=4, heads=2, mlp_width=64, position_grid=(2, 4, 4))
    save_checkpoint(FourDS(config), path)
    return path


def job(path: Path, *points: int, **options: float) -> GrowthJob:
    return GrowthJob(spec=str(path), source=Source(), image_size=(64, 64), points=points, **options)


def test_points_double_and_end_with_the_number_itself() -> None:
    assert points_up_to(64) == (1, 2, 4, 8, 16, 32, 64)
    assert points_up_to(20) == (1, 2, 4, 8, 16, 20)
    assert points_up_to(1) == (1,)
    with pytest.raises(ValueError, match="1 or more frames, got 0"):
        points_up_to(0)


def test_only_clip_encoders_have_windows() -> None:
    assert ways_of("recurrent") == ways_of("image") == ways_of("pixels") == (STEP,)
    assert ways_of("clip") == (WINDOW, ALL)


def test_all_frames_are_encoded_again(clip_path: Path) -> None:
    task = Task(job(clip_path, 1, 64), ALL)
    tokens: list[int] = []
    hook = register_module_forward_pre_hook(
        lambda module, inputs: tokens.append(inputs[0].shape[1]) if isinstance(module, EncoderBlock) else None
    )
    try:
        task.measure(1)
        few = max(tokens)
        many = task.measure(64)
    finally:
        hook.remove()
    assert (many.frames, many.way) == (64, ALL)
    assert max(tokens) == 32 * few


def test_a_window_has_the_same_frames_however_many_were_seen(clip_path: Path) -> None:
    task = Task(job(clip_path, 1, 64), WINDOW)
    seen: list[tuple[int, ...]] = []
    model = task._compared.model
    assert model is not None
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))  # type: ignore[union-attr]
    task.measure(1)
    task.measure(64)
    assert set(seen) == {(1, 4, 3, 64, 64)}


def test_steps_go_on_from_point_to_point(tiny_path: Path) -> None:
    task = Task(job(tiny_path, 1, 2, 5), STEP)
    steps = 0
    model = task._compared.model

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_pre_hook(count)  # type: ignore[union-attr]
    points = [task.measure(frames) for frames in (1, 2, 5)]
    assert steps == 5
    assert all(point.ms > 0 and point.peak_mb > 50 for point in points)


def test_each_way_is_measured_in_a_process_and_ends_where_it_gets_too_slow(clip_path: Path) -> None:
    told: list[str] = []
    points, problems = measure_growth(job(clip_path, 1, 2, 4, most_seconds=1e-9), "clip", told.append)
    assert [(point.way, point.frames) for point in points] == [(WINDOW, 1), (ALL, 1)]
    assert [problem.partition(", which")[0] for problem in problems] == [
        f"{way}: not measured beyond 1 frames" for way in (WINDOW, ALL)
    ]
    assert told == [f"{WINDOW}, 1 frames", f"{ALL}, 1 frames"]


def test_a_model_that_fails_is_told(tmp_path: Path) -> None:
    points, problems = measure_growth(job(tmp_path / "gone.npz", 1, 2), "recurrent", lambda text: None)
    assert points == []
    assert len(problems) == 1 and "no checkpoint at" in problems[0]


def test_points_go_through_json() -> None:
    points = [GrowthPoint(way=STEP, frames=4, ms=1.5, peak_mb=300.0)]
    assert from_json(to_json(points)) == points
    with pytest.raises(TypeError):
        from_json([{"way": STEP}])

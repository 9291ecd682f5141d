"""The frame memory task: what the models see, equal budgets, going on, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvm_core.decoder import join_patches
from rvm_core.exit_codes import DONE, INTERRUPTED
from rvm_training import frame_memory as module
from rvm_training.frame_memory import (
    LAST,
    MEAN,
    Clips,
    FrameMemory,
    FrameMemoryError,
    baseline_scores,
    open_folder,
    psnr,
    read_results,
    run_task,
    tasks,
)
from rvm_training.frame_memory_clips import SCENES, MemoryClipError, load_clips
from rvm_training.frame_memory_model import MODELS, Rememberer
from rvm_training.frame_memory_report import make_report, make_table
from rvm_training.run_folder import RunFolder
from rvm_training.train_cli import main
from training_clips import frame_of, numbered_clips, write_shards

SAME = 1e-4
"""float32 sums in another order, over some layers and frames."""
TINY = FrameMemory(
    sources={"clips": "clips"}, seeds=(0,), remembered=2, train_frames=4, test_frames=(3, 4, 6), image_size=16,
    width=16, train_clips=4, test_clips=2, steps=3, batch_size=2, single=0, grown=0, learning_rate=1e-3,
)  # fmt: skip
CPU = torch.device("cpu")


def random_clips(memory: FrameMemory) -> Clips:
    shape = (memory.clip_frames, memory.image_size, memory.image_size, 3)
    random = np.random.default_rng(0)
    return Clips(*(random.integers(0, 256, (n, *shape), np.uint8) for n in (memory.train_clips, memory.test_clips)))


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_what_is_painted_is_of_the_frames_that_were_seen(name: str) -> None:
    model = Rememberer(name, width=16, image_size=32, seed=0)
    frames = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    painted = model(frames, (2, 5))
    assert painted.shape == (2, 2, 3, 32, 32)
    torch.testing.assert_close(model(frames[:, :2], (2,)), painted[:, :1], rtol=0, atol=SAME)
    changed = frames.clone()
    changed[:, 2:] = 0
    again = model(changed, (2, 5))
    torch.testing.assert_close(again[:, 0], painted[:, 0], rtol=0, atol=SAME)
    assert not torch.allclose(again[:, 1], painted[:, 1], atol=SAME)


@torch.inference_mode()
def test_all_start_with_as_many_weights_and_their_features_are_those_of_steps() -> None:
    models = [Rememberer(name, width=64, image_size=64, seed=0) for name in MODELS]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert max(sizes) < 1.1 * min(sizes), sizes
    for name in MODELS:
        model = Rememberer(name, width=16, image_size=32, seed=0)
        frames = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        state = model.encoder.init_state(1, 32, 32)
        for frame in frames.unbind(1):
            features, state = model.encoder(frame, state)
        expected = join_patches(model.readout(features[:, 1:]), (2, 2))
        torch.testing.assert_close(model(frames, (4,))[:, 0], expected, rtol=0, atol=SAME)


def test_psnr() -> None:
    truth = torch.full((2, 3, 16, 16), 0.5)
    painted = truth.clone()
    painted[1] += 0.1
    assert psnr(painted, truth).tolist() == pytest.approx([100, 20], abs=1e-3)
    assert float(psnr(truth + 9, torch.ones_like(truth))[0]) == pytest.approx(100), "painted pixels are clipped"


def test_baselines() -> None:
    """Frames of one grey each: 0.1 times their number."""
    levels = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) * 255
    clips = np.broadcast_to(levels.round().astype(np.uint8).reshape(1, 6, 1, 1, 1), (2, 6, 16, 16, 3)).copy()
    scores = baseline_scores(TINY, clips)
    assert scores[LAST]["4"] == pytest.approx(-20 * np.log10(0.2), abs=0.1)
    assert scores[MEAN]["6"] == pytest.approx(-20 * np.log10(0.15), abs=0.1)
    assert scores[MEAN]["3"] == pytest.approx(100, abs=60) and scores[MEAN]["3"] > 40


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_to_remember(name: str, tmp_path: Path) -> None:
    """Clips that are black or white, and later black or white again: only memory tells how they began. Without it grey
    is the best, and has 6 dB."""
    memory = replace(TINY, models=(name,), test_frames=(4,), steps=120, batch_size=16, learning_rate=1e-2)
    random = np.random.default_rng(0)
    clips = np.empty((264, 4, 16, 16, 3), np.uint8)
    clips[:, :2] = 255 * random.integers(0, 2, (264, 1, 1, 1, 1))
    clips[:, 2:] = 255 * random.integers(0, 2, (264, 1, 1, 1, 1))
    (task,) = tasks(memory)
    assert run_task(memory, task, Clips(train=clips[8:], test=clips[:8]), tmp_path, device=CPU)
    (result,) = read_results(memory, tmp_path)
    assert result["psnr"]["4"] > 12


@pytest.mark.parametrize("name", MODELS)
def test_a_training_in_two_parts_is_that_in_one(name: str, tmp_path: Path) -> None:
    memory, clips = replace(TINY, models=(name,)), random_clips(TINY)
    (task,) = tasks(memory)
    assert run_task(memory, task, clips, tmp_path / "whole", device=CPU)
    asked = iter([False, False, True])
    assert not run_task(memory, task, clips, tmp_path / "parts", device=CPU, is_stopped=lambda: next(asked))
    assert read_results(memory, tmp_path / "parts") == []
    steps: list[int] = []
    show = lambda step, loss: steps.append(step)  # noqa: E731
    assert run_task(memory, task, clips, tmp_path / "parts", device=CPU, show=show)
    assert steps == [3], "it went on after the second step"
    assert read_results(memory, tmp_path / "parts") == read_results(memory, tmp_path / "whole")
    assert run_task(memory, task, clips, tmp_path / "parts", device=CPU, show=show) and steps == [3]


def test_all_models_see_the_same_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory, clips = replace(TINY, steps=2), random_clips(TINY)
    seen: dict[str, list[Any]] = {name: [] for name in MODELS}
    forward = Rememberer.forward

    def spy(self: Rememberer, frames: torch.Tensor, after: tuple[int, ...]) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            seen["rvm" if hasattr(self.encoder, "core") else "trecvit"].append(frames.clone())
            assert frames.shape[1] == 4 and after == (4,)
        return forward(self, frames, after)

    monkeypatch.setattr(Rememberer, "forward", spy)
    for task in tasks(memory):
        run_task(memory, task, clips, tmp_path, device=CPU)
    assert len(seen["rvm"]) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen["rvm"], seen["trecvit"], strict=True))


def test_clips_get_longer() -> None:
    memory = replace(TINY, remembered=4, train_frames=8, test_frames=(8,), steps=10, single=0.2, grown=0.6)
    assert [memory.frames_of_step(step) for step in range(10)] == [1, 1, 4, 5, 6, 7, 8, 8, 8, 8]
    at_once = replace(memory, single=0, grown=0)
    assert {at_once.frames_of_step(step) for step in range(10)} == {8}


def test_a_step_paints_the_remembered_frame_or_the_only_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = replace(TINY, models=("rvm",), single=0.3, grown=0.6)
    seen: list[Any] = []
    errors: list[float] = []

    def black(self: Rememberer, frames: torch.Tensor, after: tuple[int, ...]) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append((tuple(frames.shape[:2]), after))
            errors.append(frames[:, 1 if frames.shape[1] > 1 else 0].square().mean().item())
        return torch.zeros(len(frames), len(after), *frames.shape[2:], requires_grad=True)

    monkeypatch.setattr(Rememberer, "forward", black)
    losses: list[float] = []
    show = lambda step, loss: losses.append(loss)  # noqa: E731
    assert run_task(memory, tasks(memory)[0], random_clips(memory), tmp_path, device=CPU, show=show)
    assert seen == [((4, 1), (1,)), ((2, 2), (2,)), ((2, 4), (4,))]
    assert losses == pytest.approx(errors) and len(set(losses)) == 3


def test_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Rememberer, "forward", lambda self, frames, after: frames[:, :1] * float("nan"))
    with pytest.raises(FrameMemoryError, match="loss nan in step 1"):
        run_task(TINY, tasks(TINY)[0], random_clips(TINY), tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"models": ("lstm",)}, "unknown models lstm; known models: rvm, trecvit"),
        ({"remembered": 4}, "frame 4 must have been seen"),
        ({"test_frames": (6, 4)}, "test_frames must rise"),
        ({"image_size": 20}, "multiples of 16"),
        ({"sources": {}}, "at least one source"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"single": 0.5, "grown": 0.4}, "expected 0 <= single <= grown <= 1, got 0.5 and 0.4"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FrameMemoryError, match=message):
        replace(TINY, **changes)


def test_a_folder_keeps_its_plan(tmp_path: Path) -> None:
    open_folder(TINY, tmp_path / "a")
    open_folder(TINY, tmp_path / "a")
    with pytest.raises(FrameMemoryError, match="holds another comparison"):
        open_folder(replace(TINY, steps=4), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo").touch()
    with pytest.raises(FrameMemoryError, match="is not empty"):
        open_folder(TINY, tmp_path / "b")


def test_clips_are_pieces_of_a_folder(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", numbered_clips(2, frames=10, size=32))
    clips = load_clips(str(shards), 8, apart=1, frames=4, size=16)
    assert clips.shape == (8, 4, 16, 16, 3)
    numbers = [[(frame_of(frame[..., 1]), frame_of(frame[..., 0])) for frame in clip] for clip in clips]
    begins = [(0, 0), (0, 4), (0, 5), (0, 6), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert numbers == [[(clip, begin + step) for step in range(4)] for clip, begin in begins]
    with pytest.raises(MemoryClipError, match="has 4 clips of 4 frames, and 5 are wanted"):
        load_clips(str(shards), 5, apart=5, frames=4, size=16)
    scenes = load_clips(SCENES, 2, apart=1, frames=3, size=32)
    assert scenes.shape == (2, 3, 32, 32, 3) and not np.array_equal(scenes[0], scenes[1])


def test_report_of_what_is_there() -> None:
    results = [
        {"source": "clips", "model": "rvm", "seed": s, "parameters": 2000, "psnr": {"3": 20.0 + s, "4": 25, "6": 10}}
        for s in (0, 1)
    ]
    memory = replace(TINY, seeds=(0, 1))
    baselines = {"clips": {LAST: {"3": 5.0, "4": 5.0, "6": 5.0}}}
    report = make_report(memory, results, baselines, {})
    table = make_table(report)
    assert "| clips | rvm | 2 k | 20.5 (20.0..21.0) | 25.0 (25.0..25.0) | 10.0 (10.0..10.0) |" in table
    assert "| clips | last frame | - | 5.0 | 5.0 | 5.0 |" in table
    assert not report["complete"] and "NOT COMPLETE" in table and "trecvit" not in table


@pytest.mark.parametrize("jobs", [1, 2])
def test_command(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["frame-memory", "--out", str(out), "--seeds", "1", "--remembered", "2", "--train-frames", "4"]
    arguments += ["--test-frames", "4", "6", "--size", "32", "--width", "16", "--train-clips", "2", "--test-clips", "2"]
    arguments += ["--steps", "2", "--batch", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_task", lambda *args, **options: False)
        assert main(arguments) == INTERRUPTED
        assert "NOT COMPLETE" in capsys.readouterr().out
    assert main([*arguments, "--jobs", str(jobs)]) == DONE
    printed = capsys.readouterr().out
    assert "| scenes | trecvit | " in printed and "| scenes | mean frame | - | " in printed
    report = json.loads((out / "frame_memory.json").read_text())
    assert report["complete"] and len(report["rows"]) == 4
    assert (out / "frame_memory.md").read_text() in printed
    assert (out / "frame_memory.png").stat().st_size > 1000
    with RunFolder(out).alone():
        assert main(arguments) != DONE
        assert "another process trains in" in capsys.readouterr().err
    assert main([*arguments, "--no-scenes"]) != DONE

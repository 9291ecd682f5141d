"""The recurrent readout: its parts, that it trains, and that it can be exported."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rvm_core.heads import PointOutput
from rvm_core.recurrent_readout import (
    RecurrentReadout,
    RecurrentReadoutConfig,
    TrackKind,
    TrackState,
    cell_centers,
    cell_shares,
)
from rvm_training.losses import point_loss

EXACT = 1e-5
"""Between two ways of ours to the same float32 result."""

GRID, WIDTH, FRAMES, CLIPS = (6, 5), 12, 6, 16
ITERATIONS = 170


class Scene(NamedTuple):
    """Clips with one track each."""

    tokens: Tensor
    """(B, T, N+1, D)."""
    positions: Tensor
    """(B, T, 1, C)."""
    visible: Tensor
    """bool (B, T, 1); always in the first frame."""


def make_scene(generator: torch.Generator, kind: TrackKind) -> Scene:
    """A patch of features of its own moves over others and is hidden now and then.

    Half of the channels are noise, stronger than the rest and new in each frame, so that likeness alone fails.
    """

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    half = rand(CLIPS, 1, 2) * 0.1 + 0.15 if kind == "boxes" else torch.full((CLIPS, 1, 2), 0.15)
    velocity = (rand(CLIPS, 1, 2) - 0.5) * 0.14
    center = rand(CLIPS, 1, 2) * 0.3 + 0.35 + velocity * torch.arange(FRAMES)[None, :, None]
    visible = rand(CLIPS, FRAMES) > 0.2
    visible[:, 0] = True
    centers = cell_centers(GRID, center)
    outside = ((centers - center[:, :, None]).abs() - half[:, :, None]).amax(-1)
    share = (torch.sigmoid(-outside * 30) * visible[..., None])[..., None]
    look = torch.randn(CLIPS, 1, 1, WIDTH // 2, generator=generator)
    background = torch.randn(CLIPS, 1, len(centers), WIDTH // 2, generator=generator)
    noise = 1.5 * torch.randn(CLIPS, FRAMES, len(centers), WIDTH // 2, generator=generator)
    cells = torch.cat((share * look + (1 - share) * background, noise), dim=-1)
    positions = center if kind == "points" else torch.cat((center - half, center + half), dim=-1)
    return Scene(F.pad(cells, (0, 0, 1, 0)), positions[:, :, None], visible[:, :, None])


def follow(readout: RecurrentReadout, scene: Scene) -> PointOutput:
    """The readout over the frames after the first."""
    state = readout.start(scene.tokens[:, 0], scene.positions[:, 0], GRID)
    outputs = []
    for tokens in scene.tokens[:, 1:].unbind(1):
        output, state = readout(tokens, state, GRID)
        outputs.append(output)
    return PointOutput(*(torch.stack(parts, dim=1) for parts in zip(*outputs, strict=True)))


def square_errors(readout: RecurrentReadout, kind: TrackKind) -> tuple[float, float]:
    """Of the readout and of doing nothing, over new clips, where the track is visible."""
    generator = torch.Generator().manual_seed(1)
    errors = torch.zeros(2)
    for _ in range(8):
        scene = make_scene(generator, kind)
        truth, visible = scene.positions[:, 1:], scene.visible[:, 1:]
        with torch.no_grad():
            positions = follow(readout, scene).positions
        for i, said in enumerate((positions, scene.positions[:, :1])):
            errors[i] += (said - truth).square().mean(-1)[visible].mean()
    return float(errors[0]) / 8, float(errors[1]) / 8


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_training_beats_standing_still(kind: TrackKind) -> None:
    readout = RecurrentReadout(
        RecurrentReadoutConfig(features=WIDTH, kind=kind, channels=32, num_heads=4, fourier_bases=4), seed=1
    )
    untrained, still = square_errors(readout, kind)
    assert untrained > still / 2, "the task must not be solved before training"
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(readout.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=ITERATIONS)
    for _ in range(ITERATIONS):
        scene = make_scene(generator, kind)
        loss = point_loss(follow(readout, scene), scene.positions[:, 1:], scene.visible[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(readout.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    trained, _ = square_errors(readout, kind)
    assert trained < still / 3
    assert trained < untrained / 3


def test_untrained_readout_finds_the_same_features() -> None:
    """A cell with features of its own moves; nothing else changes."""
    readout = RecurrentReadout(RecurrentReadoutConfig(features=64, channels=64))
    generator = torch.Generator().manual_seed(0)
    tokens, own = torch.randn(1, 31, 64, generator=generator), torch.randn(64, generator=generator)
    before, after = tokens.clone(), tokens.clone()
    before[0, 1 + 7] = own
    after[0, 1 + 23] = own
    centers = cell_centers(GRID, tokens)
    with torch.no_grad():
        state = readout.start(before, centers[7].reshape(1, 1, 2), GRID)
        output, _ = readout(after, state, GRID)
    assert torch.allclose(output.positions[0, 0], centers[23], atol=0.02)


def test_every_parameter_is_trained() -> None:
    for kind in ("points", "boxes"):
        readout = RecurrentReadout(RecurrentReadoutConfig(features=WIDTH, kind=kind, channels=16, num_heads=2))
        scene = make_scene(torch.Generator().manual_seed(0), kind)
        torch.nn.init.normal_(readout.offset.weight)
        point_loss(follow(readout, scene), scene.positions[:, 1:], scene.visible[:, 1:]).backward()
        for name, parameter in readout.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # A bias of keys shifts all scores alike.
            assert parameter.grad.any() or name == "attention.key.bias", name


def test_tracks_do_not_see_each_other() -> None:
    readout = RecurrentReadout(RecurrentReadoutConfig(features=WIDTH, channels=16, num_heads=2))
    first, second, queries = torch.randn(2, 31, WIDTH), torch.randn(2, 31, WIDTH), torch.rand(2, 7, 2)
    output, _ = readout(second, readout.start(first, queries, GRID), GRID)
    alone, _ = readout(second, readout.start(first, queries[:, 3:4], GRID), GRID)
    assert all(torch.allclose(a[:, 3:4], b, atol=EXACT) for a, b in zip(output, alone, strict=True))


def test_shares_of_points_are_bilinear() -> None:
    rows, columns = GRID
    plane = torch.rand(rows, columns)
    points = torch.rand(1, 50, 2) * 0.6 + 0.2
    expected = F.grid_sample(plane[None, None], points[:, None] * 2 - 1, align_corners=False)
    assert torch.allclose(cell_shares(points, GRID) @ plane.flatten(), expected[0, 0], atol=EXACT)


def test_shares_of_boxes_are_areas() -> None:
    box = torch.tensor([[[1 / 5, 1 / 6, 3.5 / 5, 2 / 6]]])
    shares = cell_shares(box, GRID).reshape(GRID)
    expected = torch.zeros(GRID)
    expected[1, 1:4] = torch.tensor([1, 1, 0.5]) / 2.5
    assert torch.allclose(shares, expected, atol=EXACT)


def test_shares_at_the_border_are_whole() -> None:
    corners = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    shares = cell_shares(corners, GRID)[0]
    assert torch.allclose(shares[[0, 1], [0, 29]], torch.ones(2))


def test_export_traces_a_step() -> None:
    readout = RecurrentReadout(RecurrentReadoutConfig(features=WIDTH, kind="boxes", channels=16, num_heads=2)).eval()
    tokens, queries = torch.randn(1, 31, WIDTH), torch.tensor([[[0.1, 0.2, 0.4, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    state = readout.start(tokens, queries, GRID)

    class Step(torch.nn.Module):
        """Named tuples apart, for the exporter."""

        def __init__(self) -> None:
            super().__init__()
            self.readout = readout

        def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            output, new = self.readout(tokens, TrackState(*state), GRID)
            return (*output, *new)

    inputs = (tokens + 1, *(part.detach() for part in state))
    program = torch.export.export(Step(), inputs)
    with torch.no_grad():
        for got, wanted in zip(program.module()(*inputs), Step()(*inputs), strict=True):
            assert torch.allclose(got, wanted, atol=EXACT)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kind": "masks"}, "kind must be points or boxes, got 'masks'"),
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"num_heads": 7}, "num_heads must divide channels, got 7 and 256"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentReadoutConfig(features=8, **sizes)  # type: ignore[arg-type]

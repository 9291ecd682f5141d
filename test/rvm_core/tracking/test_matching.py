"""The best matches: what screening finds is what float32 finds, whatever the features are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from rvm_core.tracking import matching
from rvm_core.tracking.matching import Context, FrameKeys, Matches, Workspace

SCORE = 1e-5
"""Between two float32 sums of some hundred products of unit vectors; they differ by 2e-6 through their order."""


@pytest.fixture(autouse=True, scope="module")
def always_screen() -> Iterator[None]:
    """Small frames too, as long as their keys can be screened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_SCREEN_FROM", 0)
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def mixed(frames: Tensor, other: Tensor) -> Tensor:
    """Frames of which the first and every third is of another kind."""
    frames = frames.clone()
    frames[::3] = other[::3]
    return frames


def halves(frames: Tensor, value: float) -> Tensor:
    """Frames of which every second cell is the constant `value`."""
    frames = frames.clone()
    frames[:, ::2] = value
    return frames


FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "independent": lambda x: x,
    "positive": lambda x: x.abs(),
    "near duplicates": lambda x: x[:1] + 1e-3 * x,
    "exact duplicates": lambda x: x[:1].expand_as(x),
    "few places": lambda x: x[:1, torch.arange(x.shape[1]) % 5] + 1e-4 * x,
    "common mean": lambda x: 10 * x[0, 0] + x,
    "huge common mean": lambda x: 300 * x[0, 0] + x,
    "drift": lambda x: x[:1] + torch.arange(len(x))[:, None, None] * x[0, 0] + 0.3 * x,
    "opposite frames": lambda x: (-1.0) ** torch.arange(len(x))[:, None, None] * x[0, 0] + 0.01 * x,
    "opposite cells": lambda x: (-1.0) ** torch.arange(x.shape[1])[:, None] * x[0, 0] + 0.01 * x,
    "all equal": lambda x: x[0, 0].expand_as(x),
    "some equal": lambda x: halves(x, 1.0),
    "zeros": lambda x: halves(x, 0.0),
    "all zero": torch.zeros_like,
    "one of many scales": lambda x: x * 10.0 ** torch.arange(-3, 4).repeat(len(x[0, 0]))[: len(x[0, 0])],
    "signs": torch.sign,
    "another kind between": lambda x: mixed(50 * x[0, 0] + x, x),
}
"""From noise (T, N, D) to features (T, N, D)."""


def keys_of(features: Tensor, *, screen: bool = True) -> list[FrameKeys]:
    return [FrameKeys.of(frame, screen=screen) for frame in features]


def true_scores(query: FrameKeys, frames: Sequence[FrameKeys], near: Tensor | None) -> Tensor:
    """float64 (N, M)."""
    scores = query.exact.double() @ torch.cat([frame.exact for frame in frames]).double().T
    return scores if near is None else scores.masked_fill(~near.repeat(1, len(frames)), -torch.inf)


def assert_best(matches: Matches, scores: Tensor, k: int) -> None:
    """These are the k best of scores (N, M), up to those that are equal."""
    expected = scores.topk(min(k, scores.shape[1])).values
    assert matches.score.dtype == torch.float32 and matches.cell.dtype == torch.int64
    torch.testing.assert_close(matches.score.double(), expected, atol=SCORE, rtol=0)
    of_cells = scores.gather(1, matches.cell)
    torch.testing.assert_close(of_cells, matches.score.double(), atol=SCORE, rtol=0)
    found = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, matches.cell, True)
    assert (found.sum(1) == matches.cell.shape[1]).all(), "a cell counts twice"
    surely = scores > expected[:, -1:] + SCORE
    assert (found | ~surely).all(), "a match is missing"


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 7),
    cells=st.integers(1, 80),
    width=st.sampled_from([1, 3, 16, 64, 200]),
    k=st.integers(1, 10),
    radius=st.one_of(st.none(), st.integers(1, 30)),
)
@settings(max_examples=120, deadline=None)
def test_screening_finds_what_float32_finds(
    family: str, seed: int, frames: int, cells: int, width: int, k: int, radius: int | None
) -> None:
    features = FAMILIES[family](noise(frames + 1, cells, width, seed=seed))
    query, *context = keys_of(features)
    places = torch.arange(cells)
    near = None if radius is None else (places - places[:, None]).abs() < radius
    searched = Context(query, context, near=near)
    scores = true_scores(query, context, near)
    assert_best(searched.best(k), scores, k)
    newest = 1 + seed % frames
    assert_best(searched.best(k, newest=newest), scores[:, : newest * cells], k)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_right(family: str) -> None:
    query, *context = keys_of(FAMILIES[family](noise(6, 40, 64)), screen=False)
    assert_best(Context(query, context).best(7), true_scores(query, context, None), 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_error_of_the_product_is_within_its_bound(family: str) -> None:
    """What the proof rests on: the true score is no further from the rounded one than rounding and margin say."""
    query, *context = keys_of(FAMILIES[family](noise(6, 120, 96)))
    searched = Context(query, context)
    coarse, margin = searched._scores.float(), searched._margin(context)
    true = true_scores(query, context, None) - searched._row_offset
    assert (true <= matching._rounded_up(coarse) + margin).all()
    assert (true >= matching._rounded_down(coarse) - margin).all()


def test_bound_of_rounding_holds_for_every_number() -> None:
    numbers = torch.cat([noise(100_000), noise(100_000) * 1e-4, 1 + torch.arange(4096) / 2.0**19])
    rounded = numbers.bfloat16().float()
    assert (matching._rounded_down(rounded) <= numbers).all() and (numbers <= matching._rounded_up(rounded)).all()
    assert matching._rounded_up(torch.tensor(-torch.inf)) == -torch.inf
    assert matching._rounded_down(torch.tensor(-torch.inf)) == -torch.inf


class Watch:
    """How much of the work of a search was done in float32."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rescored, self.completed = 0, 0
        rescore, complete = Context._rescore, Context._complete

        def watched_rescore(context: Context, index: Tensor, chosen: Tensor, frames: Sequence[FrameKeys]) -> Tensor:
            self.rescored += int(chosen.sum())
            return rescore(context, index, chosen, frames)

        def watched_complete(context: Context, matches: Matches, rows: Tensor, frames: Sequence[FrameKeys]) -> None:
            self.completed += len(rows)
            complete(context, matches, rows, frames)

        patch.setattr(Context, "_rescore", watched_rescore)
        patch.setattr(Context, "_complete", watched_complete)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize("family", ["independent", "near duplicates", "common mean", "drift"])
def test_screening_leaves_little_to_float32(family: str, watch: Watch) -> None:
    query, *context = keys_of(FAMILIES[family](noise(11, 100, 64)))
    Context(query, context).best(7)
    assert 7 * 100 <= watch.rescored < 0.04 * 100 * 1000
    assert watch.completed <= 2


def test_what_cannot_be_proven_is_done_in_float32(watch: Watch) -> None:
    """More equally good matches than candidates, of which some cells have none."""
    features = noise(5, 60, 64)
    features[1:, :30] = features[0, 0] + 1e-4 * features[1:, :30]
    features[0, :20] = features[0, 0]
    query, *context = keys_of(features)
    matches = Context(query, context).best(7)
    assert 20 <= watch.completed < 60
    assert_best(matches, true_scores(query, context, None), 7)


@pytest.mark.parametrize("unscreened", [0, 2])
def test_keys_that_are_not_screened_are_never(unscreened: int, watch: Watch) -> None:
    features = noise(4, 30, 16)
    keys = keys_of(features)
    keys[unscreened] = FrameKeys.of(features[unscreened], screen=False)
    matches = Context(keys[0], keys[1:]).best(5)
    assert watch.rescored == 0
    torch.testing.assert_close(
        matches.score, (keys[0].exact @ torch.cat([frame.exact for frame in keys[1:]]).T).topk(5).values
    )


def test_small_products_are_not_screened(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    query, *context = keys_of(noise(4, 30, 16))
    monkeypatch.setattr(matching, "_SCREEN_FROM", 30 * 90 + 1)
    Context(query, context).best(5)
    assert watch.rescored == 0
    monkeypatch.setattr(matching, "_SCREEN_FROM", 30 * 90)
    Context(query, context).best(5)
    assert watch.rescored > 0


def test_cells_without_enough_to_match_have_no_score() -> None:
    near = torch.eye(12, dtype=torch.bool)
    for screen in (False, True):
        query, *context = keys_of(noise(3, 12, 8), screen=screen)
        score = Context(query, context, near=near).best(4).score
        assert score[:, :2].isfinite().all()
        assert (score[:, 2:] == -torch.inf).all()


def test_workspace_is_used_again() -> None:
    """Also for another size and kind of numbers; matches found before stay as they were."""
    workspace = Workspace()
    query, *context = keys_of(noise(5, 30, 16))
    first = Context(query, context, workspace=workspace).best(3)
    memory = workspace._memory.data_ptr()
    kept = first.score.clone(), first.cell.clone()
    again = Context(context[0], [query, *context[2:]], workspace=workspace).best(3)
    assert workspace._memory.data_ptr() == memory
    assert_best(again, true_scores(context[0], [query, *context[2:]], None), 3)
    assert torch.equal(first.score, kept[0]) and torch.equal(first.cell, kept[1])
    query, *context = keys_of(noise(9, 40, 16), screen=False)
    assert_best(Context(query, context, workspace=workspace).best(3), true_scores(query, context, None), 3)


def test_keys_are_normalised_and_of_any_float_kind() -> None:
    features = noise(20, 16).bfloat16()
    keys = FrameKeys.of(features, screen=True)
    assert keys.exact.dtype == torch.float32
    torch.testing.assert_close(keys.exact.norm(dim=-1), torch.ones(20))
    assert keys.coarse is not None
    torch.testing.assert_close(keys.coarse.factors[:, :-4].float() + keys.coarse.mean, keys.exact, atol=2.0**-8, rtol=0)
    assert FrameKeys.of(features, screen=False).coarse is None
    assert (FrameKeys.of(features).coarse is not None) == matching.has_fast_bfloat16("cpu")

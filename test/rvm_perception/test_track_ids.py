"""The ledger of ids against a plain set, and the ranges the node gives ids from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvm_perception.track_ids import FIRST_MASK_ID, MAX_ID, MAX_MASK_ID, IdLedger

IDS = st.lists(st.one_of(st.integers(1, 12), st.integers(FIRST_MASK_ID - 2, FIRST_MASK_ID + 2), st.integers(0, MAX_ID)))


def ledger_of(*ids: int) -> IdLedger:
    ledger = IdLedger()
    for id in ids:
        ledger.add(id)
    return ledger


@given(ids=IDS, taken=st.sets(st.integers(1, 12)))
def test_it_is_a_set(ids: list[int], taken: set[int]) -> None:
    ledger = ledger_of(*ids)
    for id in {*ids, *range(14), MAX_ID, FIRST_MASK_ID}:
        assert (id in ledger) == (id in ids)
    lowest = next(id for id in range(1, 100) if id not in ids and id not in taken)
    assert ledger.unused(for_mask=False, taken=taken) == lowest
    mask = next(id for id in range(FIRST_MASK_ID, FIRST_MASK_ID + 100) if id not in ids)
    assert ledger.unused(for_mask=True, taken=taken) == mask


def test_memory_follows_the_gaps_alone() -> None:
    ledger = ledger_of(*range(1, 20_000), *range(40_000, 30_000, -1))
    assert len(ledger._starts) == len(ledger._ends) == 2


def test_points_and_boxes_leave_the_ids_of_masks_alone() -> None:
    ledger = ledger_of(*range(1, FIRST_MASK_ID - 1))
    assert ledger.unused(for_mask=False, taken=()) == FIRST_MASK_ID - 1
    ledger.add(FIRST_MASK_ID - 1)
    assert ledger.unused(for_mask=False, taken=()) == MAX_MASK_ID + 1
    assert ledger.unused(for_mask=True, taken=()) == FIRST_MASK_ID


def test_masks_run_out_of_ids() -> None:
    ledger = ledger_of(*range(FIRST_MASK_ID, MAX_MASK_ID))
    assert ledger.unused(for_mask=True, taken=()) == MAX_MASK_ID
    assert ledger.unused(for_mask=True, taken={MAX_MASK_ID}) is None


@pytest.mark.parametrize("id", [1, FIRST_MASK_ID, MAX_MASK_ID + 1, MAX_ID])
def test_the_ends_of_the_ranges(id: int) -> None:
    assert id not in IdLedger() and id in ledger_of(id) and id + 1 not in ledger_of(id)


@given(ids=IDS)
def test_a_ledger_is_made_again_of_its_runs(ids: list[int]) -> None:
    ledger = ledger_of(*ids)
    again = IdLedger.of_runs(ledger.runs)
    assert again.runs == ledger.runs
    assert all(id in again for id in ids)
    again.add(13)
    assert 13 in again and (13 in ledger) == (13 in ids)

"""Which errors are those of a full disk."""

from __future__ import annotations

import errno

import pytest

from rvm_core.exit_codes import DiskFullError, disk_full_errors, is_disk_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_what_failed(number: int) -> None:
    with (
        pytest.raises(DiskFullError, match="the disk is full: the film could not be written"),
        disk_full_errors("the film"),
    ):
        raise OSError(number, "full")


def test_what_was_raised_from_it_counts_too() -> None:
    with pytest.raises(DiskFullError), disk_full_errors("it"):
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("cannot encode") from error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("no")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_full_errors("it"):
        raise error
    assert caught.value is error and not is_disk_full(error) and not is_disk_full(None)

"""Runs fuzz targets in a process of its own: `python -m fuzzing MODULE [--seed N] [--target NAME --case N]`.

Each case has random numbers of its own, from the seed, the target's name and the case's number, so one that fails can
be run again alone; the parent learns its number even if this process is killed. A case returns the name of its outcome,
or raises where that is not one of those documented. Memory is bounded by RLIMIT_AS and measured by its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType

MEMORY_BYTES = 256 << 20
"""By so much may the peak of the address space grow over all cases: the inputs have some kilobytes."""
ADDRESS_SPACE_BYTES = 2 << 30
"""More than that above the start, and the system refuses, as it may on a robot."""
CASE_S = 20
"""A case takes milliseconds; this long it does not take on any machine."""
_MARK_BYTES = 64

Case = Callable[[random.Random], str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that reads what others wrote."""

    make: Callable[[Path], Case]
    """Prepares it in an empty folder."""
    cases: int


class Forbidden(AssertionError):
    """An outcome that is neither right nor a documented error."""


def damage(numbers: random.Random, content: bytes, most: int = 4) -> bytes:
    """The bytes with some faults, more often near both ends, where the directories are."""

    def place(size: int) -> int:
        part = numbers.choice((size, min(size, 512), min(size, 4096)))
        at = numbers.randrange(part) if part else 0
        return at if numbers.random() < 0.6 else max(0, size - 1 - at)

    damaged = bytearray(content)
    kind = numbers.choice(("flip", "set", "number", "cut", "insert", "remove", "repeat", "swap"))
    if kind == "cut":
        return content[: place(len(content))]
    for _ in range(numbers.randint(1, most)):
        at = place(len(damaged))
        if kind == "flip" and damaged:
            damaged[at] ^= 1 << numbers.randrange(8)
        elif kind == "set":
            damaged[at : at + 1] = bytes([numbers.choice((0, 1, 0x7F, 0x80, 0xFF))])
        elif kind == "number":
            width = numbers.choice((2, 4, 8))
            value = numbers.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, numbers.randrange(1 << 16)))
            damaged[at : at + width] = value.to_bytes(width, numbers.choice(("little", "big")))
        elif kind == "insert":
            damaged[at:at] = numbers.randbytes(numbers.randint(1, 16))
        elif kind == "remove":
            del damaged[at : at + numbers.randint(1, 16)]
        elif kind == "repeat":
            damaged[at:at] = damaged[at : at + numbers.randint(1, 64)]
        else:
            other = place(len(damaged))
            one, two = damaged[at : at + 8], damaged[other : other + 8]
            damaged[at : at + 8], damaged[other : other + 8] = two, one
    return bytes(damaged)


def causes(error: BaseException) -> list[BaseException]:
    """An error, and those it was raised from."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def outcome_of(error: Exception) -> str:
    """The name of a documented error. Raises `Forbidden` if it hides that memory had run out."""
    if any(isinstance(cause, MemoryError) for cause in causes(error)):
        raise Forbidden("memory had run out") from error
    return type(error).__name__


def run_target(name: str, target: Target, seed: int, only: int | None, mark: int | None) -> dict[str, object] | None:
    """Runs all cases or one; None after a failure, which is printed."""
    outcomes: Counter[str] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rvm_fuzz_") as folder:
        case = target.make(Path(folder))
        peak = _peak_bytes()
        for number in range(target.cases) if only is None else [only]:
            if mark is not None:
                os.pwrite(mark, f"{name} {number}".ljust(_MARK_BYTES).encode(), 0)
            signal.setitimer(signal.ITIMER_REAL, CASE_S)
            try:
                outcomes[case(random.Random(f"{name} {seed} {number}"))] += 1
            except BaseException:
                signal.setitimer(signal.ITIMER_REAL, 0)
                traceback.print_exc()
                print(f"\nseed {seed}, target {name}, case {number} of {target.cases}", file=sys.stderr)
                return None
            signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _peak_bytes() - peak
    if grown > MEMORY_BYTES:
        print(f"seed {seed}, target {name}: the address space grew by {grown >> 20} MiB", file=sys.stderr)
        return None
    seconds = round(time.monotonic() - start, 2)
    return {"cases": outcomes.total(), "outcomes": dict(outcomes), "seconds": seconds, "grown_mib": grown >> 20}


def _limit_memory() -> None:
    size = int(_status("VmSize")) * 1024
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE_BYTES, hard))


def _peak_bytes() -> int:
    return int(_status("VmPeak")) * 1024


def _status(field: str) -> str:
    return next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")
    )


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Forbidden(f"a case took more than {CASE_S} s")


def main() -> int:
    """Runs the targets of a module and prints what became of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target")
    parser.add_argument("--case", type=int)
    parser.add_argument("--mark", help="file that holds target and number of the case that runs")
    options = parser.parse_args()
    targets: dict[str, Target] = import_module(options.module).TARGETS
    signal.signal(signal.SIGALRM, _too_long)
    _limit_memory()
    mark = os.open(options.mark, os.O_WRONLY | os.O_CREAT, 0o600) if options.mark else None
    results = {}
    for name, target in targets.items():
        if options.target in (None, name):
            result = run_target(name, target, options.seed, options.case, mark)
            if result is None:
                print(
                    f"again: PYTHONPATH=.:test python -m fuzzing {options.module} --seed {options.seed} "
                    f"--target {name} [--case N]",
                    file=sys.stderr,
                )
                return 1
            results[name] = result
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

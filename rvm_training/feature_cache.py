"""Features of clips, made once: in memory or on the disk, in batches, going on after a break; or made when asked for.

Shapes: B clips of a batch, K kept frames of T, N+1 tokens, D width. A cache on the disk is a folder DIR/KEY, where KEY
hashes the weights, the clips and the size of the pictures:

    cache.json               what the key hashes, and the shapes
    features.npy             (clips, K, N+1, D), float16 or float32
    truth.NAME.npy           (clips, ...), one for each array of the truth
    state.npy                uint8 (clips,): 0 not made, 1 made, 2 cannot be read

A clip is marked in state.npy after its features are on the disk, so a break at any time loses no more than a batch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rvm_core.atomic import atomic_file, flush
from rvm_core.exit_codes import disk_full_errors
from rvm_core.file_lock import try_lock
from rvm_training.evaluation.benchmark import DatasetError
from rvm_training.evaluation.fingerprint import hash_json
from rvm_training.readouts.clips import Clip, ClipEncoder, ClipSource

FORMAT_VERSION = 1
SPARE_BYTES = 256 << 20
"""Left free on the disk."""
LOCK_SECONDS = 3.0
"""So long a cache is waited for that another process uses."""
CLIPS_AT_ONCE = 16
"""Clips that are encoded together: the larger, the faster, until the processor's caches are full."""

_OPEN, _MADE, _BAD = 0, 1, 2
_TRIES = 16
"""Clips in a row that cannot be read before a batch gives up."""

Dtype = Literal["float16", "float32"]
Progress = Callable[[int], object]
"""Is told how many more clips are done."""


class CacheError(RuntimeError):
    """Features cannot be kept: no room, or another process makes them; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A batch."""

    features: Tensor
    """float32 (B, K, N+1, D)."""
    truth: dict[str, Tensor]
    """(B, ...) by name."""


class FeatureStore(Protocol):
    """Features and truth of a source's clips."""

    @property
    def usable(self) -> npt.NDArray[np.intp]:
        """Numbers of the clips that can be read, as far as that is known."""

    @property
    def skipped(self) -> int:
        """How many clips could not be read so far."""

    def batch(self, indices: Sequence[int]) -> Examples:
        """These clips."""


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    # The last bits of sums depend on the order in memory, and can on the kind of address that it begins at.
    return torch.from_numpy(np.array(values, order="C")).clone()


class MadeFeatures:
    """A `FeatureStore` of arrays, which may be memory maps."""

    def __init__(
        self,
        features: npt.NDArray[Any],
        truth: Mapping[str, npt.NDArray[Any]],
        state: npt.NDArray[np.uint8],
    ) -> None:
        self._features, self._truth = features, truth
        self.usable = np.flatnonzero(state == _MADE)
        self.skipped = int((state == _BAD).sum())
        if not len(self.usable):
            raise DatasetError(f"none of the {len(state)} clips can be read")

    def batch(self, indices: Sequence[int]) -> Examples:
        """See `FeatureStore.batch`."""
        order = np.asarray(indices)
        return Examples(
            features=_tensor(self._features[order]).float(),
            truth={name: _tensor(values[order]) for name, values in self._truth.items()},
        )


class LiveFeatures:
    """A `FeatureStore` that makes each batch when it is asked for; a clip that cannot be read gives way to the next."""

    def __init__(self, source: ClipSource, encoder: ClipEncoder, keep: slice) -> None:
        self._source, self._encoder, self._keep = source, encoder, keep
        self.usable = np.arange(len(source))
        self._bad: set[int] = set()

    @property
    def skipped(self) -> int:
        """See `FeatureStore.skipped`."""
        return len(self._bad)

    def batch(self, indices: Sequence[int]) -> Examples:
        """See `FeatureStore.batch`. Raises `DatasetError` where many clips in a row cannot be read."""
        clips = [self._read(int(index)) for index in indices]
        features = self._encoder.encode(np.stack([clip.video for clip in clips]))[:, self._keep]
        names = clips[0].truth
        truth = {name: _tensor(np.stack([clip.truth[name] for clip in clips])) for name in names}
        return Examples(features=features.cpu().clone(), truth=truth)

    def _read(self, index: int) -> Clip:
        for offset in range(_TRIES):
            number = (index + offset) % len(self._source)
            clip = read_clip(self._source, number)
            if clip is not None:
                return clip
            self._bad.add(number)
        raise DatasetError(f"{self._source.name}: {_TRIES} clips in a row, from number {index} on, cannot be read")


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What is to be made, and its size, before anything is made."""

    source: ClipSource
    encoder: ClipEncoder
    keep: slice
    """Which frames of a clip are kept, such as every one or the first and the last."""
    dtype: Dtype
    shapes: dict[str, tuple[tuple[int, ...], str]]
    """(shape of one clip, dtype) by the name of the array."""

    @property
    def num_bytes(self) -> int:
        """Of all clips."""
        one = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())
        return len(self.source) * one

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON: what the key hashes."""
        return {
            "version": FORMAT_VERSION,
            "encoder": dict(self.encoder.identity),
            "source": dict(self.source.identity),
            "clips": len(self.source),
            "shapes": {name: [list(shape), dtype] for name, (shape, dtype) in self.shapes.items()},
        }

    @property
    def key(self) -> str:
        """Name of the folder of the cache."""
        return hash_json(self.identity)[:24]


def plan_cache(source: ClipSource, encoder: ClipEncoder, *, keep: slice, dtype: Dtype = "float16") -> CachePlan:
    """Looks at the first clip that can be read. Raises `DatasetError` if there is none near the start."""
    clip = next(filter(None, (read_clip(source, i) for i in range(min(_TRIES, len(source))))), None)
    if clip is None:
        raise DatasetError(f"{source.name}: none of the first {min(_TRIES, len(source))} clips can be read")
    features = encoder.encode(clip.video[None])[0, keep]
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"features": (tuple(features.shape), dtype)}
    for name, values in clip.truth.items():
        shapes[f"truth.{name}"] = (values.shape, values.dtype.name)
    return CachePlan(source=source, encoder=encoder, keep=keep, dtype=dtype, shapes=shapes)


def read_clip(source: ClipSource, index: int) -> Clip | None:
    """A clip; None if it cannot be read."""
    try:
        return source.clip(index)
    except (DatasetError, OSError):
        return None


def make_in_memory(plan: CachePlan, *, workers: int = 0, progress: Progress = lambda done: None) -> MadeFeatures:
    """Makes all features. Raises `DatasetError` if no clip can be read."""
    count = len(plan.source)
    arrays = {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in plan.shapes.items()}
    state = np.zeros(count, np.uint8)
    _fill(plan, arrays, state, workers, progress, lambda: None)
    return _made(arrays, state)


def make_on_disk(
    plan: CachePlan, folder: Path, *, workers: int = 0, progress: Progress = lambda done: None
) -> MadeFeatures:
    """Makes the features that DIR/KEY does not have yet.

    Raises `CacheError` if there is no room or another process fills the same cache, `DatasetError` if no clip can be
    read, `DiskFullError` if the disk gets full all the same.
    """
    own = folder / plan.key
    own.mkdir(parents=True, exist_ok=True)
    with _lock(own), disk_full_errors(str(own)):
        arrays = _open_arrays(plan, own)
        state = arrays.pop("state")
        progress(int((state != _OPEN).sum()))

        def flush_all() -> None:
            for values in arrays.values():
                values.flush()

        _fill(plan, arrays, state, workers, progress, flush_all, state.flush)
    return _made(arrays, state)


def make_live(plan: CachePlan) -> LiveFeatures:
    """Nothing is kept."""
    return LiveFeatures(plan.source, plan.encoder, plan.keep)


def _made(arrays: Mapping[str, npt.NDArray[Any]], state: npt.NDArray[np.uint8]) -> MadeFeatures:
    truth = {name.removeprefix("truth."): values for name, values in arrays.items() if name != "features"}
    return MadeFeatures(arrays["features"], truth, np.array(state))


def _open_arrays(plan: CachePlan, own: Path) -> dict[str, Any]:
    """Memory maps by name, with "state"; new ones where there are none."""
    count = len(plan.source)
    shapes = plan.shapes | {"state": ((), "uint8")}
    if not (own / "cache.json").is_file():
        free = shutil.disk_usage(own).free
        if free < plan.num_bytes + SPARE_BYTES:
            raise CacheError(
                f"features of {count} clips need {plan.num_bytes / 1e9:.2f} GB in {own}, {free / 1e9:.2f} GB are free; "
                "use fewer clips, another --cache, or --features live"
            )
        for name, (shape, dtype) in shapes.items():
            with atomic_file(own / f"{name}.npy") as temporary:
                _new_array(temporary, (count, *shape), dtype)
        # Last: where it is there, the arrays are.
        with atomic_file(own / "cache.json") as temporary:
            temporary.write_text(json.dumps(plan.identity, indent=1))
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        path = own / f"{name}.npy"
        try:
            # For writing, numpy would lengthen a file that is too short.
            np.load(path, mmap_mode="r", allow_pickle=False)
            arrays[name] = np.load(path, mmap_mode="r+", allow_pickle=False)
            if (arrays[name].shape, arrays[name].dtype) != ((count, *shape), np.dtype(dtype)):
                raise ValueError(f"it holds {arrays[name].dtype} {arrays[name].shape}")
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{path} is no part of this cache ({error}); remove the folder {own}") from error
    return arrays


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """An array of zeros whose place on the disk is taken, so that writing into it cannot fail for want of room."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize
        file.flush()
        os.posix_fallocate(file.fileno(), 0, size)


def _fill(
    plan: CachePlan,
    arrays: Mapping[str, npt.NDArray[Any]],
    state: npt.NDArray[np.uint8],
    workers: int,
    progress: Progress,
    before_mark: Callable[[], None],
    after_mark: Callable[[], None] = lambda: None,
) -> None:
    missing = np.flatnonzero(state == _OPEN).tolist()
    for indices, clips in _read_ahead(plan.source, missing, workers):
        good = [(index, clip) for index, clip in zip(indices, clips, strict=True) if clip is not None]
        if good:
            features = plan.encoder.encode(np.stack([clip.video for _, clip in good]))[:, plan.keep]
            numbers = [index for index, _ in good]
            arrays["features"][numbers] = _as_dtype(features, plan.dtype)
            for name, values in arrays.items():
                if name != "features":
                    values[numbers] = np.stack([clip.truth[name.removeprefix("truth.")] for _, clip in good])
            before_mark()
        state[indices] = [_BAD if clip is None else _MADE for clip in clips]
        after_mark()
        progress(len(indices))


def _as_dtype(features: Tensor, dtype: Dtype) -> npt.NDArray[Any]:
    values = features.cpu().numpy()
    if not np.isfinite(values).all():
        raise CacheError("the encoder gives features that are not finite: its weights are unsound")
    if dtype == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise CacheError("features are too large for float16; use --cache-dtype float32")
    return values.astype(dtype)


def _read_ahead(source: ClipSource, indices: list[int], workers: int) -> Iterator[tuple[list[int], list[Clip | None]]]:
    """Batches of clips, of which one is read while the last one is encoded."""
    chunks = [indices[i : i + CLIPS_AT_ONCE] for i in range(0, len(indices), CLIPS_AT_ONCE)]
    with _executor(workers) as pool:
        waiting = [pool.submit(_read_chunk, source, chunk) for chunk in chunks[: workers + 1]]
        try:
            for number, chunk in enumerate(chunks):
                clips = waiting.pop(0).result()
                if number + workers + 1 < len(chunks):
                    waiting.append(pool.submit(_read_chunk, source, chunks[number + workers + 1]))
                yield chunk, clips
        finally:
            for future in waiting:
                future.cancel()


def _executor(workers: int) -> Executor:
    """Processes, or for none a thread."""
    # A forked process would inherit torch's threads, which can lock up.
    if not workers:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_alone)


def _leave_interrupts_alone() -> None:
    # Ctrl-C goes to all processes of a terminal; the one that trains decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_chunk(source: ClipSource, chunk: list[int]) -> list[Clip | None]:
    return [read_clip(source, index) for index in chunk]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "a") as file:
        # Another process that finds the cache full holds the lock for a moment only.
        end = time.monotonic() + LOCK_SECONDS
        while not try_lock(file):
            if time.monotonic() > end:
                raise CacheError(f"another process is filling {folder}: wait for it, or choose another --cache")
            time.sleep(0.05)
        flush(folder)
        yield

"""Makes examples of pretraining from clips: each one depends only on the seed and its number.

Shapes: B batch, S source frames, K targets, V visible patches of a target, H W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rvm_training.data.augment import crop_frame, draw_crops, draw_flip
from rvm_training.data.clip_sources import Clip, ClipSource, open_source
from rvm_training.data.sampling import draw_frames, draw_visible
from rvm_training.data.shards import ClipError
from rvm_training.pretrain_config import SamplingConfig, SourceConfig

_TRIES = 20
"""So many damaged clips after each other mean that the dataset is not there any more."""

_STREAM = 2
"""Sets what is drawn for an example apart from the order of the examples, which has the same seed."""


class DataError(RuntimeError):
    """A dataset cannot be used any more; says why."""


class Arrays(NamedTuple):
    """Where a batch is written, in the order and with the shapes of `objective.PretrainBatch`."""

    source: npt.NDArray[np.uint8]
    """(B, S, H, W, 3)."""
    target: npt.NDArray[np.uint8]
    """(B, K, H, W, 3)."""
    time_gaps: npt.NDArray[np.int32]
    """(B, K)."""
    visible: npt.NDArray[np.int32]
    """(B, K, V)."""

    def copy(self) -> Arrays:
        """The same in memory of its own."""
        return Arrays(self.source.copy(), self.target.copy(), self.time_gaps.copy(), self.visible.copy())


class Example(NamedTuple):
    """What is to be made."""

    row: int
    """Of the batch."""
    number: int
    """Of the example in the whole run, over all processes."""
    dataset: int
    clip: int


class Skipped(NamedTuple):
    """A clip that could not be read; another one of the same dataset took its place."""

    dataset: int
    reason: str


def shapes(sampling: SamplingConfig, batch_size: int) -> list[tuple[tuple[int, ...], type]]:
    """Shape and type of each of `Arrays`."""
    picture = (sampling.image_size, sampling.image_size, 3)
    return [
        ((batch_size, sampling.source_frames, *picture), np.uint8),
        ((batch_size, sampling.targets, *picture), np.uint8),
        ((batch_size, sampling.targets), np.int32),
        ((batch_size, sampling.targets, sampling.visible), np.int32),
    ]


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples. `seed` is of all that is drawn: frames, crops, mirroring, masks."""

    sources: Sequence[ClipSource]
    names: Sequence[str]
    sampling: SamplingConfig
    seed: tuple[int, ...]

    @staticmethod
    def open(configs: Iterable[SourceConfig], sampling: SamplingConfig, seed: tuple[int, ...]) -> ExampleMaker:
        """Raises `ValueError` if a dataset is not there."""
        configs = list(configs)
        sources = [open_source(config.path, sampling.image_size) for config in configs]
        return ExampleMaker(sources, [config.name for config in configs], sampling, seed)

    def make(self, examples: Iterable[Example], out: Arrays) -> list[Skipped]:
        """Writes examples to their rows. Returns the clips that could not be read. Raises `DataError`."""
        skipped: list[Skipped] = []
        for example in examples:
            self._make_one(example, out, skipped)
        return skipped

    def _make_one(self, example: Example, out: Arrays, skipped: list[Skipped]) -> None:
        source, number = self.sources[example.dataset], example.clip
        for attempt in range(_TRIES):
            random = np.random.default_rng([*self.seed, _STREAM, example.number, attempt])
            try:
                if attempt:
                    number = int(random.integers(len(source)))
                self._fill(random, source.clip(number), example.row, out)
                return
            except (ClipError, OSError) as error:
                skipped.append(Skipped(example.dataset, str(error)))
        raise DataError(
            f"{_TRIES} clips of {self.names[example.dataset]} after each other cannot be read; the last one: "
            f"{skipped[-1].reason}"
        )

    def _fill(self, random: np.random.Generator, clip: Clip, row: int, out: Arrays) -> None:
        drawn = draw_frames(random, self.sampling, clip.length)
        frames = clip.read([*drawn.source.tolist(), *drawn.target.tolist()])
        crops = draw_crops(random, self.sampling, len(frames), *frames[0].shape[:2])
        flip = draw_flip(random, self.sampling)
        for frame, crop, place in zip(frames, crops, [*out.source[row], *out.target[row]], strict=True):
            crop_frame(frame, crop, flip, place)
        out.time_gaps[row] = drawn.gaps
        out.visible[row] = draw_visible(random, self.sampling)

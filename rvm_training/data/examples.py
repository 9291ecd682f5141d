"""Makes examples of pretraining from clips: each one depends only on the seed and its number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from rvm_training.data.augment import crop_frame, draw_crops, draw_flip
from rvm_training.data.clip_sources import Clip, ClipSource, open_source
from rvm_training.data.sampling import draw_clip, draw_frames, draw_visible
from rvm_training.data.shards import ClipError
from rvm_training.pretrain_batch import Batch, ClipBatch, PretrainBatch, Sampling
from rvm_training.pretrain_config import ClipSamplingConfig, SamplingConfig, SourceConfig

_TRIES = 20
"""So many damaged clips after each other mean that the dataset is not there any more."""

_STREAM = 2
"""Sets what is drawn for an example apart from the order of the examples, which has the same seed."""


class DataError(RuntimeError):
    """A dataset cannot be used any more; says why."""


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


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples. `seed` is of all that is drawn: frames, crops, mirroring, masks."""

    sources: Sequence[ClipSource]
    names: Sequence[str]
    sampling: Sampling
    seed: tuple[int, ...]

    @staticmethod
    def open(configs: Iterable[SourceConfig], sampling: Sampling, seed: tuple[int, ...]) -> ExampleMaker:
        """Raises `ValueError` if a dataset is not there."""
        configs = list(configs)
        sources = [open_source(config.path, sampling.image_size) for config in configs]
        return ExampleMaker(sources, [config.name for config in configs], sampling, seed)

    def make(self, examples: Iterable[Example], out: Batch) -> list[Skipped]:
        """Writes examples to their rows. Returns the clips that could not be read. Raises `DataError`."""
        skipped: list[Skipped] = []
        for example in examples:
            self._make_one(example, out, skipped)
        return skipped

    def _make_one(self, example: Example, out: Batch, skipped: list[Skipped]) -> None:
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

    def _fill(self, random: np.random.Generator, clip: Clip, row: int, out: Batch) -> None:
        if isinstance(out, ClipBatch):
            _fill_clip(random, clip, cast(ClipSamplingConfig, self.sampling), row, out)
        else:
            _fill_sources_and_targets(random, clip, cast(SamplingConfig, self.sampling), row, out)


def _fill_sources_and_targets(
    random: np.random.Generator, clip: Clip, sampling: SamplingConfig, row: int, out: PretrainBatch
) -> None:
    drawn = draw_frames(random, sampling, clip.length)
    frames = clip.read([*drawn.source.tolist(), *drawn.target.tolist()])
    crops = draw_crops(random, sampling, len(frames) if sampling.crops == "frames" else 1, *frames[0].shape[:2])
    flip = draw_flip(random, sampling)
    crops = np.broadcast_to(crops, (len(frames), 4))
    for frame, crop, place in zip(frames, crops, [*out.source[row], *out.target[row]], strict=True):
        crop_frame(frame, crop, flip, place)
    out.time_gaps[row] = drawn.gaps
    out.visible[row] = draw_visible(random, sampling, sampling.targets)


def _fill_clip(random: np.random.Generator, clip: Clip, sampling: ClipSamplingConfig, row: int, out: ClipBatch) -> None:
    frames = clip.read(draw_clip(random, sampling, clip.length).tolist())
    (crop,) = draw_crops(random, sampling, 1, *frames[0].shape[:2])
    flip = draw_flip(random, sampling)
    for frame, place in zip(frames, out.frames[row], strict=True):
        crop_frame(frame, crop, flip, place)
    (out.visible[row],) = draw_visible(random, sampling, 1)

"""How fast one processor core makes examples of pretraining from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np

from rvm_training.data.examples import Example, ExampleMaker
from rvm_training.data.mixture import Mixture
from rvm_training.pretrain_batch import batch_layout, batch_like
from rvm_training.pretrain_config import SamplingConfig, SourceConfig

_BATCH = 16


@dataclass(frozen=True)
class Speed:
    """Result of `measure`."""

    clips: int
    seconds: float
    """Of processor time."""
    image_size: int
    skipped: int

    def lines(self) -> list[str]:
        """For the screen."""
        return [
            f"{self.clips / self.seconds:.1f} clips/s a core at {self.image_size}x{self.image_size} "
            f"({self.clips} clips, 8 frames each, {1000 * self.seconds / self.clips:.2f} ms a clip)",
            f"skipped: {self.skipped} damaged clips",
        ]


def measure(folder: Path, *, image_size: int, seconds: float) -> Speed:
    """Makes examples for at least `seconds` of processor time. Raises `ValueError` for a folder without clips."""
    sampling = SamplingConfig(image_size=image_size)
    maker = ExampleMaker.open([SourceConfig(name="measured", path=str(folder))], sampling, (0,))
    mixture = Mixture([len(maker.sources[0])], [1.0], (0,))
    layout = batch_layout(sampling, _BATCH)
    arrays = batch_like(layout, (np.empty(shape, dtype) for shape, dtype in layout))
    clips = skipped = 0
    spent = -1.0
    while spent < seconds:
        numbers = mixture.take(_BATCH)[1].tolist()
        skipped += len(maker.make((Example(row, clips + row, 0, clip) for row, clip in enumerate(numbers)), arrays))
        if spent < 0:  # the first batch opens files
            begin, spent = process_time(), 0.0
            continue
        clips += _BATCH
        spent = process_time() - begin
    return Speed(clips, max(spent, 1e-9), image_size, skipped)

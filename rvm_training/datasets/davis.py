"""DAVIS 2017 at 480p, the validation set, in the folders of its download.

DAVIS/ImageSets/2017/val.txt             a video's name in each line
DAVIS/JPEGImages/480p/NAME/00000.jpg ...
DAVIS/Annotations/480p/NAME/00000.png ...  with a palette: 0 is background, object n has number n
"""

from __future__ import annotations

from pathlib import Path

from rvm_training.datasets.folder import incomplete, read_names, require, same_stems, sorted_files
from rvm_training.evaluation.benchmark import DatasetError

VIDEOS = 30
"""Of the validation set."""

_LIST = "ImageSets/2017/val.txt"
_FRAMES = "JPEGImages/480p"
_LABELS = "Annotations/480p"
_LEAST_FRAMES = 3
"""Without the first and the last there has to be one."""


class Davis2017:
    """The videos of the validation set. Raises `DatasetError` for a folder that is not DAVIS or not all of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        require(root, "DAVIS 2017", (_LIST, _FRAMES, _LABELS))
        self.videos = read_names(root / _LIST)
        problems = []
        for video in self.videos:
            try:
                self._check(video)
            except DatasetError as error:
                problems.append(str(error))
        incomplete("DAVIS 2017", root, problems, len(self.videos))

    def frames(self, video: str) -> list[Path]:
        """In order."""
        return sorted_files(self.root / _FRAMES / video, ".jpg")

    def labels(self, video: str) -> list[Path]:
        """One for each frame, in order."""
        return sorted_files(self.root / _LABELS / video, ".png")

    def _check(self, video: str) -> None:
        frames = self.frames(video)
        wanted = f"{_FRAMES}/{video}/*.jpg and {_LABELS}/{video}/*.png"
        same_stems(frames, self.labels(video), wanted)
        if len(frames) < _LEAST_FRAMES:
            raise DatasetError(f"{wanted}: expected {_LEAST_FRAMES} frames or more, found {len(frames)}")

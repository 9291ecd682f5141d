"""VIP (Video Instance-level Parsing), its part VIP_Fine, the validation set, in the folders of its download.

VIP_Fine/lists/val_videos.txt                       a video's name in each line
VIP_Fine/Images/NAME/000000000001.jpg ...
VIP_Fine/Annotations/Category_ids/NAME/000000000001.png ...  the number of the part at each pixel
"""

from __future__ import annotations

from pathlib import Path

from rvm_training.datasets.folder import incomplete, read_names, require, same_stems, sorted_files
from rvm_training.evaluation.benchmark import DatasetError

CLASSES = (
    "background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks", "pants", "gloves", "scarf",
    "skirt", "torso-skin", "face", "right-arm", "left-arm", "right-leg", "left-leg", "right-shoe", "left-shoe",
)  # fmt: skip
"""By number; other numbers are not counted."""

VIDEOS = 50
"""Of the validation set."""

_LIST = "lists/val_videos.txt"
_FRAMES = "Images"
_LABELS = "Annotations/Category_ids"


class Vip:
    """The videos of the validation set. Raises `DatasetError` for a folder that is not VIP_Fine or not all of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        require(root, "VIP_Fine", (_LIST, _FRAMES, _LABELS))
        self.videos = read_names(root / _LIST)
        problems = []
        for video in self.videos:
            try:
                wanted = f"{_FRAMES}/{video}/*.jpg and {_LABELS}/{video}/*.png"
                same_stems(self.frames(video), self.labels(video), wanted)
            except DatasetError as error:
                problems.append(str(error))
        incomplete("VIP_Fine", root, problems, len(self.videos))

    def frames(self, video: str) -> list[Path]:
        """In order."""
        return sorted_files(self.root / _FRAMES / video, ".jpg")

    def labels(self, video: str) -> list[Path]:
        """One for each frame, in order."""
        return sorted_files(self.root / _LABELS / video, ".png")

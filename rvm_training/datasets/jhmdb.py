"""JHMDB, the test part of a split, in the folders of its downloads.

JHMDB/splits/CLASS_test_split1.txt                       lines such as "NAME.avi 2": 1 is for training, 2 for testing
JHMDB/Rename_Images/CLASS/NAME/00001.png ...
JHMDB/joint_positions/CLASS/NAME/joint_positions.mat     MATLAB's format before 7.3; pos_img (2, 15, T), from 1
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rvm_training.datasets.folder import incomplete, read_names, require, sorted_files
from rvm_training.evaluation.benchmark import DatasetError

JOINTS = 15
VIDEOS = 268
"""For testing in split 1."""
_FOLDERS = ("splits", "Rename_Images", "joint_positions")
_TESTED = "2"
_KINDS = ("0", "1", _TESTED)
"""0: not used in this split."""


class Jhmdb:
    """The test videos of a split, as CLASS/NAME. Raises `DatasetError` for a folder that is not all of JHMDB."""

    def __init__(self, root: Path, split: int = 1) -> None:
        self.root = root
        require(root, "JHMDB", _FOLDERS)
        end = f"_test_split{split}.txt"
        lists = sorted((root / "splits").glob(f"*{end}"))
        if not lists:
            raise DatasetError(f"{root} is no JHMDB: looked for splits/CLASS{end}, and found none")
        self.videos = [f"{path.name.removesuffix(end)}/{name}" for path in lists for name in _tested(path)]
        if not self.videos:
            raise DatasetError(f"no video of {root} is for testing: no line of splits/*{end} ends with {_TESTED}")
        problems = []
        for video in self.videos:
            if not self.frames(video):
                problems.append(f"no frames: looked for Rename_Images/{video}/*.png")
            if not self.joints_file(video).is_file():
                problems.append(f"no joints: looked for joint_positions/{video}/joint_positions.mat")
        incomplete("JHMDB", root, problems, len(self.videos))

    def frames(self, video: str) -> list[Path]:
        """In order."""
        return sorted_files(self.root / "Rename_Images" / video, ".png")

    def joints_file(self, video: str) -> Path:
        """Where the joints are."""
        return self.root / "joint_positions" / video / "joint_positions.mat"

    def joints(self, video: str) -> npt.NDArray[np.float32]:
        """(T, 15, 2): x and y of the joints in pixels, the first pixel at 0. Raises `DatasetError` if unreadable."""
        path = self.joints_file(video)
        try:
            loaded = import_module("scipy.io").loadmat(path, variable_names=["pos_img"])
        except ImportError as error:
            raise ImportError("reading JHMDB needs scipy, which is not installed: pip install 'rvm_perception[eval]'") from error  # fmt: skip # noqa: E501
        except Exception as error:  # a broken file can raise almost anything
            raise DatasetError(f"cannot read the joints {path}: {error}") from error
        positions = np.asarray(loaded.get("pos_img", np.empty(0)))
        if positions.ndim != 3 or positions.shape[:2] != (2, JOINTS) or positions.dtype.kind not in "iuf":
            raise DatasetError(
                f"{path}: expected numbers pos_img (2, {JOINTS}, T), got {positions.dtype} {positions.shape}"
            )
        joints = (positions.astype(np.float64) - 1).astype(np.float32).transpose(2, 1, 0)
        if not np.isfinite(joints).all():
            raise DatasetError(f"{path}: some of pos_img are not finite")
        return joints


def _tested(path: Path) -> list[str]:
    """Names of the videos in a list that are for testing."""
    names = []
    for line in read_names(path):
        words = line.split()
        if len(words) != 2 or words[1] not in _KINDS:
            raise DatasetError(f"{path}: expected lines such as 'NAME.avi 2', got {line!r}")
        if words[1] == _TESTED:
            names.append(words[0].rpartition(".")[0] or words[0])
    return names

"""ScanNet as its own reader exports it: scans/SCENE/color/0.jpg, ... and scans/SCENE/depth/0.png, ... in millimetres.

Where there is a list of scenes, FOLDER/scannetv2_val.txt or another one that is given, one name a line, only these
count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvm_training.datasets.images import IMAGE_SUFFIXES, require_file, require_folder
from rvm_training.evaluation.benchmark import DatasetError

LIST = "scannetv2_val.txt"


@dataclass(frozen=True, kw_only=True)
class DepthVideo:
    """A scene; entries i of both belong together."""

    color: tuple[Path, ...]
    """T images."""
    depth: tuple[Path, ...]
    """T depth maps, PNG of 16 bits, millimetres, 0 where nothing was measured."""


class ScanNetFolder:
    """The scenes of a folder. Raises `DatasetError` for a folder that is not ScanNet's or not all of it."""

    def __init__(self, folder: Path, scenes: Path | None = None) -> None:
        self._scans = require_folder(folder, "ScanNet (scans/SCENE/color and scans/SCENE/depth)") / "scans"
        require_folder(self._scans, "ScanNet's scenes (SCENE/color and SCENE/depth)")
        self.list = require_file(scenes, "a list of scenes") if scenes else folder / LIST
        if self.list.is_file():
            self.ids = [line.strip() for line in self.list.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            self.ids = sorted(path.name for path in self._scans.iterdir() if path.is_dir())
        if not self.ids:
            raise DatasetError(f"looked for scenes with color/ and depth/ in {self._scans}: there is none")
        parts = [self._scans / id / part for id in self.ids for part in ("color", "depth")]
        missing = [part for part in parts if not part.is_dir()]
        if missing:
            raise DatasetError(
                f"looked for color/ and depth/ of {len(self.ids)} scenes in {self._scans}: {len(missing)} folders are "
                f"missing, the first is {missing[0].relative_to(self._scans)}; ScanNet's SensReader exports them"
            )

    def read(self, id: str) -> DepthVideo:
        """Raises `DatasetError` if not every image has its depth map."""
        color, depth = (_numbered(self._scans / id / part) for part in ("color", "depth"))
        if not color or color.keys() != depth.keys():
            raise DatasetError(
                f"looked for a depth map of each image in {self._scans / id}: found {len(color)} images in color/ and "
                f"{len(depth)} depth maps in depth/, {len(color.keys() & depth.keys())} of them with the same number"
            )
        return DepthVideo(color=tuple(color.values()), depth=tuple(depth.values()))


def _numbered(folder: Path) -> dict[int, Path]:
    """Images whose names are numbers, in their order."""
    found = {
        int(path.stem): path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES and path.stem.isdecimal()
    }
    return dict(sorted(found.items()))

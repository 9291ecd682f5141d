"""Where the results of single videos are kept between runs: one JSON file a video, whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2

from rvm_core.atomic import atomic_file
from rvm_core.exit_codes import disk_full_errors
from rvm_training.evaluation.benchmark import Picture

FORMAT_VERSION = 1
"""Of the files. Others are not read."""


@dataclass(frozen=True, kw_only=True)
class KeptPicture:
    """A picture in the folder of the report."""

    path: str
    """Relative to the report, with "/"."""
    caption: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """What is kept of one video."""

    video: str
    key: str
    """See `benchmark`."""
    data: str
    """Hash of the video's files."""
    scores: dict[str, Any]
    summary: dict[str, float | None]
    seconds: float
    """How long it took."""
    pictures: list[KeptPicture] = field(default_factory=list)
    with_pictures: bool
    """Whether pictures were asked for."""


class ResultStore:
    """The results below the folder of one benchmark's report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "videos").mkdir(parents=True, exist_ok=True)

    def find(self, video: str, key: str, *, pictures: bool) -> KeptResult | None:
        """The result kept under this key, if it is there and whole, with its pictures where they are wanted."""
        try:
            raw = json.loads(self._path(video, key).read_text(encoding="utf-8"))
            if raw.pop("format_version") != FORMAT_VERSION:
                return None
            raw["pictures"] = [KeptPicture(**picture) for picture in raw["pictures"]]
            result = KeptResult(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Not there, or not one of ours: the video is done again.
            return None
        if (result.video, result.key) != (video, key):
            return None
        if pictures and not (
            result.with_pictures and all((self.folder / picture.path).is_file() for picture in result.pictures)
        ):
            return None
        return result

    def keep(self, result: KeptResult) -> None:
        """Writes a result. Raises `DiskFullError`, or another `OSError`."""
        text = json.dumps({"format_version": FORMAT_VERSION} | asdict(result), indent=1, allow_nan=False) + "\n"
        with (
            disk_full_errors(f"the result of {result.video}"),
            atomic_file(self._path(result.video, result.key)) as file,
        ):
            file.write_text(text, encoding="utf-8")

    def keep_pictures(self, owner: str, pictures: Sequence[Picture]) -> list[KeptPicture]:
        """Writes the pictures of a video, or of the report, as PNG."""
        kept = []
        for picture in pictures:
            path = self.folder / "pictures" / f"{_file_name(owner)}-{picture.name}.png"
            path.parent.mkdir(exist_ok=True)
            done, data = cv2.imencode(".png", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))
            assert done
            with disk_full_errors(f"a picture of {owner}"), atomic_file(path) as file:
                file.write_bytes(data.tobytes())
            height, width = picture.image.shape[:2]
            relative = path.relative_to(self.folder).as_posix()
            kept.append(KeptPicture(path=relative, caption=picture.caption, width=width, height=height))
        return kept

    def _path(self, video: str, key: str) -> Path:
        return self.folder / "videos" / f"{_file_name(video)}.{key[:16]}.json"


def _file_name(video: str) -> str:
    """A name that any file system takes, and no other video has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", video).strip(".")[:80]
    return plain if plain == video else f"{plain}-{hashlib.sha256(video.encode()).hexdigest()[:8]}"

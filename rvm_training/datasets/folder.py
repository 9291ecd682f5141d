"""What the loaders of datasets share: looking for files, and saying which are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rvm_training.evaluation.benchmark import DatasetError

_NAMED = 3
"""So many of many missing things are named."""


def require(root: Path, dataset: str, parts: Iterable[str]) -> None:
    """Raises `DatasetError` unless all these files and folders, with "/" in their names, are below `root`."""
    parts = list(parts)
    missing = [part for part in parts if not (root / part).exists()]
    if not missing:
        return
    message = f"{root} is no {dataset}: looked for {', '.join(parts)} in it, and found no {', '.join(missing)}"
    nested = [child.name for child in _folders(root) if all((child / part).exists() for part in parts)]
    if nested:
        message += f"; {root / nested[0]} has them: give that to --data"
    elif not root.is_dir():
        message += "; it is no folder"
    else:
        found = sorted(path.name for path in root.iterdir())[:6]
        message += f"; it holds {', '.join(found)}" if found else "; it is empty"
    raise DatasetError(message)


def read_names(path: Path) -> list[str]:
    """The lines of a list that are not empty. Raises `DatasetError` if there are none or the text cannot be read."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the list {path}: {error}") from error
    if not names:
        raise DatasetError(f"the list {path} is empty")
    return names


def sorted_files(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder by name, such as 00000.jpg, 00001.jpg; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix and not path.name.startswith("."))


def same_stems(frames: Sequence[Path], labels: Sequence[Path], wanted: str) -> None:
    """Raises `DatasetError` unless each frame has the label file of its name and the reverse, and there is one."""
    if not frames:
        raise DatasetError(f"no frames: looked for {wanted}")
    without = sorted({path.stem for path in frames} ^ {path.stem for path in labels})
    if without:
        raise DatasetError(
            f"{wanted}: {len(frames)} frames and {len(labels)} annotations do not belong together; without the other "
            f"are {some(without)}"
        )


def incomplete(dataset: str, root: Path, problems: Sequence[str], videos: int) -> None:
    """Raises `DatasetError` that counts the videos with problems, if there are any."""
    if problems:
        raise DatasetError(
            f"{root} is not all of {dataset}: {len(problems)} of {videos} videos are not whole. {some(problems, '; ')}"
        )


def unusual_count(videos: Sequence[str], expected: int) -> list[str]:
    """Why a run over this list cannot be compared, if it has not as many videos as the dataset."""
    return [] if len(videos) == expected else [f"the dataset's list has {len(videos)} videos, not {expected}"]


def some(names: Sequence[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = f"{separator}and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []

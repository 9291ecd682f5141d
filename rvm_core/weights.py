"""The released weights: where they are on the network and on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from rvm_core.checkpoint import CheckpointError, load_checkpoint
from rvm_core.config import NAMED_SIZES, RVMConfig
from rvm_core.download import DownloadError, download
from rvm_core.shipped_weights import SHIPPED, shipped_weights

_BASE_URL = "https://storage.googleapis.com/representations4d/checkpoints/"
_SIZE_TOLERANCE = 0.02
"""The published sizes are rounded."""


@dataclass(frozen=True)
class Release:
    """A released checkpoint, in the release's .npz, with its decoder."""

    url: str
    file_bytes: int
    """As published, rounded."""

    @property
    def allowed_bytes(self) -> range:
        slack = int(self.file_bytes * _SIZE_TOLERANCE)
        return range(self.file_bytes - slack, self.file_bytes + slack + 1)


RELEASES: dict[str, Release] = {
    "rvm_s16": Release(_BASE_URL + "pretrain_rvm_small16_256_204031069.npz", 270_000_000),
    "rvm_b16": Release(_BASE_URL + "pretrain_rvm_base16_256_203916225.npz", 641_000_000),
    "rvm_l16": Release(_BASE_URL + "pretrain_rvm_large16_256_202497301.npz", 1_636_000_000),
    "rvm_h16": Release(_BASE_URL + "pretrain_rvm_huge16_256_203854202.npz", 3_108_000_000),
}


def weights_folder() -> Path:
    """Where fetched weights are kept: rvm_perception/weights in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return base / "rvm_perception" / "weights"


def find_weights(name_or_path: str) -> Path:
    """The file of a released name, such as "rvm_s16", if it was fetched, of shipped weights, or of a path ("~" too).

    Raises `FileNotFoundError`, which says what to do, if there is no such file, and `CheckpointError` if the file of
    shipped weights is another one than was shipped.
    """
    if name_or_path in SHIPPED:
        return shipped_weights(name_or_path)
    if name_or_path in RELEASES:
        path = weights_folder() / f"{name_or_path}.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"{name_or_path} is not on this machine: run `rvm weights fetch {name_or_path}`, "
                f"or put {RELEASES[name_or_path].url} at {path}"
            )
        return path
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        names = ", ".join((*SHIPPED, *RELEASES))
        raise FileNotFoundError(f"no checkpoint at {path}, and no released name; the names are {names}")
    return path


def fetch_weights(name: str, *, folder: Path | None = None, url: str | None = None) -> Path:
    """Downloads a released checkpoint, if it is not there yet, and checks it. Returns its path, `folder`/`name`.npz.

    Args:
        name: one of `RELEASES`.
        folder: None takes `weights_folder()`.
        url: of a mirror; None takes the release's own.

    Raises:
        ValueError: an unknown name.
        DownloadError: the download failed; the message says how to do it by hand.
        CheckpointError: the file that came, or is there already, is no sound checkpoint of that size.
        OSError: the file cannot be written.
    """
    if name not in RELEASES:
        raise ValueError(f"unknown weights {name!r}; known: {', '.join(RELEASES)}")
    release = RELEASES[name]
    target = (folder or weights_folder()) / f"{name}.npz"
    if target.exists():
        _check_size_of(target, name)
        return target
    url = url or release.url
    try:
        download(url, target, allowed_bytes=release.allowed_bytes, check=lambda path: _check_size_of(path, name))
    except DownloadError as error:
        shown = name if folder is None else str(target)
        raise DownloadError(
            f"{error}\nTo do it by hand, download {url} on any machine, put it at {target}, and check it with: "
            f"rvm weights info {shown}"
        ) from error
    return target


def _check_size_of(path: Path, name: str) -> None:
    # Loading all of it compares every checksum.
    config = load_checkpoint(path, decoder=True).config
    if not _same_size(config, NAMED_SIZES[name]):
        raise CheckpointError(path, f"expected the weights of {name}, found {config.name}: {config}")


def _same_size(config: RVMConfig, named: RVMConfig) -> bool:
    # How many heads the core of the largest release has is not published; the loader reads it from the file.
    return replace(config, core_heads=named.core_heads, decoder=None) == named

"""The released weights: where they are on the network and on this machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rvm_core.checkpoint import CheckpointError, load_model
from rvm_core.config import FOURDS_SIZES, NAMED_SIZES, TRECVIT_SIZES, RVMConfig
from rvm_core.download import DownloadError, download
from rvm_core.readout_checkpoint import load_readout
from rvm_core.releases import RELEASES
from rvm_core.shipped_weights import SHIPPED, shipped_weights


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
    named: dict[str, Any] = {**NAMED_SIZES, **TRECVIT_SIZES, **FOURDS_SIZES}
    # Loading all of it compares every checksum.
    config: Any = load_model(path).config
    if not _same_size(config, named[RELEASES[name].model or name]):
        raise CheckpointError(path, f"expected the weights of {name}, found {config.name}: {config}")
    if name.endswith("_depth"):
        load_readout(path, kind="depth")


def _same_size(config: Any, named: Any) -> bool:
    if isinstance(config, RVMConfig) and isinstance(named, RVMConfig):
        # How many heads the core of the largest release has is not published; the loader reads it from the file.
        config = replace(config, core_heads=named.core_heads)
    return bool(config.encoder_only == named)

"""Fetch, show and convert model weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvm_core.releases import RELEASES

if TYPE_CHECKING:
    from rvm_core.checkpoint import CheckpointInfo, Progress


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm weights`. Its functions import torch only when they run."""
    weights = subparsers.add_parser("weights", help=__doc__, description=__doc__)
    actions = weights.add_subparsers(title="actions", metavar="ACTION", required=True)

    info = actions.add_parser("info", help="show what a checkpoint holds, after checking all of it")
    info.add_argument("file", metavar="FILE", help="a .npz or .safetensors file, or the name of fetched weights")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=_info)

    convert = actions.add_parser(
        "convert", help="rewrite a checkpoint as the release's .npz or as .safetensors, in float32"
    )
    convert.add_argument("source", metavar="SRC", help="a checkpoint, or the name of fetched weights")
    convert.add_argument("target", metavar="DST", type=Path, help="new file; .npz or .safetensors tells the format")
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=_convert)

    fetch = actions.add_parser("fetch", help="download released weights; an interrupted download is continued")
    fetch.add_argument("name", metavar="NAME", choices=tuple(RELEASES), help=", ".join(RELEASES))
    fetch.add_argument("--out", metavar="DIR", type=Path, help="folder to put NAME.npz in (default: the cache)")
    fetch.add_argument("--url", metavar="URL", help="of a mirror, instead of the release's own")
    fetch.set_defaults(run=_fetch)


def _info(args: argparse.Namespace) -> int:
    from rvm_core.checkpoint import load_model, read_info, weights_hash
    from rvm_core.weights import find_weights

    path = find_weights(args.file)
    info = read_info(path)
    with _progress("reading", info) as progress:
        model = load_model(path, progress=progress)
    shown = {
        "file": str(path),
        "file_bytes": info.file_bytes,
        "format": info.format,
        "model": info.config.name,
        "config": asdict(info.config),
        "parameters": info.parameters,
        "dtypes": info.dtypes,
        "weights_hash": weights_hash(model),
    }
    print(json.dumps(shown, indent=2) if args.json else _table(shown))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from rvm_core.checkpoint import SUFFIXES, load_model, read_info, save_checkpoint, weights_hash
    from rvm_core.weights import find_weights

    source, target = find_weights(args.source), args.target
    if target.suffix not in SUFFIXES:
        raise ValueError(f"expected a DST that ends with {' or '.join(SUFFIXES)}, got {target}")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent}")
    if target.exists() and not args.force:
        raise ValueError(f"{target} exists; replace it with --force")
    info = read_info(source)
    with _progress("reading", info) as progress:
        model = load_model(source, progress=progress)
    with _progress("writing", info) as progress:
        save_checkpoint(model, target, progress=progress)
    parts = f"with {', '.join(sorted(info.optional))}" if info.optional else "without decoder"
    print(f"{target}: {info.config.name}, {parts}, hash {weights_hash(model)}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from rvm_core.weights import fetch_weights

    print(fetch_weights(args.name, folder=args.out, url=args.url))
    return 0


@contextmanager
def _progress(what: str, info: CheckpointInfo) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    total = sum(info.parameters.values())
    with tqdm(total=total, desc=what, unit="param", unit_scale=True, disable=None, leave=False) as bar:

        def advance(parameters: int) -> None:
            bar.update(parameters)

        yield advance


def _table(shown: dict[str, Any]) -> str:
    config = dict(shown["config"])
    decoder = config.pop("decoder", None)
    counts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in shown["parameters"].items())
    rows = {
        "file": shown["file"],
        "format": f"{shown['format']}, {shown['file_bytes'] / 1e6:.1f} MB, {', '.join(shown['dtypes'])}",
        "model": shown["model"],
        "sizes": ", ".join(f"{name} {value}" for name, value in config.items()),
        "decoder": ", ".join(f"{name} {value}" for name, value in decoder.items()) if decoder else "none",
        "parameters": counts,
        "hash": shown["weights_hash"],
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())

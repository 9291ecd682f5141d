"""Write the weights of a pretraining run as a checkpoint that the node and the other commands load."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rvm_core.exit_codes import DISK_FULL, DONE, DiskFullError, disk_full_errors
from rvm_training.run_folder import RunFolder, RunFolderError
from rvm_training.train_extra import needs_train_extra


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train export`. Its functions import jax and torch only when they run."""
    parser = subparsers.add_parser("export", help=__doc__, description=__doc__)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True,
        help="new file: .npz, the release's layout, or .safetensors",
    )  # fmt: skip
    parser.add_argument("--step", metavar="N", type=int, help="of which checkpoint; default: the newest")
    parser.add_argument(
        "--no-decoder", action="store_true",
        help="encoder and core only, as inference needs them; files of TRecViT and 4DS never have one",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from rvm_core.checkpoint import SUFFIXES, weights_hash

    if args.out.suffix not in SUFFIXES:
        raise ValueError(f"expected a FILE that ends with {' or '.join(SUFFIXES)}, got {args.out}")
    if not args.out.parent.is_dir():
        raise ValueError(f"there is no folder {args.out.parent}")
    if args.out.exists() and not args.force:
        raise ValueError(f"{args.out} exists; replace it with --force")
    folder = RunFolder(args.folder)
    step = _choose(folder, args.step)
    # An accelerator is not needed, and may be in use by the run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with needs_train_extra():
        from rvm_training.train_export import export_checkpoint
    try:
        with disk_full_errors(str(args.out)):
            model = export_checkpoint(folder, step, args.out, decoder=not args.no_decoder)
    except DiskFullError as error:
        print(f"rvm-train export: error: {error}", file=sys.stderr)
        return DISK_FULL
    kind = "with" if getattr(model, "decoder", None) else "without"
    config: Any = model.config
    print(f"{args.out}: {config.name} of step {step}, {kind} decoder, hash {weights_hash(model)}")
    return DONE


def _choose(folder: RunFolder, step: int | None) -> int:
    steps = folder.steps()
    if not steps:
        raise RunFolderError(f"there is no checkpoint in {folder.checkpoints}")
    if step is not None and step not in steps:
        raise RunFolderError(f"{folder.path} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step

"""Train a readout of points, boxes, depth, classes or poses on frozen features."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvm_core.arguments import parse_size
from rvm_core.config import IMAGE_SIZES, NAMED_SIZES, TRECVIT_SIZES
from rvm_training.readouts.presets import PRESETS
from rvm_training.readouts.sources import ENTRIES, parse_data

_MODELS = (*NAMED_SIZES, *TRECVIT_SIZES, *IMAGE_SIZES)
_EPILOG = """\
writes OUT (for the node's parameters point_head and box_head, `rvm eval` and `rvm track`) and beside it the curve as
.csv and .png, a summary as .json, and while it trains .resume.safetensors, with which --resume goes on

examples:
  rvm-train readout --task points --weights rvm_s16 --size 256 --cache cache --out points.safetensors
  rvm-train readout --task boxes --weights nano.safetensors --size 128 --preset small --out boxes.safetensors
  rvm-train readout --task depth --weights rvm_s16 --data scannet:/data/scannet --out depth.safetensors

exit codes: 0 done, 1 an error that one line explains, 2 wrong usage, 4 the disk is full, 6 the loss is not finite with
any rate, 130 interrupted; what was done is kept"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm-train readout`. Its function imports torch only when it runs."""
    parser = subparsers.add_parser(
        "readout",
        help=__doc__,
        description=f"{__doc__} Points and boxes get a recurrent readout, or a head over windows as in 4DS.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, choices=("points", "boxes", "depth", "class", "pose"))
    parser.add_argument("--out", required=True, type=_out, metavar="FILE", help="a .safetensors")
    _add_model(parser.add_argument_group("frozen encoder"))
    _add_data(parser.add_argument_group("clips"))
    _add_head(parser.add_argument_group("readout"))
    _add_training(parser.add_argument_group("training (the defaults depend on --preset)"))
    parser.set_defaults(run=_run)


def _add_model(group: argparse._ArgumentGroup) -> None:
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--weights", metavar="FILE_OR_NAME", help="a checkpoint, or the name of fetched weights")
    which.add_argument("--model", metavar="NAME", choices=_MODELS, help="random weights, to see what training is worth")
    which.add_argument("--pixels", action="store_true", help="raw pixels of the patches in place of features")
    group.add_argument("--image", action="store_true", help="RVM without memory: its state is reset at every frame")
    group.add_argument("--size", type=_size, default=(256, 256), metavar="N or HxW", help="of the frames; default: 256")
    group.add_argument("--bfloat16", action="store_true", help="encode with bfloat16 products")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda if there is one")
    group.add_argument(
        "--features",
        choices=("auto", "memory", "disk", "live"),
        default="auto",
        help="where features are: in memory, on the disk, or made again for each batch; default: auto: on the disk "
        "with --cache, otherwise in memory if they fit there, otherwise live",
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="for features on the disk")
    group.add_argument("--cache-dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    group.add_argument(
        "--workers", type=_count(0), default=0, metavar="N", help="processes that make clips; default: 0, a thread"
    )


def _add_data(group: argparse._ArgumentGroup) -> None:
    known = ", ".join(f"{entry.name}:PATH" if entry.needs_path else entry.name for entry in ENTRIES.values())
    group.add_argument(
        "--data", type=_data, default=("synthetic", None), metavar="DATA", help=f"{known}; default: synthetic"
    )
    group.add_argument("--split", metavar="NAME", help="of a dataset; default: the one for training")
    group.add_argument(
        "--held-out-data", type=_data, metavar="DATA", help="default: the same data, its split for validation"
    )
    group.add_argument("--held-out-split", metavar="NAME", help="default: the one for validation")
    group.add_argument(
        "--scenes", "--clips", dest="clips", type=_count(1), metavar="N",
        help="clips to train on; default: 1000 synthetic ones, or one of each video",
    )  # fmt: skip
    group.add_argument("--held-out", type=_count(1), default=64, metavar="N", help="held-out clips; default: 64")
    group.add_argument(
        "--frames", type=_count(2), metavar="T", help="of a clip; default: 24 for recurrent readouts, else 16"
    )
    group.add_argument(
        "--stride", type=_count(1), metavar="N", help="every N-th frame of a dataset's videos; default: 1, classes 2"
    )
    group.add_argument("--points", type=_count(1), default=32, metavar="N", help="points of a clip; default: 32")
    group.add_argument(
        "--objects", type=_count(1), metavar="N", help="objects or boxes of a clip; default: 4 synthetic, or 25"
    )


def _add_head(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--head", choices=("recurrent", "window"), help="default: recurrent for points and boxes, else window"
    )
    group.add_argument("--channels", type=_count(1), metavar="N", help="of the readout")
    group.add_argument("--heads", type=_count(1), metavar="N", help="of its attention")
    group.add_argument(
        "--truncate", type=_count(1), metavar="N", help="recurrent: gradients go N frames back at the most"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    shown = "; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items())
    group.add_argument("--preset", choices=tuple(PRESETS), default="4ds", help=f"{shown}; default: 4ds")
    group.add_argument("--steps", type=_count(1), metavar="N", help="with each rate")
    group.add_argument("--batch", type=_count(1), metavar="N", help="clips")
    group.add_argument(
        "--learning-rates",
        type=_positive,
        nargs="+",
        metavar="RATE",
        help="trains with each and keeps the best held-out loss",
    )
    group.add_argument("--warmup", type=_count(0), metavar="N", help="steps")
    group.add_argument("--end-learning-rate", type=_zero_or_more, metavar="RATE", help="where the cosine ends; 1e-7")
    group.add_argument("--weight-decay", type=_zero_or_more, metavar="X", help="1e-4")
    group.add_argument(
        "--clip-norm", type=_positive, metavar="X", help="longest gradient; default: 1 for recurrent readouts"
    )
    group.add_argument("--seed", type=_count(0), default=0, metavar="N", help="default: 0")
    group.add_argument("--resume", action="store_true", help="go on where the same command was stopped")


def _run(args: argparse.Namespace) -> int:
    from rvm_training.readout_job import run

    return run(args)


def _out(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"expected a file name that ends with .safetensors, got {text!r}")
    return path


def _size(text: str) -> tuple[int, int]:
    return parse_size(f"{text}x{text}" if text.isdecimal() else text)


def _data(text: str) -> tuple[str, Path | None]:
    try:
        return parse_data(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    value = _zero_or_more(text)
    if not value:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _zero_or_more(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value

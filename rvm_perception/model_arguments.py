"""Options of a command line that say which model looks at a video and on what it runs, and what they give."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from rvm_core.arguments import BACKENDS, parse_size
from rvm_core.config import ENCODER_NAMES
from rvm_core.shipped_weights import weights_or_shipped

if TYPE_CHECKING:
    from rvm_core.engines import Engine
    from rvm_core.streaming import StreamingEncoder


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """--weights, --model, --size, --backend, --precision, --device."""
    group.add_argument(
        "--weights", default="", metavar="FILE_OR_NAME",
        help="a checkpoint, or the name of fetched weights; default: those that ship for --model, if any do",
    )  # fmt: skip
    group.add_argument(
        "--model", choices=ENCODER_NAMES, default="rvm_nano", metavar="NAME",
        help=f"without --weights: one of {', '.join(ENCODER_NAMES)}, with random weights where none ship; with "
        "--weights only the ending _image counts, which takes the memory from RVM; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--size", metavar="HxW", type=parse_size,
        help="of the model's input, pixels, multiples of 16; default: 256 patches or so, in the video's shape",
    )  # fmt: skip
    group.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")
    group.add_argument("--precision", default="auto", help="fp32, bf16, fp16 or auto; default: %(default)s")
    group.add_argument("--device", help="cpu, cuda or cuda:N; default: the backend's best")


def chosen_weights(args: argparse.Namespace) -> str:
    """Name or path of the weights to load; "" for random ones."""
    return weights_or_shipped(args.weights, args.model)


def load_model(args: argparse.Namespace, *, random_means: str, decoder: bool = False) -> StreamingEncoder:
    """The model of `chosen_weights`, or one of random weights, with a warning on stderr that ends with `random_means`.

    decoder: RVM with the decoder of its weights. Raises `CheckpointError` if there is none.
    """
    from rvm_core.checkpoint import load_checkpoint
    from rvm_core.encoders import open_encoder
    from rvm_core.weights import find_weights

    if weights := chosen_weights(args):
        path = find_weights(weights)
        return load_checkpoint(path, decoder=True) if decoder else open_encoder(args.model, path)
    warning = f"no weights given: the model runs on RANDOM weights, so {random_means}; see `rvm weights`"
    print(f"rvm: warning: {warning}", file=sys.stderr)
    return open_encoder(args.model)


def make_engine(args: argparse.Namespace, model: StreamingEncoder, image_size: tuple[int, int]) -> Engine:
    """The engine for frames of image_size (height, width); what it says while it is made goes to stderr."""
    from tqdm import tqdm

    from rvm_core.engines import create_engine

    return create_engine(
        model,
        backend=args.backend,
        precision=args.precision,
        image_size=image_size,
        device=args.device,
        progress=lambda line: tqdm.write(line, file=sys.stderr),
    )


def describe_model(args: argparse.Namespace, model: StreamingEncoder, engine: Engine) -> dict[str, object]:
    """What a summary says of them."""
    from rvm_core.checkpoint import weights_hash

    spec, weights = engine.spec, chosen_weights(args)
    return {
        "model": model.config.name,
        "weights": weights or "random, seed 0",
        "random_weights": not weights,
        "weights_hash": weights_hash(model),
        "image_size": f"{spec.image_size[0]}x{spec.image_size[1]}",
        "backend": spec.backend,
        "precision": spec.precision,
        "device": spec.device,
    }


def positive(text: str) -> float:
    """A number over 0."""
    if (value := not_negative(text)) == 0:
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text}")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value

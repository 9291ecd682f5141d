"""Look at the features of a video or a bag."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rvm_core.config import IMAGE_SUFFIX
from rvm_core.exit_codes import DISK_FULL, DONE, INCOMPLETE, DiskFullError, disk_full_errors
from rvm_perception.model_arguments import (
    add_model_arguments,
    chosen_weights,
    count,
    describe_model,
    load_model,
    make_engine,
    not_negative,
    positive,
)
from rvm_perception.output_folder import folder_at_the_end

if TYPE_CHECKING:
    from rvm_core.clip_depth import ClipDepth
    from rvm_core.engines import Engine
    from rvm_core.preprocess import Preprocess
    from rvm_core.streaming import StreamingEncoder
    from rvm_perception.show import Spot, View
    from rvm_perception.show_clip import Clip, EncodedClip, Frame

_BAG_SUFFIXES = (".mcap", ".db3", ".bag")
_VIEWS = ("pca", "kmeans", "similarity", "reconstruction", "depth")
_OUTPUTS = tuple(f"{view}.{suffix}" for view in _VIEWS for suffix in ("mp4", "png")) + ("summary.json",)
_DESCRIPTION = """\
Shows what a model's features tell apart: their principal components as colours (pca), their clusters (kmeans), how
similar every place is to a given one (similarity), and, with the checkpoint's decoder, frames reconstructed from
earlier ones and a few patches (reconstruction). With --depth also how far away all is (depth), by the clip encoder 4DS.
Needs no ROS; a bag needs the extra rvm_perception[replay]."""
_EPILOG = """\
coordinates are pixels, x to the right, y down, centres of pixels at .5: the image covers [0, width] x [0, height]

writes to the folder of --out, for each view a film and a contact sheet (pca.mp4, pca.png, ...), and summary.json; all
at the end, so that a run that fails or is interrupted leaves what was there before. On the way the features of all
frames lie there in a temporary file, 2 bytes a number.

exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 3 only a part of a damaged bag is shown, 4 the disk is
full, 130 interrupted

example: rvm show ride.mp4 --weights rvm_s16 --point 320,120@1.5"""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `rvm show`. Its functions import torch only when they run."""
    parser = subparsers.add_parser(
        "show",
        help=__doc__,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recording", metavar="VIDEO|BAG", type=Path, help="a file that OpenCV can decode, or a bag")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("out/show"), help="for the results; default: %(default)s"
    )
    parser.add_argument("--topic", help="of a bag: the images to look at; default: the only image topic")
    parser.add_argument("--recover", action="store_true", help="of a damaged bag: show what can be read of it")
    parser.add_argument("--start", metavar="SECONDS", type=not_negative, default=0.0, help="default: the beginning")
    parser.add_argument("--seconds", type=positive, help="how much is shown; default: to the end")
    _add_views(parser.add_argument_group("what is shown"))
    add_model_arguments(parser.add_argument_group("by which model"))
    parser.set_defaults(run=_run, refuse=parser.error)


def _add_views(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--views", nargs="+", choices=_VIEWS, metavar="VIEW",
        help=f"any of {', '.join(_VIEWS)}; default: all, similarity with --point, reconstruction with a decoder, depth "
        "with --depth; depth alone with --depth but without --weights",
    )  # fmt: skip
    group.add_argument(
        "--depth", metavar="FILE_OR_NAME",
        help="a checkpoint of 4DS with its depth readout, which sees the frames by windows of 16",
    )  # fmt: skip
    group.add_argument(
        "--running", action="store_true", help="PCA as in the live overlay, frame by frame, not of the whole clip"
    )
    group.add_argument("--clusters", type=count, default=5, metavar="K", help="of k-means; default: %(default)s")
    group.add_argument(
        "--point", nargs="+", type=_spot, default=[], metavar="X,Y[@SECONDS]",
        help="places to compare all others with, in the frame of that time; default: the first one shown",
    )  # fmt: skip
    group.add_argument(
        "--gap", type=count, default=16, metavar="FRAMES",
        help="from the last of four source frames to the reconstructed one; default: %(default)s, trained: 4 to 48",
    )  # fmt: skip
    group.add_argument(
        "--visible", type=_share, default=0.05, metavar="SHARE",
        help="of its patches, shown to the decoder; default: %(default)s, as in training",
    )  # fmt: skip
    group.add_argument("--seed", type=_seed, default=0, help="of k-means and visible patches; default: %(default)s")


def _run(args: argparse.Namespace) -> int:
    if args.views and "similarity" in args.views and not args.point:
        args.refuse("similarity needs --point X,Y[@SECONDS]")
    if args.views and "depth" in args.views and not args.depth:
        args.refuse("depth needs --depth FILE, a checkpoint of 4DS with a depth readout")

    from rvm_perception.video import require_video_writer

    # What is quick to find out comes before what is slow.
    require_video_writer()
    try:
        with disk_full_errors(str(args.out)), _clip(args) as clip:
            return _show(args, clip)
    except DiskFullError as error:
        print(f"rvm: error: {error}", file=sys.stderr)
        return DISK_FULL


def _show(args: argparse.Namespace, clip: Clip) -> int:
    from rvm_perception.show import write_view

    first = next(iter(clip.frames()), None)
    if first is None:
        raise ValueError(f"{clip.name} has no frame at --start {args.start:g} s")
    views = _views(args)
    # Whatever cannot be loaded comes before the steps.
    depth = _depth_model(args) if "depth" in views else None
    with folder_at_the_end(args.out, _OUTPUTS) as folder, ExitStack() as files:
        made: list[tuple[View, int]] = []
        summary: dict[str, Any] = {}
        if depth is not None:
            file = files.enter_context(tempfile.TemporaryFile(dir=folder))
            made, summary = _depth_views(args, clip, depth, file)
        if names := [view for view in views if view != "depth"]:
            file = files.enter_context(tempfile.TemporaryFile(dir=folder))
            of_features, summary = _feature_views(args, clip, first, names, file)
            made = [*of_features, *made]
        shown = {}
        for view, frames in made:
            write_view(view, folder, clip.rate, frames, partial(_bar, total=frames))
            shown[view.name] = view.summary()
        summary = {"recording": clip.name, "recovered": clip.recovered, **summary, "views": shown}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(_table(summary))
    print(f"  written to {args.out}: {', '.join(f'{name}.mp4, {name}.png' for name in shown)}, summary.json")
    return INCOMPLETE if clip.recovered else DONE


def _feature_views(
    args: argparse.Namespace, clip: Clip, first: Frame, views: list[str], file: IO[bytes]
) -> tuple[list[tuple[View, int]], dict[str, Any]]:
    """The views of a streaming model's features, each with its number of pictures, and what the summary says of it."""
    from rvm_core.preprocess import Preprocess
    from rvm_perception.demo_clip import image_size
    from rvm_perception.show_clip import encode

    height, width = args.size or image_size(*first.image.shape[:2])
    preprocess = Preprocess(height=height, width=width, policy="letterbox")
    _check_spots(args.point, preprocess.map(*first.image.shape[:2]))
    decoder = "reconstruction" in views
    model = load_model(args, random_means="what it shows means little", decoder=decoder)
    engine = make_engine(args, model, (height, width))
    encoded = encode(clip, _bar(clip.frames(), "features", clip.expected), engine, preprocess, file)
    made = _made(args, views, encoded, preprocess, model, engine)
    return made, {**_span(encoded.seconds), **describe_model(args, model, engine)}


def _depth_model(args: argparse.Namespace) -> ClipDepth:
    from rvm_core.clip_depth import ClipDepth
    from rvm_core.weights import find_weights

    return ClipDepth.load(find_weights(args.depth), device=_torch_device(args.device or "cuda"))


def _depth_views(
    args: argparse.Namespace, clip: Clip, model: ClipDepth, file: IO[bytes]
) -> tuple[list[tuple[View, int]], dict[str, Any]]:
    """As `_feature_views`, of the depth."""
    from rvm_perception.show_depth import DepthView, measure_depth

    depths, seconds = measure_depth(clip, _bar(clip.frames(), "depth", clip.expected), model, file)
    height, width = model.image_size
    about = {
        "model": model.model,
        "weights": args.depth,
        "random_weights": False,
        "weights_hash": model.weights_hash,
        "image_size": f"{height}x{width}",
        "backend": "torch",
        "precision": "fp32",
        "device": model.device,
    }
    view = DepthView(clip=clip, model=model, depths=depths)
    return [(view, len(seconds))], {**_span(seconds), **about}


def _span(seconds: list[float]) -> dict[str, Any]:
    return {"frames": len(seconds), "start_s": round(seconds[0], 6), "end_s": round(seconds[-1], 6)}


@contextmanager
def _clip(args: argparse.Namespace) -> Iterator[Clip]:
    from rvm_perception.show_clip import Part, VideoClip

    part = Part(start=args.start, seconds=args.seconds)
    if not _is_bag(args.recording):
        if args.topic or args.recover:
            raise ValueError(f"{args.recording} is a video: --topic and --recover are for bags, leave them out")
        yield VideoClip(args.recording, part)
        return

    from tqdm import tqdm

    from rvm_perception.bag_reader import Bag
    from rvm_perception.show_bag import BagClip

    with Bag(args.recording, recover=args.recover) as bag:
        with tqdm(desc="reading stamps", unit="message", disable=None, leave=False) as bar:
            clip = BagClip(bag, part, topic=args.topic, progress=bar.update)
        yield clip


def _is_bag(path: Path) -> bool:
    """By its name; a folder can be nothing else."""
    return path.is_dir() or path.name.removesuffix(".zstd").endswith(_BAG_SUFFIXES)


def _check_spots(spots: Iterable[Spot], frame_map: Any) -> None:
    from rvm_core.tracking.pixels import point_query

    for spot in spots:
        point_query(1, spot.x, spot.y, frame_map)


def _views(args: argparse.Namespace) -> list[str]:
    """What to show: what was asked for, or what can be."""
    from rvm_core.checkpoint import read_info
    from rvm_core.weights import find_weights

    if args.depth and not args.views and not args.weights:
        return ["depth"]
    weights = chosen_weights(args)
    has_decoder = bool(weights) and "decoder" in read_info(find_weights(weights)).optional
    # Without memory there is nothing earlier to reconstruct a frame from.
    has_decoder &= not args.model.endswith(IMAGE_SUFFIX)
    if args.views:
        if "reconstruction" in args.views and not has_decoder:
            what = f"{weights} as {args.model} has none" if weights else "random weights have none"
            raise ValueError(f"reconstruction needs a trained decoder, and {what}; the released checkpoints have one")
        return [view for view in _VIEWS if view in args.views]
    can = {
        "pca": True,
        "kmeans": True,
        "similarity": bool(args.point),
        "reconstruction": has_decoder,
        "depth": bool(args.depth),
    }
    return [view for view in _VIEWS if can[view]]


def _made(
    args: argparse.Namespace,
    names: Iterable[str],
    encoded: EncodedClip,
    preprocess: Preprocess,
    model: StreamingEncoder,
    engine: Engine,
) -> list[tuple[View, int]]:
    """Each view and how many pictures it has."""
    from rvm_perception.show import ClipTooShort, ClusterView, PCAView, SimilarityView

    total = len(encoded.seconds)
    makers: dict[str, Callable[[], View]] = {
        "pca": lambda: PCAView(encoded=encoded, running=args.running),
        "kmeans": lambda: ClusterView(encoded=encoded, clusters=args.clusters, seed=args.seed),
        "similarity": lambda: SimilarityView(encoded=encoded, spots=args.point),
    }
    # Errors of all come before the films of the first.
    made: list[tuple[View, int]] = [(makers[name](), total) for name in names if name in makers]
    if "reconstruction" in names:
        try:
            made.append(_reconstruction(args, encoded, preprocess, model, engine))
        except ClipTooShort as error:
            if args.views:
                raise
            print(f"rvm: warning: no reconstruction: {error}", file=sys.stderr)
    return made


def _reconstruction(
    args: argparse.Namespace, encoded: EncodedClip, preprocess: Preprocess, model: StreamingEncoder, engine: Engine
) -> tuple[View, int]:
    from rvm_core.model import RVM
    from rvm_core.reconstruction import Reconstructor, choose_visible
    from rvm_perception.show import ReconstructionView

    assert isinstance(model, RVM)
    rows, cols = encoded.features.shape[1:3]
    visible = choose_visible(rows, cols, args.visible, seed=args.seed)
    reconstructor = Reconstructor(model.to(_torch_device(engine.spec.device)), visible)
    if args.gap > reconstructor.max_gap:
        raise ValueError(f"--gap {args.gap}: this decoder knows gaps of up to {reconstructor.max_gap} frames")
    view = ReconstructionView(
        encoded=encoded, reconstructor=reconstructor, visible=visible, preprocess=preprocess, gap=args.gap
    )
    return view, view.count


def _torch_device(device: str) -> str:
    """Where the reconstruction computes: where the engine does, if torch can."""
    import torch

    return device if device.startswith("cuda") and torch.cuda.is_available() else "cpu"


def _bar(items: Iterable[Any], text: str, total: int | None) -> Iterator[Any]:
    """The items, with a bar on a terminal."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, desc=text, unit="frame", disable=None))


def _table(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    rows = {
        "frames": f"{summary['frames']}, {summary['start_s']:.2f} s to {summary['end_s']:.2f} s of "
        f"{summary['recording']}",
        "model": f"{summary['model']}, weights {summary['weights']}, {summary['image_size']}, {summary['backend']} "
        f"{summary['precision']} on {summary['device']}",
    }
    if summary["recovered"]:
        rows["recovered"] = f"only the readable part is shown: {summary['recovered']}"
    for name, values in summary["views"].items():
        rows[name] = _values(values)
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


def _values(values: dict[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        if key == "points":
            parts += [f"({p['x']:g}, {p['y']:g}) at {p['seconds']:.2f} s" for p in value]
        elif isinstance(value, list):
            parts.append(f"{key.replace('_', ' ')} {', '.join(f'{share:.0%}' for share in value)}")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{key.replace('_', ' ')} {text}")
    return ", ".join(parts)


def _spot(text: str) -> Spot:
    from rvm_perception.show import Spot

    number = r"[-+]?\d+(?:\.\d*)?"
    if not (match := re.fullmatch(rf"({number}),({number})(?:@(\d+(?:\.\d*)?))?", text)):
        raise argparse.ArgumentTypeError(f"expected X,Y or X,Y@SECONDS, such as 320,120@1.5, got {text!r}")
    return Spot(x=float(match[1]), y=float(match[2]), seconds=None if match[3] is None else float(match[3]))


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1 or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number over 0 and under 1, got {text}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2147483647, got {text}")
    return int(text)

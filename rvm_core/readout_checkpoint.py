"""Loads readouts and heads from the release's .npz of parameters and from our .safetensors, and saves the latter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from safetensors.torch import save_file
from torch import nn

from rvm_core.atomic import atomic_file
from rvm_core.checkpoint_checks import check_readable, describe, read_parameters, tensors_hash
from rvm_core.heads import (
    BoxHead,
    ClassHead,
    ClassHeadConfig,
    DepthHead,
    DepthHeadConfig,
    PointHead,
    PoseHead,
    PoseHeadConfig,
    box_config,
    point_config,
)
from rvm_core.parameter_layout import Parameter
from rvm_core.readout import PATCH_SIZE, AttentionReadout, readout_config
from rvm_core.readout_names import RELEASED, Form, check_readout, find_form, find_readouts
from rvm_core.recurrent_readout import RecurrentReadout, recurrent_config
from rvm_core.tensor_file import CheckpointError, TensorFile, open_tensor_file, printable

FORMAT_VERSION = "1"
"""Of the .safetensors layout: names, shapes and metadata. Grows when an older reader would misread a file."""

Kind: TypeAlias = Literal["readout", "points", "boxes", "depth", "classes", "pose", "recurrent"]
"""What a file holds: a bare `AttentionReadout`, one of the heads, or a `RecurrentReadout` of points or boxes."""
Readout: TypeAlias = AttentionReadout | PointHead | BoxHead | DepthHead | ClassHead | PoseHead | RecurrentReadout

_CLASSES: dict[Kind, type[Readout]] = {
    "readout": AttentionReadout,
    "points": PointHead,
    "boxes": BoxHead,
    "depth": DepthHead,
    "classes": ClassHead,
    "pose": PoseHead,
    "recurrent": RecurrentReadout,
}
_FORMS: dict[Kind, tuple[Form, ...]] = {
    "readout": ("learned", "given"),
    "points": ("points",),
    "boxes": ("boxes",),
    "depth": ("learned",),
    "classes": ("learned",),
    "pose": ("learned",),
    "recurrent": ("recurrent",),
}
_FORM_TEXT: dict[Form, str] = {
    "learned": "a readout with learned queries",
    "given": "a readout with given queries",
    "points": "a point head",
    "boxes": "a box head",
    "recurrent": "a recurrent readout",
}


def load_readout(
    path: str | Path,
    *,
    kind: Kind | None = None,
    image_size: tuple[int, int] | None = None,
    part: str | None = None,
) -> Readout:
    """Loads a readout or head: float32, on the CPU, in eval mode. Never reads a pickle.

    All sizes are inferred from the file; nothing is allocated before its sizes are checked.

    Args:
        path: the release's .npz or our .safetensors; told apart by content.
        kind: what the file holds. None: what it says itself, which .safetensors and tracking heads do; else a bare
            `AttentionReadout`.
        image_size: (height, width) of the depth maps of a .npz, in pixels; None: they are square.
        part: what the names of the readout's parameters start with in a file that holds a whole model, for instance
            "params/layers_2/"; None: the file has one readout only, wherever it is.

    Raises:
        CheckpointError: the file is not a sound readout of this kind. The message lists every missing, unexpected,
            mis-shaped, wrongly typed, unreadable and non-finite tensor at once.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}; known kinds: {', '.join(get_args(Kind))}")
    with open_tensor_file(path) as file:
        plan = _Plan.of(path, file, kind, image_size, part)
        if plan.problems:
            plan.problems += check_readable(file, plan.sound)
        plan.raise_problems(path)
        readout = plan.build()
        state = inner(readout).state_dict()
        for name, tensor in read_parameters(file, plan.sound, plan.problems):
            state[name].copy_(tensor)
        plan.raise_problems(path)
        if plan.own and file.metadata.get("weights_hash") != tensors_hash(state.items()):
            raise CheckpointError(path, "the weights do not match the weights_hash in its metadata: it is damaged")
    return readout.eval()


def save_readout(readout: Readout, path: str | Path) -> None:
    """Saves a readout or head in float32 as .safetensors; a crash leaves no half file.

    Raises `ValueError` for another suffix and `OSError` if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a file name that ends with .safetensors, got {path.name!r}")
    tensors = {
        name: tensor.detach().to("cpu").float().contiguous() for name, tensor in inner(readout).state_dict().items()
    }
    metadata = {
        "format_version": FORMAT_VERSION,
        "kind": next(kind for kind, cls in _CLASSES.items() if type(readout) is cls),
        "weights_hash": tensors_hash(tensors.items()),
    }
    bare = inner(readout)
    if isinstance(bare, AttentionReadout) and bare.config.video_size:
        metadata["video_size"] = _sizes_text(bare.config.video_size)
        metadata["patch_size"] = _sizes_text(bare.config.patch_size)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def inner(readout: Readout) -> nn.Module:
    """The module whose state_dict a file holds: heads that only wrap a readout are stored as that readout."""
    return readout.readout if isinstance(readout, DepthHead | ClassHead | PoseHead) else readout


@dataclass
class _Plan:
    """What a file holds, and everything that is wrong with it."""

    own: bool
    kind: Kind
    sizes: dict[str, int]
    video_size: tuple[int, int, int] | None
    """Of a dense readout."""
    patch_size: tuple[int, int, int]
    sound: list[Parameter]
    """Parameters whose shape and dtype are right."""
    problems: list[str]

    @classmethod
    def of(
        cls, path: str | Path, file: TensorFile, kind: Kind | None, image_size: tuple[int, int] | None, part: str | None
    ) -> _Plan:
        own = file.format == "safetensors"
        prefix = "" if own else _find_part(path, file, part)
        headers = {name: header for name, header in file.headers.items() if name.startswith(prefix)}
        said, complaints = _said_kind(file.metadata) if own else (None, [])
        wanted = kind or said
        form = find_form(
            headers.keys(),
            get_args(Form) if own else RELEASED,
            own=own,
            prefix=prefix,
            preferred=_FORMS[wanted] if wanted else (),
        )
        if form is None:
            raise CheckpointError(path, _foreign(file))
        sound, sizes, problems = check_readout(headers, form, own=own, prefix=prefix)
        problems += complaints
        if said is not None and said != wanted:
            problems.append(f"kind: expected {kind}, found {said}")
        plan = cls(own, wanted or _usual_kind(form), sizes, None, PATCH_SIZE, sound, problems)
        if form not in _FORMS[plan.kind]:
            plan.problems.append(f"kind: expected {plan.kind}, found the parameters of {_FORM_TEXT[form]}")
        elif not problems:
            plan._find_video(file.metadata, image_size)
            plan._check_kind()
        return plan

    def build(self) -> Readout:
        """The module, uninitialised."""
        sizes = self.sizes
        if self.kind == "points":
            return PointHead(point_config(sizes), seed=None)
        if self.kind == "boxes":
            return BoxHead(box_config(sizes), seed=None)
        if self.kind == "recurrent":
            return RecurrentReadout(recurrent_config(sizes), seed=None)
        config = readout_config(sizes, video_size=self.video_size, patch_size=self.patch_size)
        if self.kind == "readout":
            return AttentionReadout(config, seed=None)
        common = {name: getattr(config, name) for name in ("features", "channels", "num_heads", "mlp_ratio")}
        if self.kind == "classes":
            return ClassHead(ClassHeadConfig(classes=config.outputs, frames=config.frames, **common), seed=None)
        if self.kind == "pose":
            return PoseHead(PoseHeadConfig(**common), seed=None)
        assert self.video_size
        depth = DepthHeadConfig(
            frames=config.frames, image_size=self.video_size[1:], patch_size=self.patch_size, **common
        )
        return DepthHead(depth, seed=None)

    def raise_problems(self, path: str | Path) -> None:
        if self.problems:
            found = describe(len(self.problems))
            raise CheckpointError(path, f"not a sound readout checkpoint, {found}:", tuple(self.problems))

    def _find_video(self, metadata: Mapping[str, str], image_size: tuple[int, int] | None) -> None:
        if self.own:
            texts = metadata.get("video_size"), metadata.get("patch_size")
            if texts != (None, None):
                video, patch = map(_sizes_of, texts)
                if video is None or patch is None:
                    self.problems.append("metadata: expected video_size and patch_size, each as three sizes")
                else:
                    self.video_size, self.patch_size = video, patch
        elif self.kind == "depth":
            height, width = image_size or self._square()
            self.video_size = (self.sizes["frames"], height, width)

    def _square(self) -> tuple[int, int]:
        patches = self.sizes["num_queries"] * PATCH_SIZE[0] // self.sizes["frames"]
        side = math.isqrt(patches)
        return side * PATCH_SIZE[1], side * PATCH_SIZE[2]

    def _check_kind(self) -> None:
        """Whether the sizes are those of this kind."""
        sizes, queries = self.sizes, self.sizes.get("num_queries")
        if self.kind in ("points", "boxes", "recurrent"):
            return
        if self.kind in ("classes", "pose") and queries != 1:
            self.problems.append(f"kind: a head for {self.kind} has one query, found {queries}")
        frames, outputs = sizes["frames"], sizes["outputs"]
        if self.kind == "pose" and (frames, outputs) != (2, 12):
            self.problems.append(f"kind: a head for pose reads 2 frames for 12 numbers, found {frames} and {outputs}")
        if self.kind == "depth" and self.video_size is None:
            self.problems.append("metadata: expected the video_size of a depth head")
        elif self.video_size:
            try:
                readout_config(sizes, video_size=self.video_size, patch_size=self.patch_size)
            except ValueError as error:
                self.problems.append(f"sizes: {error}; image_size tells the size of depth maps that are not square")
            if self.kind == "depth" and (self.video_size[0], math.prod(self.patch_size)) != (frames, outputs):
                self.problems.append(
                    f"kind: a depth head of {frames} frames gives as many, one value a pixel; found {outputs} values "
                    f"a patch of {_sizes_text(self.patch_size)} in a video of {_sizes_text(self.video_size)}"
                )


def _find_part(path: str | Path, file: TensorFile, part: str | None) -> str:
    found = find_readouts(file.headers)
    if part is None and len(found) == 1:
        return found[0]
    names = ", ".join(repr(printable(prefix)) for prefix in found)
    if part is None and found:
        raise CheckpointError(path, f"it holds {len(found)} readouts; choose one with part=: {names}")
    # Without the mark it may still be a readout that has lost it.
    part = part or ""
    if not any(name.startswith(part) for name in file.headers):
        raise CheckpointError(path, f"none of its tensors is in {part!r}; it holds readouts in: {names or 'none'}")
    return part


def _foreign(file: TensorFile) -> str:
    first = ", ".join(printable(name) for name in list(file.headers)[:3])
    return f"none of its {len(file.headers)} tensors is a parameter of a readout: {first}, ..."


def _usual_kind(form: Form) -> Kind:
    return next(kind for kind in get_args(Kind) if form in _FORMS[kind])


def _said_kind(metadata: Mapping[str, str]) -> tuple[Kind | None, list[str]]:
    problems = []
    version, kind = metadata.get("format_version"), metadata.get("kind")
    if version != FORMAT_VERSION:
        problems.append(f"metadata: expected format_version {FORMAT_VERSION!r}, found {version!r:.200}")
    if kind not in get_args(Kind):
        return None, [*problems, f"metadata: expected kind {', '.join(get_args(Kind))}, found {kind!r:.200}"]
    return next(known for known in get_args(Kind) if known == kind), problems


def _sizes_text(sizes: tuple[int, int, int]) -> str:
    return "x".join(map(str, sizes))


def _sizes_of(text: str | None) -> tuple[int, int, int] | None:
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text or "")
    return (int(match[1]), int(match[2]), int(match[3])) if match else None

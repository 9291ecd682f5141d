"""Encoders of the `transformers` library behind this package's contracts; only this file imports the library.

Shapes: B batch, T frames of a window, H W image in pixels (multiples of 16), h = H/16, w = W/16, N = h*w tokens of a
frame in row-major order, D width, t tubes along time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvm_core.config import PATCH_SIZE, check_image_size
from rvm_core.position import resize_axis
from rvm_core.streaming import State, StreamingEncoder

FRAME_KINDS = {"dinov2": ("dinov2", "dinov2_with_registers"), "dinov3": ("dinov3_vit",)}
"""Image encoders: the types of the library's models that are of each kind."""
CLIP_KINDS = {"videomae": ("videomae",), "vjepa2": ("vjepa2",)}
"""Clip encoders, likewise."""
KINDS = FRAME_KINDS | CLIP_KINDS

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's, which all these were trained with; a preprocessor's file beside the weights may say otherwise."""
_PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
_SAID = (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD))
"""Keys in it, and what counts where they are missing."""
_UNUSED = ("mask_token",)
"""Ends of the names of weights that features do not depend on."""


class TransformersError(ValueError):
    """A folder or repository from which no encoder can be loaded; says what was expected."""


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """What is known of an encoder. An `EncoderConfig`, and the same for clips."""

    name: str
    kind: str
    """Of `KINDS`."""
    width: int
    """Channels of the features."""
    patch_size: int
    """Pixels; images are resized so that the grid has a cell for every 16 pixels."""
    special_tokens: int = 0
    """[CLS] and registers, before those of patches."""
    frames: int = 1
    """Of a window, that is seen at once; 1 for an image encoder."""
    tube_frames: int = 1
    """Frames of a token."""
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    def __post_init__(self) -> None:
        if self.frames < self.tube_frames or self.frames % self.tube_frames:
            raise ValueError(f"expected windows of a multiple of {self.tube_frames} frames, got {self.frames}")

    @property
    def encoder_only(self) -> TransformersConfig:
        return self


class FrameTransformer(StreamingEncoder):
    """An image encoder, stepped frame by frame: [CLS] and tokens of patches, no memory, so an empty state."""

    def __init__(self, model: nn.Module, config: TransformersConfig) -> None:
        super().__init__()
        self.config: TransformersConfig = config
        self.model = model
        self.pixels = _Pixels(config)

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """See `StreamingEncoder`."""
        rows, cols = _grid(frames)
        tokens = self.model(pixel_values=self.pixels(frames)).last_hidden_state
        patches = tokens[:, self.config.special_tokens :]
        if patches.shape[1] != rows * cols:
            raise ValueError(f"expected {rows * cols} tokens of {self.config.name}, got {patches.shape[1]}")
        return torch.cat([tokens[:, :1], patches], dim=1).to(torch.float32), state

    def init_state(self, batch_size: int, height: int, width: int) -> State:
        """The empty tuple."""
        check_image_size(height, width)
        return ()


class ClipTransformer(nn.Module):
    """A clip encoder with the contract of `FourDS`: a window of frames at once."""

    def __init__(self, model: nn.Module, config: TransformersConfig) -> None:
        super().__init__()
        self.config: TransformersConfig = config
        self.model = model
        self.pixels = _Pixels(config)

    def forward(self, clips: Tensor) -> Tensor:
        """Features, one map a frame: clips (B, T, 3, H, W) float RGB in [0, 1], T = `config.frames` -> (B, T, N, D).

        Tokens of tubes are resized along time to frames. Raises `ValueError` for another number of frames or size.
        """
        _grid(clips)
        if clips.shape[1] != self.config.frames:
            raise ValueError(f"expected clips of {self.config.frames} frames, got {clips.shape[1]}")
        pixels = self.pixels(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        tubes = (_videomae if self.config.kind == "videomae" else _vjepa2)(self.model, pixels)
        return resize_axis(tubes.to(torch.float32), 1, self.config.frames)

    def with_frames(self, frames: int) -> ClipTransformer:
        """The same weights for windows of another length, a multiple of `config.tube_frames`."""
        return ClipTransformer(self.model, replace(self.config, frames=frames)).to(self.pixels.mean.device).eval()


class _Pixels(nn.Module):
    """(B, 3, H, W) in [0, 1] -> what a model sees, with as many of its patches as there are squares of 16 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        if self.patch_size != PATCH_SIZE:
            size = tuple(side // PATCH_SIZE * self.patch_size for side in frames.shape[-2:])
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
        return (frames - self.mean) / self.std


def _grid(frames: Tensor) -> tuple[int, int]:
    check_image_size(*frames.shape[-2:])
    return frames.shape[-2] // PATCH_SIZE, frames.shape[-1] // PATCH_SIZE


def _videomae(model: Any, clips: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, t, N, D). The library takes one size only; here its positions are resized for others."""
    embedding = model.embeddings.patch_embeddings
    tubes = embedding.projection(clips.transpose(1, 2)).movedim(1, -1)
    rows, cols = (side // _one(model.config.patch_size) for side in embedding.image_size)
    positions = model.embeddings.position_embeddings.to(tubes).view(-1, rows, cols, tubes.shape[-1])
    for axis, size in enumerate(tubes.shape[1:4]):
        positions = resize_axis(positions, axis, size)
    tokens = model.encoder((tubes + positions).flatten(1, 3)).last_hidden_state
    tokens = tokens if model.layernorm is None else model.layernorm(tokens)
    return tokens.unflatten(1, (tubes.shape[1], -1))


def _vjepa2(encoder: Any, clips: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, t, N, D); of any grid, which the library takes from its configuration."""
    patch, tube = encoder.config.patch_size, encoder.config.tubelet_size
    tubes, rows, cols = clips.shape[1] // tube, clips.shape[-2] // patch, clips.shape[-1] // patch
    side = max(rows, cols)
    places = None
    if rows != cols:
        # Numbers of tokens as they were in a square grid, from which the library tells row and column.
        times, ys, xs = torch.meshgrid(torch.arange(tubes), torch.arange(rows), torch.arange(cols), indexing="ij")
        places = ((times * side + ys) * side + xs).flatten().expand(clips.shape[0], -1).to(clips.device)
    tokens = encoder.embeddings(clips)
    for layer in encoder.layer:
        layer.attention.grid_size = side
        tokens = layer(tokens, places)[0]
    return encoder.layernorm(tokens).unflatten(1, (tubes, rows * cols))


def load_transformer(
    kind: str, source: str | Path, *, online: bool = False, frames: int | None = None
) -> FrameTransformer | ClipTransformer:
    """An encoder from a folder with config.json and safetensors, in float32, on the CPU, in eval mode.

    Args:
        kind: of `KINDS`.
        source: the folder, or the name of a repository of the hub that was downloaded before.
        online: download the repository if it was not.
        frames: of a window of a clip encoder; None: as many as it was trained with.

    Never runs code from there and never reads a pickle. Raises `TransformersError` for what is not such an encoder,
    whole and finite, and `ImportError`, which names the extra, without the library.
    """
    library = _library()
    folder = Path(source).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) > 2):
        # No name of a repository, of which the library would complain.
        raise TransformersError(f"no weights of {kind} at {source}: there is no such folder")
    path = str(folder) if folder.is_dir() else str(source)
    try:
        with _quiet(library):
            config = library.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=not online)
            _check_kind(kind, config, source)
            model, info = library.AutoModel.from_pretrained(
                path,
                config=config,
                trust_remote_code=False,
                local_files_only=not online,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            mean, std = _normalisation(library, path, local_files_only=not online)
    except TransformersError:
        raise
    except Exception as error:  # Whatever the library and its parsers raise for a file that is not as it should be.
        more = "" if online else "; nothing is downloaded unless that is asked for"
        raise TransformersError(
            f"no weights of {kind} at {source}: expected a folder with config.json and model.safetensors{more}: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    missing = [name for key in ("missing_keys", "mismatched_keys") for name in sorted(map(str, info.get(key, ())))]
    missing = [name for name in missing if not name.endswith(_UNUSED)]
    if missing:
        raise TransformersError(f"{source}: weights are missing or of another shape: {', '.join(missing)}")
    damaged = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise TransformersError(f"{source}: expected finite weights, got NaN or infinity in {', '.join(damaged)}")
    return _wrapped(kind, model, f"{kind} ({Path(source).name})", frames=frames, mean=mean, std=std)


def make_transformer(
    kind: str, *, seed: int = 0, frames: int | None = None, **sizes: Any
) -> FrameTransformer | ClipTransformer:
    """The library's model with random weights. sizes: of its configuration; the library's own are those of a release.

    Raises `ImportError`, which names the extra, without the library.
    """
    library = _library()
    config = library.AutoConfig.for_model(sizes.pop("model_type", KINDS[kind][0]), **sizes)
    _check_kind(kind, config, "the configuration")
    with torch.random.fork_rng(devices=[]), _quiet(library):
        torch.manual_seed(seed)
        model = library.AutoModel.from_config(config)
    return _wrapped(kind, model, kind, frames=frames, mean=IMAGE_MEAN, std=IMAGE_STD)


def _wrapped(
    kind: str, model: Any, name: str, *, frames: int | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> FrameTransformer | ClipTransformer:
    config = model.config
    basis = TransformersConfig(
        name=name, kind=kind, width=config.hidden_size, patch_size=_one(config.patch_size), mean=mean, std=std
    )
    if kind in FRAME_KINDS:
        registers = getattr(config, "num_register_tokens", 0)
        return FrameTransformer(model, replace(basis, special_tokens=1 + registers)).eval()
    own = config.num_frames if kind == "videomae" else config.frames_per_clip
    clip = replace(basis, frames=frames or own, tube_frames=config.tubelet_size)
    # The predictor of V-JEPA 2 is there for pretraining only.
    return ClipTransformer(model.encoder if kind == "vjepa2" else model, clip).eval()


def _check_kind(kind: str, config: Any, source: object) -> None:
    if kind not in KINDS:
        raise TransformersError(f"unknown kind of encoder {kind!r}; known: {', '.join(KINDS)}")
    if config.model_type not in KINDS[kind]:
        raise TransformersError(f"{source} is of type {config.model_type}; {kind} has {' or '.join(KINDS[kind])}")


def _normalisation(library: Any, path: str, *, local_files_only: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from the preprocessor's file if there is one."""
    for name in _PREPROCESSORS:
        file = library.utils.cached_file(
            path,
            name,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is not None:
            said = json.loads(Path(file).read_text(encoding="utf-8"))
            mean, std = (tuple(map(float, said.get(key, own))) for key, own in _SAID)
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise TransformersError(f"{name} of {path}: expected a mean and a positive deviation of 3 channels")
            return mean, std
    return IMAGE_MEAN, IMAGE_STD


def _one(size: Any) -> int:
    """A patch's side. Raises `TransformersError` for patches that are not square."""
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise TransformersError(f"expected square patches, got {size}")
    return int(sides.pop())


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("transformers is missing; pip install 'rvm_perception[encoders]'") from error
    return transformers


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without reports and bars of loading: what is missing is an error here, what is unused is meant to be."""
    logging = library.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()

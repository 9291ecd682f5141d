"""Synthetic scenes with exact ground truth: textured shapes that move in front of a moving textured background.

T frames, H W image, O objects, P points. Pixel coordinates are (x, y): right, down, pixel centres at .5. Every layer,
first the background and then the objects from back to front, is a flat texture that an affine map per frame puts into
the image, so the place of any of its points is known exactly. Maps move smoothly and to and fro, so that objects hide
each other, leave the image and come back.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from rvm_training.data.ground_truth import seen_boxes, take_in_turns
from rvm_training.data.textures import make_palette, make_texture

MAX_OBJECTS = 254
"""Labels are uint8, and 0 is the background."""
POINT_MARGIN = 3.0
"""Points on an object are at least so far from its border, in image pixels at its smallest: they are in its mask."""
_MIN_SIZE = 32
_SUBPIXELS = 4
_MAX_ROUNDS = 20

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like. Raises `ValueError` for values that no scene can have."""

    height: int = 256
    """Of the image, pixels."""
    width: int = 256
    """Of the image, pixels."""
    num_frames: int = 24
    num_objects: int = 4
    num_points: int = 32
    """Tracked points, spread evenly over the objects and the background."""
    object_size: float = 0.17
    """Mean radius of the objects, share of the shorter side of the image."""
    speed: float = 0.014
    """Highest speed of an object, share of the shorter side per frame (3.6 px at 256)."""
    background_speed: float = 0.006
    """Highest speed of the background, share of the shorter side per frame."""
    rotation: float = 0.04
    """Highest rate at which an object turns, radians per frame; the background turns at a quarter of it."""
    zoom: float = 0.35
    """An object grows and shrinks by up to exp(zoom), the background by up to exp(zoom / 3)."""
    light: float = 0.3
    """Brightness of a layer, and of places in the image, changes by up to about exp(light)."""
    noise: float = 2.5
    """Standard deviation of the noise of pixels, grey levels."""
    shared_colours: float = 0.5
    """How likely an object has the colours of the layer behind it, with a texture of its own."""

    def __post_init__(self) -> None:
        lowest = {"height": _MIN_SIZE, "width": _MIN_SIZE, "num_frames": 1, "num_objects": 0, "num_points": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of {least} or more, got {getattr(self, name)}")
        if self.num_objects > MAX_OBJECTS:
            raise ValueError(f"expected at most {MAX_OBJECTS} objects, got {self.num_objects}")
        if not 0.02 <= self.object_size <= 1:
            raise ValueError(f"expected object_size in [0.02, 1], got {self.object_size}")
        for name in ("speed", "background_speed", "rotation", "zoom", "light", "noise", "shared_colours"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"expected {name} of 0 or more, got {getattr(self, name)}")

    @property
    def shorter_side(self) -> int:
        """Pixels."""
        return min(self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A video and everything that is true of it."""

    video: UInt8Array
    """(T, H, W, 3), RGB."""
    labels: UInt8Array
    """(T, H, W): which object is seen, from 1; 0 is the background."""
    boxes: Float32Array
    """(T, O, 4): x_min, y_min, x_max, y_max around what is seen of each object, pixels; NaN where nothing is seen."""
    amodal_boxes: Float32Array
    """(T, O, 4): the same around the whole object, also where it is hidden or outside of the image."""
    seen_share: Float32Array
    """(T, O): visible area over whole area, in [0, 1]."""
    points: Float32Array
    """(T, P, 2): x and y of each point, pixels, known also where it is hidden or outside of the image."""
    visible: BoolArray
    """(T, P): whether the point is in the image and no object is in front of it."""
    point_layers: npt.NDArray[np.intp]
    """(P,): the layer of each point: 0 the background, otherwise the object's label."""
    layer_to_image: Float64Array
    """(T, 1 + O, 2, 3): affine A with (x, y) = A @ (u, v, 1), from the texture of a layer to the image, pixels."""

    @property
    def occluded(self) -> BoolArray:
        """(T, P): not visible, as the benchmarks name it."""
        return ~self.visible


@dataclass(frozen=True)
class _Layer:
    """A flat piece of texture and its way through the image."""

    texture: UInt8Array
    """(h, w, 3)."""
    to_image: Float64Array
    """(T, 2, 3)."""
    gain: Float64Array
    """(T,): brightness."""
    outline: Float64Array
    """(V, 2): the shape's corners, pixels of the texture. For the background those of the texture."""
    coverage: UInt8Array | None
    """(h, w): 255 in the shape, 0 around it, between at its border; None for the background, which covers all."""


def generate_scene(config: SceneConfig, seed: int) -> Scene:
    """The scene of a seed: the same on every call. Takes about a quarter of a second at 24 frames of 256x256."""
    rng = np.random.default_rng([seed, 0x5CE9E])
    layers = _make_layers(rng, config)
    to_image = np.stack([layer.to_image for layer in layers], axis=1)
    video, labels = _render(rng, config, layers)
    points, point_layers, visible = _sample_points(rng, config, layers, labels)
    areas = np.array([abs(_area(layer.outline)) for layer in layers[1:]])
    whole = areas * np.linalg.det(to_image[:, 1:, :, :2])
    seen = np.stack([np.bincount(frame.ravel(), minlength=len(layers)) for frame in labels])[:, 1 : len(layers)]
    return Scene(
        video=video,
        labels=labels,
        boxes=seen_boxes(labels, config.num_objects),
        amodal_boxes=_amodal_boxes(layers[1:], config.num_frames),
        seen_share=np.minimum(seen / np.maximum(whole, 1e-6), 1).astype(np.float32),
        points=points,
        visible=visible,
        point_layers=point_layers,
        layer_to_image=to_image,
    )


# Layers and their motion


def _make_layers(rng: np.random.Generator, config: SceneConfig) -> list[_Layer]:
    palette = make_palette(rng)
    layers = [_make_background(rng, config, palette)]
    for _ in range(config.num_objects):
        if rng.random() >= config.shared_colours:
            palette = make_palette(rng)
        layers.append(_make_object(rng, config, palette))
    return layers


def _make_background(rng: np.random.Generator, config: SceneConfig, palette: Float32Array) -> _Layer:
    side = config.shorter_side
    centre = np.array([config.width / 2, config.height / 2])
    to_image = _motion(
        rng, config, start=centre, pivot=centre, angle=0.0,
        speed=config.background_speed * side, rotation=config.rotation / 4, zoom=config.zoom / 3,
    )  # fmt: skip
    corners = np.array([[0, 0], [config.width, 0], [config.width, config.height], [0, config.height]], np.float64)
    seen = np.concatenate([_apply(_inverse(affine), corners) for affine in to_image])
    # The texture reaches as far as the image ever looks, and begins at its own (0, 0).
    low, high = np.floor(seen.min(axis=0)) - 2, np.ceil(seen.max(axis=0)) + 2
    to_image[:, :, 2] += to_image[:, :, :2] @ low
    width, height = (high - low).astype(int)
    outline = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    texture = make_texture(rng, palette, height, width)
    return _Layer(texture, to_image, _gain(rng, config), outline, None)


def _make_object(rng: np.random.Generator, config: SceneConfig, palette: Float32Array) -> _Layer:
    radius = config.object_size * config.shorter_side * rng.uniform(0.7, 1.35)
    outline = _outline(rng) * radius
    low = np.floor(outline.min(axis=0)) - 2
    outline = outline - low
    width, height = (np.ceil(outline.max(axis=0)) + 2).astype(int)
    coverage = _coverage(outline, height, width)
    start = rng.uniform(0.15, 0.85, 2) * (config.width, config.height)
    to_image = _motion(
        rng, config, start=start, pivot=-low, angle=rng.uniform(0, 2 * np.pi),
        speed=config.speed * config.shorter_side, rotation=config.rotation, zoom=config.zoom,
    )  # fmt: skip
    return _Layer(make_texture(rng, palette, height, width), to_image, _gain(rng, config), outline, coverage)


def _coverage(outline: Float64Array, height: int, width: int) -> UInt8Array:
    """Share of each pixel (height, width) that is in the shape, of 255."""
    fine = np.zeros((_SUBPIXELS * height, _SUBPIXELS * width), np.uint8)
    # OpenCV counts from pixel centres; 4 bits behind the point.
    cv2.fillPoly(fine, [np.round((outline * _SUBPIXELS - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _outline(rng: np.random.Generator) -> Float64Array:
    """Corners (V, 2) of a random shape of mean radius 1 about (0, 0): an ellipse, a polygon or a star."""
    kind = rng.integers(3)
    if kind == 0:
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        ratio = rng.uniform(0.6, 1.0)
        return np.stack([np.cos(angles) / np.sqrt(ratio), np.sin(angles) * np.sqrt(ratio)], axis=1)
    corners = int(rng.integers(3, 8)) if kind == 1 else 2 * int(rng.integers(4, 8))
    steps = rng.uniform(0.8, 1.2, corners)
    angles = np.cumsum(steps / steps.sum() * 2 * np.pi)
    radii = rng.uniform(0.9, 1.2, corners)
    if kind == 2:
        radii = np.where(np.arange(corners) % 2, rng.uniform(0.55, 0.7), rng.uniform(1.15, 1.35)) * rng.uniform(
            0.95, 1.05, corners
        )
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _motion(
    rng: np.random.Generator,
    config: SceneConfig,
    *,
    start: Float64Array,
    pivot: Float64Array,
    angle: float,
    speed: float,
    rotation: float,
    zoom: float,
) -> Float64Array:
    """Affine maps (T, 2, 3) that take `pivot` to `start` in the first frame and from there along a smooth way."""
    frames, side = config.num_frames, config.shorter_side
    ways = [_wave(rng, frames, speed * rng.uniform(0.5, 1.0), side * rng.uniform(0.2, 0.6)) for _ in range(2)]
    centres = start + np.stack(ways, axis=1)
    angles = angle + _wave(rng, frames, rotation * rng.uniform(0.3, 1.0), rng.uniform(0.4, 1.5))
    reach = zoom / 2 * rng.uniform(0.3, 1.0)
    scales = np.exp(_wave(rng, frames, zoom / 10, reach))
    cos, sin = np.cos(angles) * scales, np.sin(angles) * scales
    linear = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    return np.concatenate([linear, (centres - linear @ pivot)[:, :, None]], axis=2)


def _wave(rng: np.random.Generator, frames: int, rate: float, reach: float) -> Float64Array:
    """(T,): 0 in the first frame, then to and fro by `reach` about a random middle, by at most `rate` a frame."""
    if not rate or not reach:
        return np.zeros(frames)
    phase = rng.uniform(0, 2 * np.pi)
    return reach * (np.sin(phase + np.arange(frames) * (rate / reach)) - np.sin(phase))


def _gain(rng: np.random.Generator, config: SceneConfig) -> Float64Array:
    return np.exp(_wave(rng, config.num_frames, config.light / 6, config.light * rng.uniform(0.2, 0.5)))


# Pictures


def _render(rng: np.random.Generator, config: SceneConfig, layers: list[_Layer]) -> tuple[UInt8Array, UInt8Array]:
    """The video (T, H, W, 3) and its labels (T, H, W)."""
    height, width, frames = config.height, config.width, config.num_frames
    video = np.empty((frames, height, width, 3), np.uint8)
    labels = np.zeros((frames, height, width), np.uint8)
    direction = rng.uniform(0, 2 * np.pi) + np.arange(frames) * rng.uniform(-0.1, 0.1)
    ys, xs = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    for t in range(frames):
        canvas = _warp(layers[0].texture, layers[0].to_image[t], 0, 0, width, height).astype(np.float32)
        canvas *= layers[0].gain[t]
        for label, layer in enumerate(layers[1:], start=1):
            _paint(layer, t, label, canvas, labels[t])
        shade = 1 + config.light / 2 * (np.cos(direction[t]) * xs + np.sin(direction[t]) * ys)
        canvas *= shade[:, :, None].astype(np.float32)
        if config.noise:
            canvas += config.noise * rng.standard_normal(canvas.shape, dtype=np.float32)
        video[t] = np.clip(np.rint(canvas), 0, 255)
    return video, labels


def _paint(layer: _Layer, t: int, label: int, canvas: Float32Array, labels: UInt8Array) -> None:
    """Puts an object in front of what is there, in `canvas` (H, W, 3) and `labels` (H, W), both changed."""
    assert layer.coverage is not None
    height, width = labels.shape
    corners = _apply(layer.to_image[t], layer.outline)
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2, 0, (width, height))
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, 0, (width, height))
    if left >= right or top >= bottom:
        return
    area = (left, top, right - left, bottom - top)
    covered = _warp(layer.coverage, layer.to_image[t], *area)
    share = covered[:, :, None].astype(np.float32) / 255
    colours = _warp(layer.texture, layer.to_image[t], *area).astype(np.float32) * np.float32(layer.gain[t])
    behind = canvas[top:bottom, left:right]
    behind += share * (colours - behind)
    labels[top:bottom, left:right][covered >= 128] = label


def _warp(texture: UInt8Array, to_image: Float64Array, left: int, top: int, width: int, height: int) -> UInt8Array:
    """The part of the image from (left, top) on that a texture fills; nothing around it."""
    affine = to_image.copy()
    # OpenCV's pixel centres are at whole numbers.
    affine[:, 2] += affine[:, :2] @ (0.5, 0.5) - (0.5 + left, 0.5 + top)
    return np.asarray(cv2.warpAffine(texture, affine, (int(width), int(height)), flags=cv2.INTER_LINEAR), np.uint8)


# Ground truth


def _sample_points(
    rng: np.random.Generator, config: SceneConfig, layers: list[_Layer], labels: UInt8Array
) -> tuple[Float32Array, npt.NDArray[np.intp], BoolArray]:
    """Points (T, P, 2), their layers (P,) and whether they are visible (T, P); each is in two frames or more."""
    needed, draws = min(2, config.num_frames), 4 * config.num_points
    inner = [_inner_pixels(layer) for layer in layers]
    tracks, owners, seen = [], [], []
    for _ in range(_MAX_ROUNDS):
        for index, (layer, pixels) in enumerate(zip(layers, inner, strict=True)):
            if not len(pixels):
                continue
            places = pixels[rng.integers(len(pixels), size=draws)] + rng.random((draws, 2))
            track = np.stack([_apply(affine, places) for affine in layer.to_image], axis=0)
            visible = _seen_at(labels, track, index)
            good = visible.sum(axis=0) >= needed
            tracks.append(track[:, good])
            owners.append(np.full(good.sum(), index))
            seen.append(visible[:, good])
        if sum(map(len, owners)) >= config.num_points:
            break
    else:
        raise ValueError(f"expected room for {config.num_points} points, found {sum(map(len, owners))} visible ones")
    chosen = take_in_turns(np.concatenate(owners), config.num_points)
    points = np.concatenate(tracks, axis=1)[:, chosen].astype(np.float32)
    return points, np.concatenate(owners)[chosen], np.concatenate(seen, axis=1)[:, chosen]


def _inner_pixels(layer: _Layer) -> Float64Array:
    """Upper left corners (n, 2), x and y, of the texture's pixels that are well in the shape."""
    if layer.coverage is None:
        height, width = layer.texture.shape[:2]
        ys, xs = np.divmod(np.arange(height * width), width)
    else:
        smallest = np.sqrt(np.linalg.det(layer.to_image[:, :, :2]).min())
        whole = np.where(layer.coverage == 255, np.uint8(1), np.uint8(0))
        ys, xs = np.nonzero(cv2.distanceTransform(whole, cv2.DIST_L2, 5) > POINT_MARGIN / smallest)
    return np.stack([xs, ys], axis=1).astype(np.float64)


def _seen_at(labels: UInt8Array, track: Float64Array, layer: int) -> BoolArray:
    """(T, n): whether the image shows that layer at points (T, n, 2)."""
    frames, height, width = labels.shape
    inside: BoolArray = np.all((track >= 0) & (track < (width, height)), axis=2)
    cols, rows = np.where(inside[:, :, None], track, 0).astype(np.intp).transpose(2, 0, 1)
    shown = labels[np.arange(frames)[:, None], rows, cols]
    return np.logical_and(inside, shown == layer)


def _amodal_boxes(objects: list[_Layer], num_frames: int) -> Float32Array:
    boxes = np.empty((num_frames, len(objects), 4), np.float32)
    for index, layer in enumerate(objects):
        corners = np.stack([_apply(affine, layer.outline) for affine in layer.to_image])
        boxes[:, index] = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return boxes


def _apply(affine: Float64Array, places: Float64Array) -> Float64Array:
    return places @ affine[:, :2].T + affine[:, 2]


def _inverse(affine: Float64Array) -> Float64Array:
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)


def _area(outline: Float64Array) -> float:
    x, y = outline.T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))

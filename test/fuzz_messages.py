"""Fuzz targets: messages that arrive at the node or are read from bags, with anything in their fields."""

from __future__ import annotations

import array
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from fuzzing import Case, Forbidden, Target, damage, outcome_of
from rvm_core.preprocess import FrameMap, Preprocess
from rvm_perception.bag_reader import MessageError, RawMessage, decode
from rvm_perception.bag_types import COMPRESSED_IMAGE, IMAGE, TRACK_QUERIES, own_types
from rvm_perception.conversions import SUPPORTED_ENCODINGS, ImageError, compressed_to_rgb, image_to_rgb
from rvm_perception.parameters import NodeParameters
from rvm_perception.stream import FrameKey
from rvm_perception.track_ids import IdLedger
from rvm_perception.track_queries import Answers, read_request
from rvm_perception.track_session import TrackSession, TrackState
from track_stand_ins import ScriptedTracker, mask_message, query_message

# Threads, one for each core, would take address space of their own.
cv2.setNumThreads(1)

MAX_PIXELS = 1 << 20
ENCODINGS = (*SUPPORTED_ENCODINGS, "8UC1", "8UC2", "8UC3", "8UC4", "16UC1", "32FC1", "", "rgb8\0", "RGB8", "h264")
PLAIN = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}
"""Encodings whose pixels can be told without a library: places of red, green and blue."""
BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2}
AMBIGUOUS = {"8UC1": 1, "8UC2": 2, "8UC3": 3, "8UC4": 4, "16UC1": 2}
HUGE = (2**31 - 1, 2**32 - 1, 1 << 20)


def bytes_per_pixel(encoding: str) -> int:
    return BYTES.get(encoding, 1 if encoding.startswith("bayer") else 2)


def make_image(folder: Path) -> Case:
    return image_case


def image_case(numbers: random.Random) -> str:
    """An Image with fields that fit or do not: accepted exactly if they fit, and with the right pixels."""
    encoding = numbers.choice(ENCODINGS)
    assumed = numbers.choice(("", *SUPPORTED_ENCODINGS))
    height, width = (numbers.choice((0, 1, 2, 3, *range(4, 13))) for _ in range(2))
    row = width * (AMBIGUOUS.get(encoding) or bytes_per_pixel(encoding))
    step = max(0, row + numbers.choice((0, 0, 0, 1, 2, 5, -1)))
    data = numbers.randbytes(max(0, step * height + numbers.choice((0,) * 8 + (1, -1))))
    if numbers.random() < 0.05:
        height, width, step = (numbers.choice((value, *HUGE)) for value in (height, width, step))
    given = array.array("B", data) if numbers.random() < 0.5 else data
    big = numbers.choice((0, 1, 255))
    message: Any = SimpleNamespace(
        encoding=encoding, height=height, width=width, step=step, is_bigendian=big, data=given
    )
    expected = expected_reason(encoding, assumed, height, width, step, len(data))
    try:
        result = image_to_rgb(message, ambiguous_encoding=assumed)
    except ImageError as error:
        if error.reason != expected:
            raise Forbidden(f"expected {expected or 'an image'}, got {error.reason}") from error
        return outcome_of(error)
    if expected:
        raise Forbidden(f"expected {expected}, got an image")
    if result.shape != (height, width, 3) or result.dtype != np.uint8 or not result.flags.c_contiguous:
        raise Forbidden(f"got {result.dtype} {result.shape}")
    pixels = expected_pixels(assumed if encoding in AMBIGUOUS else encoding, message)
    if pixels is not None and not np.array_equal(result, pixels):
        raise Forbidden("the pixels are wrong")
    return "image"


def expected_reason(encoding: str, assumed: str, height: int, width: int, step: int, length: int) -> str:
    """Why an image is refused, told anew; empty: it is not."""
    if encoding in AMBIGUOUS:
        sixteen = {"mono16": "16UC1"}
        fits = assumed and (AMBIGUOUS[encoding] == bytes_per_pixel(assumed))
        if not fits or (encoding == "16UC1") != (sixteen.get(assumed) == "16UC1"):
            return "encoding"
        encoding = assumed
    elif encoding not in SUPPORTED_ENCODINGS:
        return "encoding"
    subsampled = encoding in ("uyvy", "yuv422", "yuyv", "yuv422_yuy2")
    sound = (
        height > 0
        and width > 0
        and step >= width * bytes_per_pixel(encoding)
        and length == step * height
        and not (subsampled and width % 2)
        and not (encoding.startswith("bayer") and min(height, width) < 3)
    )
    return "" if sound else "size"


def expected_pixels(encoding: str, message: Any) -> np.ndarray | None:
    """The picture by plain indexing; None for what only a library can tell."""
    if encoding not in BYTES:
        return None
    rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * BYTES[encoding]].reshape(message.height, message.width, BYTES[encoding])
    if encoding in PLAIN:
        return pixels[..., PLAIN[encoding]]
    if encoding == "mono16":
        high, low = (0, 1) if message.is_bigendian else (1, 0)
        values = pixels[..., high].astype(np.float64) * 256 + pixels[..., low]
        pixels = np.rint(values / 257).astype(np.uint8)[..., None]
    return pixels.repeat(3, axis=2)


def make_compressed(folder: Path) -> Case:
    pixels = np.random.default_rng(1)
    picture = pixels.integers(0, 256, (6, 8, 4), np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    pictures = {
        "grey": picture[..., 0],
        "colour": np.ascontiguousarray(picture[..., :3]),
        "alpha": picture,
        "deep": picture[..., :3].astype(np.uint16) * 257,
    }
    files = {(".png", name): cv2.imencode(".png", image)[1].tobytes() for name, image in pictures.items()}
    for name in ("grey", "colour"):
        files[".jpg", name] = cv2.imencode(".jpg", pictures[name])[1].tobytes()
    formats = (
        "",
        "jpeg",
        "png",
        "rgb8; jpeg compressed bgr8",
        "rgb8; png compressed",
        "bgr8; png compressed bgr8",
        ";",
    )
    sound = {key: compressed_to_rgb(SimpleNamespace(data=data, format="")) for key, data in files.items()}

    def case(numbers: random.Random) -> str:
        """A JPEG or PNG that is damaged: refused, or of the right size; a PNG, which has checksums, also right."""
        key = numbers.choice(tuple(files))
        data = files[key]
        intact = numbers.random() < 0.05
        if not intact:
            data = numbers.randbytes(numbers.randrange(200)) if numbers.random() < 0.03 else damage(numbers, data)
        message: Any = SimpleNamespace(data=array.array("B", data), format=numbers.choice(formats))
        try:
            result = compressed_to_rgb(message, max_pixels=MAX_PIXELS)
        except ImageError as error:
            if intact or error.reason not in ImageError.REASONS:
                raise
            return outcome_of(error)
        if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3 or not result.flags.c_contiguous:
            raise Forbidden(f"got {result.dtype} {result.shape}")
        if result.shape[0] * result.shape[1] > MAX_PIXELS:
            raise Forbidden(f"got {result.shape}, over the limit")
        if intact or key[0] == ".png":
            right = sound[key]
            if not (np.array_equal(result, right) or np.array_equal(result[..., ::-1], right)):
                raise Forbidden("the pixels are wrong")
        return "image"

    return case


FRAME_MAP: FrameMap = Preprocess(height=64, width=128, policy="letterbox").map(96, 192)
START_NS, PERIOD_NS = 1_000_000_000_000, 40_000_000


def make_queries(folder: Path) -> Case:
    parameters = NodeParameters(max_points=5, max_boxes=3, max_masks=3)
    tokens = np.zeros((33, 5), np.float32)

    def case(numbers: random.Random) -> str:
        """Requests between frames: each is answered once, entry by entry, and what is accepted makes sense."""
        session = TrackSession(camera="camera", tracker=ScriptedTracker(), parameters=parameters, ids=IdLedger())
        state: TrackState | None = None
        answers: list[Answers] = []
        asked: dict[str, int] = {}
        for frame in range(3):
            key = FrameKey(stamp_ns=START_NS + frame * PERIOD_NS, frame_id="optical", height=96, width=192)
            state = session.step(tokens, key=key, epoch=0, frame_map=FRAME_MAP, before=state, fresh=not frame)
            for _ in range(numbers.choice((0, 1, 2))):
                request = read_request(request_message(numbers, f"{len(asked)}"))
                asked[request.request_id] = len(request.items)
                full = session.receive(request)
                answers += [full] if full else []
            state, carried_out = session.apply(state)
            answers += carried_out
        answers += session.refuse_waiting("the end", epoch=0)
        if sorted(answer.request_id for answer in answers) != sorted(asked):
            raise Forbidden(f"asked {sorted(asked)}, answered {sorted(answer.request_id for answer in answers)}")
        for answer in answers:
            check_answer(answer, asked[answer.request_id])
        if state is not None and len(state.live) > 11:
            raise Forbidden(f"{len(state.live)} tracks, more than allowed")
        entries = [entry for answer in answers for entry in answer]
        return "some accepted" if any(not entry.reason for entry in entries) else "none accepted"

    return case


def check_answer(answer: Answers, items: int) -> None:
    entries = list(answer)
    if len(entries) != items:
        raise Forbidden(f"{items} entries had {len(entries)} answers")
    for entry in entries:
        if entry.reason:
            continue
        x, y = entry.item.pixels[0::2], entry.item.pixels[1::2]
        if not (all(np.isfinite([*x, *y])) and entry.item.fault == ""):
            raise Forbidden(f"accepted {entry}")
        if len(x) == 1 and not (0 <= x[0] <= 192 and 0 <= y[0] <= 96):
            raise Forbidden(f"accepted {entry}, outside of the image")


def request_message(numbers: random.Random, request_id: str) -> Any:
    """A TrackQueries message with fields that fit each other more often than not."""

    def position(high: float) -> float:
        odd = (float("nan"), float("inf"), -float("inf"), 1e30, -0.0, -1.0, high, high + 1)
        return numbers.choice(odd) if numbers.random() < 0.15 else numbers.uniform(0, high)

    def length(usual: int) -> int:
        return numbers.choice((usual,) * 12 + (0, usual + 1))

    def ids(usual: int) -> array.array[int]:
        values = [numbers.choice((0, 0, 1, 2, 7, 32768, 65535, 65536, 2**64 - 1)) for _ in range(length(usual))]
        return array.array("Q", values if numbers.random() < 0.5 else [])

    fields: dict[str, Any] = {
        "clear": numbers.random() < 0.1,
        "remove_ids": ids(2),
        "camera": numbers.choice(("", "x")),
    }
    for part, names in {"point": ("x", "y"), "box": ("x_min", "y_min", "x_max", "y_max")}.items():
        count = numbers.choice((0, 1, 2, 4))
        for name in names:
            fields[f"{part}_{name}"] = array.array(
                "f", [position(192 if name[0] == "x" else 96) for _ in range(length(count))]
            )
        fields[f"{part}_ids"] = ids(count)
        fields[f"{part}_labels"] = ["ä" * numbers.randrange(3)] * numbers.choice((0, 0, count, count + 1))
    if numbers.random() < 0.4:
        fields["mask"] = damaged_mask(numbers)
        fields["mask_values"] = array.array("H", numbers.choice(([], [1], [1, 2], [0], [9, 9])))
        fields["mask_ids"] = ids(len(fields["mask_values"]))
    stamp_ns = numbers.choice((0, 0, START_NS + numbers.randrange(-2, 5) * PERIOD_NS, -(10**9), 2**31 * 10**9))
    frame_id = numbers.choice(("", "", "optical", "other"))
    return query_message(request_id=request_id, stamp_ns=stamp_ns, frame_id=frame_id, **fields)


def damaged_mask(numbers: random.Random) -> Any:
    size = numbers.choice(((96, 192), (96, 192), (4, 4), (1, 1)))
    labels = np.zeros(size, numbers.choice((np.uint8, np.uint16)))
    labels[: size[0] // 2, : size[1] // 2] = numbers.choice((0, 1, 2, 255))
    mask = mask_message(labels, big=numbers.random() < 0.3, padding=numbers.choice((0, 3)))
    field = numbers.choice(("", "", "step", "height", "width", "encoding", "data"))
    if field == "encoding":
        mask.encoding = numbers.choice(("rgb8", "", "mono8", "mono16"))
    elif field == "data":
        mask.data = mask.data[: numbers.randrange(len(mask.data) + 1)]
    elif field:
        setattr(mask, field, numbers.choice((0, 1, getattr(mask, field) + 1, *HUGE)))
    return mask


def make_cdr(folder: Path) -> Case:
    types = own_types()
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    image = types.message(IMAGE)(height=6, width=8, encoding="rgb8", step=24, data=array.array("B", bytes(144)))
    compressed = types.message(COMPRESSED_IMAGE)(format="png", data=array.array("B", picture))
    queries = types.message(TRACK_QUERIES)(
        point_x=[1.0, 2.0], point_y=[1.0, 2.0], point_labels=["a", "b"], remove_ids=[3], mask=image, mask_values=[1]
    )
    messages = {IMAGE: image, COMPRESSED_IMAGE: compressed, TRACK_QUERIES: queries}
    sound = {kind: types.serialize(message, kind) for kind, message in messages.items()}

    def case(numbers: random.Random) -> str:
        """The bytes of a message, damaged: not decoded, or a message that is then read or refused like any other."""
        kind = numbers.choice(tuple(sound))
        try:
            message = decode(RawMessage("/topic", kind, 0, damage(numbers, sound[kind])))
        except MessageError as error:
            return outcome_of(error)
        try:
            if kind == IMAGE:
                image_to_rgb(message)
            elif kind == COMPRESSED_IMAGE:
                compressed_to_rgb(message, max_pixels=MAX_PIXELS)
            else:
                read_request(message)
        except ImageError as error:
            return outcome_of(error)
        return "message"

    return case


TARGETS = {
    "Image": Target(make=make_image, cases=8000),
    "CompressedImage": Target(make=make_compressed, cases=5000),
    "TrackQueries": Target(make=make_queries, cases=3000),
    "CDR": Target(make=make_cdr, cases=3000),
}

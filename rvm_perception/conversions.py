"""Image messages to arrays and back, label images too, and engine outputs to FeatureMap messages."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    from rvm_core.preprocess import FrameMap
    from rvm_perception.msg import FeatureMap

UInt8Array = npt.NDArray[np.uint8]

DEFAULT_MAX_PIXELS = 64 * 1024 * 1024
"""Compressed images of more pixels are refused before they are decoded."""


class ImageError(ValueError):
    """An image message cannot be used. `reason` is a stable short word to count by: one of `ImageError.REASONS`."""

    REASONS = ("encoding", "size", "corrupt", "too_large")

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Encoding(NamedTuple):
    """How the bytes of one pixel are laid out and how OpenCV turns them into RGB."""

    channels: int
    dtype: str
    to_rgb: int | None
    """OpenCV's conversion code; None where the pixels are RGB already."""


# The old and the new ROS name of each order of 4:2:2 video; both are BT.601 with limited range.
_UYVY = _Encoding(2, "u1", cv2.COLOR_YUV2RGB_UYVY)
_YUYV = _Encoding(2, "u1", cv2.COLOR_YUV2RGB_YUYV)

_ENCODINGS = {
    "rgb8": _Encoding(3, "u1", None),
    "bgr8": _Encoding(3, "u1", cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, "u1", cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, "u1", cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, "u1", cv2.COLOR_GRAY2RGB),
    "mono16": _Encoding(1, "u2", cv2.COLOR_GRAY2RGB),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    # ROS names a mosaic by its first two rows from (0, 0), OpenCV by the second row from (1, 1).
    "bayer_rggb8": _Encoding(1, "u1", cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Encoding(1, "u1", cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Encoding(1, "u1", cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Encoding(1, "u1", cv2.COLOR_BayerGB2RGB),
}

SUPPORTED_ENCODINGS = tuple(_ENCODINGS)
"""Values of `sensor_msgs/Image.encoding` that can be converted."""

# Names that tell the layout of a pixel but not its colours.
_AMBIGUOUS = {"8UC1": (1, "u1"), "8UC2": (2, "u1"), "8UC3": (3, "u1"), "8UC4": (4, "u1"), "16UC1": (1, "u2")}

_COLOURS = ("rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "rgba16", "bgra16")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIZE_OFFSET = 16
_PNG_CHUNK_OVERHEAD = 12
_UINT16_TO_UINT8 = 1 / 257


def image_to_rgb(msg: Image, *, ambiguous_encoding: str = "") -> UInt8Array:
    """A sensor_msgs/Image as a contiguous (H, W, 3) uint8 RGB array.

    An unpadded rgb8 image is not copied: the result is a read-only view, which changes if the message's data does. All
    other encodings give a new array. mono16 is scaled by 1/257 and rounded, YUV is read as BT.601 with limited range,
    mosaics are interpolated bilinearly, alpha is dropped. `ambiguous_encoding` says how to read 8UC1 to 8UC4 and
    16UC1, which are refused without it.

    Raises `ImageError` with reason "encoding" or "size".
    """
    name = _resolve_encoding(msg.encoding, ambiguous_encoding)
    encoding = _ENCODINGS[name]
    pixels = _pixels(msg, name)
    if encoding.to_rgb is None:
        return np.ascontiguousarray(pixels)
    if encoding.dtype == "u2":
        pixels = _to_uint8(pixels)
    return _convert(pixels, encoding.to_rgb)


def image_to_labels(msg: Image) -> npt.NDArray[Any]:
    """A mono8 or mono16 sensor_msgs/Image as a label array (H, W), uint8 or uint16, values unchanged.

    An unpadded image of the machine's byte order is a read-only view of the message's data. Raises `ImageError` with
    reason "encoding" or "size".
    """
    if msg.encoding not in ("mono8", "mono16"):
        raise ImageError("encoding", f"expected a label image in mono8 or mono16, got {msg.encoding!r}")
    labels = _pixels(msg, msg.encoding)
    return np.ascontiguousarray(labels, labels.dtype.newbyteorder("="))


def compressed_to_rgb(msg: CompressedImage, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8Array:
    """A JPEG or PNG in a sensor_msgs/CompressedImage as a new contiguous (H, W, 3) uint8 RGB array.

    The data's first bytes tell the codec. Orientation tags are ignored, so pixels agree with the camera's calibration;
    16-bit values are scaled by 1/257 and rounded, alpha is dropped. The `format` field decides as in image_transport
    whether red and blue were exchanged before compression, and whether a grey PNG is a mosaic.

    Raises `ImageError` with reason "encoding" (neither JPEG nor PNG), "too_large" (more than `max_pixels`, found from
    the header alone) or "corrupt" (truncated or damaged, also where a tolerant decoder would fill in grey).
    """
    data = memoryview(msg.data).cast("B")
    if not data:
        raise ImageError("corrupt", f"expected a JPEG or PNG image, got no data (format {msg.format!r})")
    if data[:3] == _JPEG_SIGNATURE:
        return _decode_jpeg(data, msg.format, max_pixels)
    if data[:8] == _PNG_SIGNATURE:
        return _decode_png(data, msg.format, max_pixels)
    raise ImageError(
        "encoding", f"expected a JPEG or PNG image, got data that starts with {data[:8].hex()} (format {msg.format!r})"
    )


def rgb_to_image(rgb: UInt8Array, header: Header, *, message_type: Any = None) -> Image:
    """A (H, W, 3) uint8 RGB array as a sensor_msgs/Image with encoding rgb8. Raises `ValueError` on another array.

    `message_type`, here and below: the class of the message; None: the one generated by ROS.
    """
    _check_rgb(rgb)
    msg: Image = (message_type or _ros_image())()
    msg.header = header
    msg.height, msg.width = rgb.shape[:2]
    msg.encoding = "rgb8"
    msg.is_bigendian = 0
    msg.step = 3 * msg.width
    _append(msg.data, rgb)
    return msg


def labels_to_image(labels: npt.NDArray[np.uint16], header: Header, *, message_type: Any = None) -> Image:
    """Labels (H, W) of uint16 as a sensor_msgs/Image with encoding mono16. Raises `ValueError` on another array."""
    if labels.dtype != np.uint16 or labels.ndim != 2:
        raise ValueError(f"expected labels (H, W) of uint16, got {labels.shape} of {labels.dtype}")
    msg: Image = (message_type or _ros_image())()
    msg.header = header
    msg.height, msg.width = labels.shape
    msg.encoding = "mono16"
    msg.is_bigendian = 0
    msg.step = 2 * msg.width
    _append(msg.data, labels.astype("<u2", copy=False))
    return msg


def rgb_to_compressed(
    rgb: UInt8Array,
    header: Header,
    codec: Literal["jpeg", "png"] = "jpeg",
    *,
    quality: int = 95,
    message_type: Any = None,
) -> CompressedImage:
    """A (H, W, 3) uint8 RGB array as a sensor_msgs/CompressedImage, as image_transport would write it.

    `quality` is that of JPEG, 1 to 100. Raises `ValueError` on another array or codec.
    """
    _check_rgb(rgb)
    if codec not in ("jpeg", "png"):
        raise ValueError(f"codec must be jpeg or png, got {codec!r}")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if codec == "jpeg" else []
    encoded = cv2.imencode(f".{codec}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1]
    msg: CompressedImage = (message_type or _ros_compressed_image())()
    msg.header = header
    msg.format = f"rgb8; {codec} compressed bgr8"
    _append(msg.data, encoded)
    return msg


def build_feature_map(
    *,
    header: Header,
    camera: str,
    model: str,
    weights_hash: str,
    epoch: int,
    index: int,
    skipped: int,
    features: npt.NDArray[np.floating[Any]],
    frame_map: FrameMap,
    dtype: Literal["float32", "float16"] = "float32",
    message_type: Any = None,
) -> FeatureMap:
    """A FeatureMap message from the features (rows * cols + 1, D) of one frame, [CLS] first.

    `frame_map` is the map of the frame's preprocessing and gives the grid. `dtype` is the type of the patch features in
    the message; values beyond float16's range become its largest number. Raises `ValueError` if the features do not
    fit the grid or `dtype` is unknown.
    """
    rows, cols = frame_map.rows, frame_map.cols
    if features.ndim != 2 or features.shape[0] != rows * cols + 1:
        raise ValueError(f"expected features ({rows * cols + 1}, D) for {rows}x{cols} cells, got {features.shape}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, got {dtype!r}")
    msg: FeatureMap = (message_type or _ros_feature_map())()
    msg.header, msg.camera = header, camera
    msg.model, msg.weights_hash = model, weights_hash
    msg.epoch, msg.index, msg.skipped = epoch, index, skipped
    msg.rows, msg.cols, msg.channels = rows, cols, features.shape[1]
    msg.image_width, msg.image_height = frame_map.source_width, frame_map.source_height
    msg.grid_to_image = frame_map.grid_to_image.ravel()
    _append(msg.cls, features[0].astype(np.float32))
    patches = features[1:]
    if dtype == "float16":
        msg.dtype = msg.FLOAT16
        limit = np.finfo(np.float16).max
        patches = np.clip(patches, -limit, limit)
    else:
        msg.dtype = msg.FLOAT32
    _append(msg.data, patches.astype(np.dtype(dtype).newbyteorder("<"), copy=False))
    return msg


def _ros_image() -> Any:
    from sensor_msgs.msg import Image

    return Image


def _ros_compressed_image() -> Any:
    from sensor_msgs.msg import CompressedImage

    return CompressedImage


def _ros_feature_map() -> Any:
    from rvm_perception.msg import FeatureMap

    return FeatureMap


def _resolve_encoding(encoding: str, ambiguous_encoding: str) -> str:
    if encoding in _ENCODINGS:
        return encoding
    if encoding not in _AMBIGUOUS:
        raise ImageError("encoding", f"expected one of {', '.join(SUPPORTED_ENCODINGS)}; got {encoding!r}")
    layout = _AMBIGUOUS[encoding]
    choices = [name for name, known in _ENCODINGS.items() if (known.channels, known.dtype) == layout]
    if ambiguous_encoding in choices:
        return ambiguous_encoding
    raise ImageError(
        "encoding",
        f"{encoding!r} does not tell the colours; set ambiguous_encoding to one of {', '.join(choices)} "
        f"(it is {ambiguous_encoding!r})",
    )


def _pixels(msg: Image, name: str) -> npt.NDArray[Any]:
    """Read-only view (H, W) or (H, W, channels) of the message's data, without the padding of its rows."""
    channels, dtype, to_rgb = _ENCODINGS[name]
    item = np.dtype(dtype).newbyteorder(">" if msg.is_bigendian else "<")
    row_bytes = msg.width * channels * item.itemsize
    size = f"{msg.width}x{msg.height} {name} with step {msg.step}"
    if msg.width <= 0 or msg.height <= 0:
        raise ImageError("size", f"expected at least one pixel, got {size}")
    if msg.step < row_bytes:
        raise ImageError("size", f"expected a step of at least {row_bytes} bytes, got {size}")
    if len(msg.data) != msg.step * msg.height:
        raise ImageError("size", f"expected {msg.step * msg.height} bytes for {size}, got {len(msg.data)}")
    if channels == 2 and msg.width % 2:
        raise ImageError("size", f"expected an even width, since two pixels share their colour, got {size}")
    if name.startswith("bayer_") and min(msg.width, msg.height) < 3:
        raise ImageError("size", f"expected at least 3x3 pixels of a mosaic, got {size}")
    rows = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)[:, :row_bytes].view(item)
    rows.flags.writeable = False
    return rows if channels == 1 else rows.reshape(msg.height, msg.width, channels)


def _to_uint8(values: npt.NDArray[Any]) -> UInt8Array:
    """16-bit values of either byte order to 8 bits, so that 65535 becomes 255, rounded to nearest."""
    return np.asarray(cv2.convertScaleAbs(values.astype(np.uint16), alpha=_UINT16_TO_UINT8), np.uint8)


def _convert(pixels: npt.NDArray[Any], code: int) -> UInt8Array:
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)


def _decode_jpeg(data: memoryview, message_format: str, max_pixels: int) -> UInt8Array:
    # OpenCV decodes damaged JPEG without an error and only prints libjpeg's warnings; here they are errors.
    # Imported here, so that who takes raw images only need not have it.
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height, max_pixels)
        if colours not in ("YCbCr", "RGB", "Gray"):
            raise ImageError("encoding", f"expected a JPEG in colour or grey, got {colours}")
        order = "BGR" if _colours_exchanged(message_format) else "RGB"
        return np.asarray(simplejpeg.decode_jpeg(data, order), np.uint8)
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError("corrupt", f"JPEG of {len(data)} bytes: {error}") from error


def _decode_png(data: memoryview, message_format: str, max_pixels: int) -> UInt8Array:
    _check_png_chunks(data)
    width, height = struct.unpack_from(">II", data, _PNG_SIZE_OFFSET)
    _check_pixels(width, height, max_pixels)
    original = message_format.partition(";")[0].strip()
    is_mosaic = original.startswith("bayer_") and original in _ENCODINGS
    flags = cv2.IMREAD_GRAYSCALE if is_mosaic else cv2.IMREAD_COLOR
    try:
        flags |= cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("corrupt", f"PNG of {len(data)} bytes: {error}") from error
    if pixels is None:
        raise ImageError("corrupt", f"PNG of {len(data)} bytes is truncated or damaged")
    if pixels.dtype == np.uint16:
        pixels = _to_uint8(pixels)
    if is_mosaic:
        code = _ENCODINGS[original].to_rgb
        assert code is not None
        return _convert(pixels, code)
    return np.asarray(pixels) if _colours_exchanged(message_format) else _convert(pixels, cv2.COLOR_BGR2RGB)


def _check_png_chunks(data: memoryview) -> None:
    """Refuse a PNG whose chunks do not fit its data: OpenCV reserves what a chunk's length says, up to 2 GB."""
    start, name = len(_PNG_SIGNATURE), b""
    while name != b"IEND":
        if len(data) - start < _PNG_CHUNK_OVERHEAD:
            raise ImageError("corrupt", f"PNG of {len(data)} bytes is truncated")
        length, name = struct.unpack_from(">I4s", data, start)
        if start == len(_PNG_SIGNATURE) and (length, name) != (13, b"IHDR"):
            raise ImageError("corrupt", f"PNG of {len(data)} bytes starts with {name!r} in place of its header")
        start += length + _PNG_CHUNK_OVERHEAD
    if start > len(data):
        raise ImageError("corrupt", f"PNG of {len(data)} bytes is truncated")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError("corrupt", f"expected at least one pixel, the header says {width}x{height}")
    if width * height > max_pixels:
        raise ImageError("too_large", f"expected at most {max_pixels} pixels, the header says {width}x{height}")


def _colours_exchanged(message_format: str) -> bool:
    """Whether image_transport, reading this format field, takes the codec's red for blue.

    The field reads "<encoding>; <codec> compressed <order>". Drivers that hand RGB to a codec which expects BGR say so
    by an order other than bgr; a field without ";" tells nothing, and the codec's own colours hold.
    """
    original, separator, rest = message_format.partition(";")
    return bool(separator) and original.strip() in _COLOURS and "compressed bgr" not in rest


def _check_rgb(rgb: UInt8Array) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected an RGB image (H, W, 3) of uint8, got {rgb.shape} of {rgb.dtype}")


def _append(data: Any, values: npt.NDArray[Any]) -> None:
    """Fill an empty array field of a new message with the bytes of `values`, in one copy.

    Assigning a numpy array to the field instead makes rclpy look at every byte: half a second for 1080p.
    """
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8))

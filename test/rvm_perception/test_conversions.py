"""Image messages and arrays: every encoding against plain numpy, damaged data refused, nothing else ever raised."""

from __future__ import annotations

import array
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from image_arrays import HEIGHT, WIDTH, encode, noise, smooth
from rvm_perception.conversions import (
    SUPPORTED_ENCODINGS,
    ImageError,
    compressed_to_rgb,
    image_to_labels,
    image_to_rgb,
    labels_to_image,
    rgb_to_compressed,
    rgb_to_image,
)

try:
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    HAVE_ROS = True
except ImportError:  # images are read from anything with the same fields
    HAVE_ROS = False

    class Image(SimpleNamespace):  # type: ignore[no-redef]
        """Stand-in for sensor_msgs/Image."""

        def __init__(self, **fields: Any) -> None:
            super().__init__(**{"data": array.array("B"), "is_bigendian": 0, **fields})

    class CompressedImage(SimpleNamespace):  # type: ignore[no-redef]
        """Stand-in for sensor_msgs/CompressedImage."""

        def __init__(self, **fields: Any) -> None:
            super().__init__(**{"data": array.array("B"), "format": "", **fields})


needs_ros = pytest.mark.skipif(not HAVE_ROS, reason="ROS, whose messages are filled, is not installed")

PADDINGS = [0, 1, 7, 64]

YUV_TOLERANCE = 2
"""Levels. OpenCV computes BT.601 in fixed point."""
MOSAIC_TOLERANCE = 1
"""Levels. Interpolation of a linear image is exact but for the rounding of the image and of the result."""
JPEG_TOLERANCE = 6
"""Levels, on a smooth image at quality 95 with halved colour resolution."""
SLOW_S = 0.25
"""A 1080p message takes about 2 ms; where rclpy looks at every byte it takes more than twice this."""


def image_message(rows: np.ndarray, width: int, encoding: str, padding: int = 0, **fields: Any) -> Any:
    """An Image whose rows are the bytes of `rows`, followed by `padding` bytes that are not part of the image."""
    packed = np.ascontiguousarray(rows).reshape(rows.shape[0], -1).view(np.uint8)
    padded = np.concatenate([packed, noise(rows.shape[0], padding)], axis=1)
    msg = Image(height=rows.shape[0], width=width, encoding=encoding, step=padded.shape[1], **fields)
    msg.data.frombytes(padded.tobytes())
    return msg


def compressed_message(data: bytes, message_format: str = "jpeg") -> Any:
    msg = CompressedImage(format=message_format)
    msg.data.frombytes(data)
    return msg


@contextmanager
def raises(reason: str, match: str) -> Iterator[None]:
    with pytest.raises(ImageError, match=match) as caught:
        yield
    assert caught.value.reason == reason and reason in ImageError.REASONS


# Raw images.


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("encoding", "channels", "rgb"),
    [
        ("rgb8", 3, [0, 1, 2]),
        ("bgr8", 3, [2, 1, 0]),
        ("rgba8", 4, [0, 1, 2]),
        ("bgra8", 4, [2, 1, 0]),
        ("mono8", 1, [0, 0, 0]),
    ],
)
def test_eight_bit_encodings(encoding: str, channels: int, rgb: list[int], padding: int) -> None:
    pixels = noise(HEIGHT, WIDTH, channels)
    result = image_to_rgb(image_message(pixels, WIDTH, encoding, padding))
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, pixels[:, :, rgb])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("big", [0, 1])
def test_mono16_is_scaled_in_both_byte_orders(big: int, padding: int) -> None:
    values = noise(HEIGHT, WIDTH, dtype=np.uint16)
    values[0, :4] = [0, 128, 129, 65535]
    msg = image_message(values.astype(">u2" if big else "<u2"), WIDTH, "mono16", padding, is_bigendian=big)
    result = image_to_rgb(msg)
    np.testing.assert_array_equal(result, np.repeat(np.rint(values / 257)[:, :, None], 3, axis=2))
    assert result[0, :4, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("big", [0, 1])  # says nothing about single bytes
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_yuv422(encoding: str, padding: int, big: int) -> None:
    y0, y1, u, v = np.moveaxis(noise(HEIGHT, WIDTH // 2, 4), 2, 0)
    packed = np.stack([u, y0, v, y1] if encoding in ("uyvy", "yuv422") else [y0, u, y1, v], axis=2)
    # BT.601: luma weights 0.299, 0.587, 0.114; luma has 219 levels above 16, colour differences 224 around 128.
    luma = np.stack([y0, y1], axis=2).reshape(HEIGHT, WIDTH)
    y = (luma.astype(float) - 16) * 255 / 219
    u, v = (np.repeat((plane.astype(float) - 128) * 255 / 224, 2, axis=1) for plane in (u, v))
    red, blue = y + 2 * (1 - 0.299) * v, y + 2 * (1 - 0.114) * u
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    expected = np.clip(np.stack([red, green, blue], axis=2), 0, 255)

    result = image_to_rgb(image_message(packed, WIDTH, encoding, padding, is_bigendian=big))

    legal = luma >= 16  # OpenCV takes blacker than black as black
    assert np.abs(result - expected)[legal].max() <= YUV_TOLERANCE


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_give_back_the_colour_image(pattern: str, padding: int) -> None:
    image = smooth()
    mosaic = np.empty((HEIGHT, WIDTH), np.uint8)
    for place, colour in enumerate(pattern):
        row, col = divmod(place, 2)
        mosaic[row::2, col::2] = image[row::2, col::2, "rgb".index(colour)]
    result = image_to_rgb(image_message(mosaic, WIDTH, f"bayer_{pattern}8", padding))
    inner = (slice(1, -1), slice(1, -1))  # at the edge there is nothing to interpolate from
    assert result.shape == image.shape
    assert np.abs(result[inner].astype(int) - image[inner]).max() <= MOSAIC_TOLERANCE


def test_unpadded_rgb8_is_a_read_only_view() -> None:
    msg = image_message(noise(HEIGHT, WIDTH, 3), WIDTH, "rgb8")
    result = image_to_rgb(msg)
    assert np.shares_memory(result, np.frombuffer(msg.data, np.uint8))
    assert not result.flags.writeable


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_any_buffer_is_read(kind: Any, encoding: str) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    msg = SimpleNamespace(
        height=HEIGHT, width=WIDTH, step=3 * WIDTH, encoding=encoding, is_bigendian=0, data=kind(pixels.tobytes())
    )
    np.testing.assert_array_equal(image_to_rgb(msg), pixels if encoding == "rgb8" else pixels[:, :, ::-1])
    compressed = SimpleNamespace(format="png", data=kind(encode("png", pixels)))
    np.testing.assert_array_equal(compressed_to_rgb(compressed), pixels)


@pytest.mark.parametrize("encoding", ["", "RGB8", "32FC1", "rgb16", "bayer_rggb16", "8SC3", "nonsense"])
def test_unsupported_encodings_name_the_supported(encoding: str) -> None:
    with raises("encoding", ", ".join(SUPPORTED_ENCODINGS) + f"; got '{encoding}'"):
        image_to_rgb(image_message(noise(4, 4), 4, encoding))


def test_ambiguous_encodings_need_to_be_told() -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    msg = image_message(pixels, WIDTH, "8UC3")
    with raises("encoding", "'8UC3' does not tell the colours; set ambiguous_encoding to one of rgb8, bgr8 "):
        image_to_rgb(msg)
    with raises("encoding", r"one of rgb8, bgr8 \(it is 'mono8'\)"):
        image_to_rgb(msg, ambiguous_encoding="mono8")
    np.testing.assert_array_equal(image_to_rgb(msg, ambiguous_encoding="bgr8"), pixels[:, :, ::-1])
    grey = image_message(np.full((4, 4), 0x8000, "<u2"), 4, "16UC1")
    assert image_to_rgb(grey, ambiguous_encoding="mono16")[0, 0].tolist() == [128, 128, 128]
    # An encoding that tells its colours is not overruled.
    np.testing.assert_array_equal(image_to_rgb(image_message(pixels, WIDTH, "rgb8"), ambiguous_encoding="bgr8"), pixels)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"step": 11}, "step of at least 12 bytes, got 4x4 rgb8 with step 11"),
        ({"step": 0}, "step of at least 12 bytes"),
        ({"height": 5}, "expected 60 bytes for 4x5 rgb8 with step 12, got 48"),
        ({"height": 3}, "expected 36 bytes for 4x3 rgb8 with step 12, got 48"),
        ({"height": 0}, "at least one pixel, got 4x0"),
        ({"width": 0}, "at least one pixel, got 0x4"),
        ({"width": 2**32 - 1, "step": 2**32 - 1, "height": 2**32 - 1}, "step of at least"),
        ({"encoding": "uyvy", "width": 3}, "even width"),
        ({"encoding": "bayer_rggb8", "width": 2}, "at least 3x3 pixels of a mosaic, got 2x4"),
        ({"encoding": "mono16", "width": 7}, "step of at least 14 bytes"),
    ],
)
def test_wrong_sizes(fields: dict[str, Any], match: str) -> None:
    msg = image_message(noise(4, 12), 4, "rgb8")
    for name, value in fields.items():
        setattr(msg, name, value)
    with raises("size", match):
        image_to_rgb(msg)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("encoding", "big"), [("mono8", 0), ("mono16", 0), ("mono16", 1)])
def test_labels_keep_their_values(encoding: str, big: int, padding: int) -> None:
    dtype = np.dtype(np.uint16 if encoding == "mono16" else np.uint8)
    labels = noise(HEIGHT, WIDTH, dtype=dtype)
    rows = labels.astype(dtype.newbyteorder(">" if big else "<"))
    result = image_to_labels(image_message(rows, WIDTH, encoding, padding, is_bigendian=big))
    assert result.dtype == dtype and result.dtype.isnative
    np.testing.assert_array_equal(result, labels)


def test_labels_refuse_colours() -> None:
    with raises("encoding", "mono8 or mono16, got 'rgb8'"):
        image_to_labels(image_message(noise(4, 12), 4, "rgb8"))


@needs_ros
def test_labels_to_image_and_back() -> None:
    header = Header(frame_id="camera")
    labels = noise(HEIGHT, WIDTH, dtype=np.dtype(np.uint16))
    msg = labels_to_image(labels, header)
    assert (msg.header, msg.encoding, msg.step) == (header, "mono16", 2 * WIDTH)
    np.testing.assert_array_equal(image_to_labels(msg), labels)


@pytest.mark.parametrize("labels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint16)])
@needs_ros
def test_labels_to_image_refuses_other_arrays(labels: Any) -> None:
    with pytest.raises(ValueError, match="expected labels"):
        labels_to_image(labels, Header())


@needs_ros
def test_rgb_to_image_and_back() -> None:
    header = Header(frame_id="camera")
    pixels = noise(HEIGHT, WIDTH, 3)
    for rgb in (pixels, pixels[:, ::-1], np.asfortranarray(pixels)):
        msg = rgb_to_image(rgb, header)
        assert (msg.header, msg.encoding, msg.step, len(msg.data)) == (header, "rgb8", 3 * WIDTH, rgb.size)
        np.testing.assert_array_equal(image_to_rgb(msg), rgb)
    with pytest.raises(ValueError, match=r"expected an RGB image \(H, W, 3\) of uint8, got \(36, 50\)"):
        rgb_to_image(pixels[:, :, 0], header)


@needs_ros
def test_filling_a_message_is_one_copy() -> None:
    rgb = noise(1080, 1920, 3)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        rgb_to_image(rgb, Header())
        times.append(time.perf_counter() - start)
    assert min(times) < SLOW_S


# Compressed images.


@pytest.mark.parametrize("message_format", ["jpeg", "", "rgb8; jpeg compressed bgr8", "mono8; jpeg compressed mono8"])
def test_jpeg(message_format: str) -> None:
    result = compressed_to_rgb(compressed_message(encode("jpeg", smooth()), message_format))
    assert result.flags.c_contiguous and result.flags.writeable
    assert np.abs(result.astype(int) - smooth()).max() <= JPEG_TOLERANCE
    grey = smooth()[:, :, 1]
    result = compressed_to_rgb(compressed_message(encode("jpeg", grey), message_format))
    assert np.abs(result - grey[:, :, None].astype(int)).max() <= JPEG_TOLERANCE


@pytest.mark.parametrize("message_format", ["png", "rgb8; png compressed bgr8", "jpeg"])
def test_png_is_exact(message_format: str) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    result = compressed_to_rgb(compressed_message(encode("png", pixels), message_format))
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_every_kind(channels: int, dtype: Any) -> None:
    pixels = noise(HEIGHT, WIDTH, channels, dtype=dtype)
    # PNG's own order is RGB; OpenCV's encoder takes BGR.
    stored = pixels if channels == 1 else pixels[:, :, [2, 1, 0, 3][:channels]]
    data = cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes()
    expected = np.rint(pixels / 257) if dtype == np.uint16 else pixels
    expected = np.repeat(expected, 3, axis=2) if channels == 1 else expected[:, :, :3]
    np.testing.assert_array_equal(compressed_to_rgb(compressed_message(data, "png")), expected)


@pytest.mark.parametrize("codec", ["jpeg", "png"])
@pytest.mark.parametrize("message_format", ["rgb8; {} compressed rgb8", "bgr8; {} compressed rgb8", "rgba8; {}"])
def test_exchanged_colours_are_put_right(codec: str, message_format: str) -> None:
    """As image_transport's subscriber does for drivers that compress RGB as if it were BGR."""
    data = encode(codec, smooth()[:, :, ::-1])
    result = compressed_to_rgb(compressed_message(data, message_format.format(codec)))
    assert np.abs(result.astype(int) - smooth()).max() <= JPEG_TOLERANCE


def test_mosaic_in_a_png() -> None:
    mosaic = noise(HEIGHT, WIDTH)
    result = compressed_to_rgb(compressed_message(encode("png", mosaic), "bayer_grbg8; png compressed "))
    np.testing.assert_array_equal(result, image_to_rgb(image_message(mosaic, WIDTH, "bayer_grbg8")))


def test_orientation_tags_are_ignored() -> None:
    """A rotated image would not agree with the calibration of the camera."""
    tiff = b"MM\0\x2a\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    jpeg = encode("jpeg", smooth())
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    png = encode("png", smooth())
    png = png[:33] + png_chunk(b"eXIf", tiff) + png[33:]
    assert compressed_to_rgb(compressed_message(jpeg)).shape == smooth().shape
    np.testing.assert_array_equal(compressed_to_rgb(compressed_message(png)), smooth())


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks)


def jpeg_header(width: int, height: int) -> bytes:
    data = encode("jpeg", smooth())
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def decoder_that_must_not_run(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the image was decoded")


def test_giant_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", decoder_that_must_not_run)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decoder_that_must_not_run)
    for data in (png_header(30_000, 30_000), png_header(2**31 - 1, 2**31 - 1), jpeg_header(65_500, 65_500)):
        with raises("too_large", r"at most 67108864 pixels, the header says \d+x\d+"):
            compressed_to_rgb(compressed_message(data))


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_limit_is_the_largest_size_taken(codec: str) -> None:
    msg = compressed_message(encode(codec, smooth()))
    assert compressed_to_rgb(msg, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with raises("too_large", f"at most {HEIGHT * WIDTH - 1} pixels, the header says {WIDTH}x{HEIGHT}"):
        compressed_to_rgb(msg, max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_truncated_anywhere_is_refused(codec: str) -> None:
    data = encode(codec, noise(HEIGHT, WIDTH, 3))
    for length in [*range(8, 64), *range(64, len(data) - 12, 97), *range(len(data) - 12, len(data))]:
        with raises("corrupt", f"{codec.upper()} of {length} bytes"):
            compressed_to_rgb(compressed_message(data[:length]))


def test_jpeg_with_missing_data_but_an_end_is_refused() -> None:
    """OpenCV alone returns these, the missing part grey."""
    data = encode("jpeg", noise(HEIGHT, WIDTH, 3))
    half = len(data) // 2
    for damaged in (data[:half] + b"\xff\xd9", data[:half] + bytes(500) + data[half + 500 :]):
        assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR) is not None
        with raises("corrupt", "JPEG of"):
            compressed_to_rgb(compressed_message(damaged))


def test_png_chunk_longer_than_the_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV reserves memory for it, up to 2 GB, before it looks at the data."""
    data = bytearray(encode("png", smooth()))
    data[33:37] = struct.pack(">I", 2**31 - 1)
    monkeypatch.setattr(cv2, "imdecode", decoder_that_must_not_run)
    with raises("corrupt", f"PNG of {len(data)} bytes is truncated"):
        compressed_to_rgb(compressed_message(bytes(data)))


def test_every_flipped_bit_of_a_png_is_noticed() -> None:
    data = encode("png", noise(6, 7, 3))
    for place in range(8, len(data) - 4):  # the last four bytes are the check sum of nothing
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ImageError):
            compressed_to_rgb(compressed_message(bytes(damaged)))


def test_jpeg_for_print_is_refused() -> None:
    data = simplejpeg.encode_jpeg(noise(16, 16, 4), colorspace="CMYK", colorsubsampling="444")
    with raises("encoding", "in colour or grey, got YCCK"):
        compressed_to_rgb(compressed_message(data))


@pytest.mark.parametrize(
    ("data", "reason", "match"),
    [
        (b"", "corrupt", "got no data"),
        (b"GIF89a" + bytes(20), "encoding", "starts with 4749463839610000"),
        (bytes(12) + b"\x89PNG\r\n\x1a\n", "encoding", "16UC1; compressedDepth png"),
        (png_header(0, 5), "corrupt", "the header says 0x5"),
    ],
)
def test_other_data_is_refused(data: bytes, reason: str, match: str) -> None:
    with raises(reason, match):
        compressed_to_rgb(compressed_message(data, "16UC1; compressedDepth png"))


@needs_ros
@pytest.mark.parametrize(("codec", "tolerance"), [("jpeg", JPEG_TOLERANCE), ("png", 0)])
def test_rgb_to_compressed_and_back(codec: Any, tolerance: int) -> None:
    header = Header(frame_id="camera")
    msg = rgb_to_compressed(smooth(), header, codec)
    assert (msg.header, msg.format) == (header, f"rgb8; {codec} compressed bgr8")
    assert np.abs(compressed_to_rgb(msg).astype(int) - smooth()).max() <= tolerance
    with pytest.raises(ValueError, match="codec must be jpeg or png, got 'gif'"):
        rgb_to_compressed(smooth(), header, "gif")  # type: ignore[arg-type]


# The same as cv_bridge, where it is installed.


@pytest.mark.parametrize("encoding", [name for name in SUPPORTED_ENCODINGS if name not in ("uyvy", "yuyv")])
def test_same_as_cv_bridge(encoding: str) -> None:
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS installation only")
    channels = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "yuv422": 2, "yuv422_yuy2": 2}.get(encoding, 1)
    rows = noise(HEIGHT, WIDTH, channels, dtype=np.uint16 if encoding == "mono16" else np.uint8)
    msg = image_message(rows, WIDTH, encoding)
    np.testing.assert_array_equal(image_to_rgb(msg), cv_bridge.CvBridge().imgmsg_to_cv2(msg, "rgb8"))

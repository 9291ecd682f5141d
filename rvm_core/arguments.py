"""What options of several commands mean: choices and functions for argparse."""

from __future__ import annotations

import argparse
import re

from rvm_core.config import check_image_size

BACKENDS: tuple[str, ...] = ("auto", "torch", "inductor", "openvino", "tensorrt")
"""Runtimes of engines; auto chooses among them."""


def parse_size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH in pixels. Raises `ArgumentTypeError` for what cannot be the size of the model's frames."""
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 256x256, got {text!r}")
    height, width = int(match[1]), int(match[2])
    try:
        check_image_size(height, width)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return height, width

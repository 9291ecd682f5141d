"""Writes boxes.json (see `rvm_training.datasets.boxes`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvm_training.datasets.boxes import FORMAT, VERSION


def write_boxes(folder: Path, *, rate: float, frames: Sequence[dict[str, Any]]) -> None:
    """frames: each with "image" and "boxes" as the file has them."""
    data = {"format": FORMAT, "version": VERSION, "rate": rate, "frames": list(frames)}
    (folder / "boxes.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")

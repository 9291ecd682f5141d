"""The log of a pretraining run: scalars and pictures as files and for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rvm_core.atomic import atomic_file
from rvm_training.run_folder import RunFolder

Row = dict[str, Any]


class TrainLog:
    """Writes scalars.jsonl, one object a line with its step, and the same with the pictures for TensorBoard.

    What an interrupted run logged after the step that it goes on from is dropped, so each step is there once.

    Raises `ImportError`, naming the extra, if tensorboardX is missing.
    """

    def __init__(self, folder: RunFolder, *, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboardX is missing; pip install 'rvm_perception[train]'") from error
        self.folder = folder
        kept = [row for row in read_scalars(folder.scalars) if row["step"] <= start]
        with atomic_file(folder.scalars) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._file = folder.scalars.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=start + 1 if start else None)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        self._board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers of a step; those that are not finite only for TensorBoard, as JSON has no name for them."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(_line({"step": step, **finite}))
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, image: npt.NDArray[np.uint8]) -> None:
        """Logs an RGB picture (H, W, 3) of a step."""
        self.folder.pictures.mkdir(exist_ok=True)
        with atomic_file(self.folder.pictures / f"{step:08d}.png") as temporary:
            encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
            temporary.write_bytes(encoded.tobytes())
        self._board.add_image("reconstruction", image, step, dataformats="HWC")


def read_scalars(path: Path) -> list[Row]:
    """The rows of scalars.jsonl, none if there is no such file. A last line that was cut off is left out."""
    if not path.is_file():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"

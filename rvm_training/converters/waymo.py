"""Waymo Open Dataset, version 2, to folders of boxes: the labelled 2-D boxes of the front camera and its images.

    SOURCE/camera_image/SEGMENT.parquet
    SOURCE/camera_box/SEGMENT.parquet

Version 1 is made of TensorFlow records, which only TensorFlow and the dataset's own package read; version 2 has the
same labels in Parquet. Needs pyarrow, of the extra `eval`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rvm_training.converters.output import Progress, new_folder, safe_name
from rvm_training.converters.write_boxes import write_boxes
from rvm_training.datasets.images import require_folder
from rvm_training.evaluation.benchmark import DatasetError

FRONT = 1
"""Number of the front camera."""
RATE = 10.0
"""Frames per second of the dataset."""
LABELS = {1: "vehicle", 2: "pedestrian", 3: "sign", 4: "cyclist"}

_TIME, _CAMERA, _OBJECT = "key.frame_timestamp_micros", "key.camera_name", "key.camera_object_id"
_IMAGE = "[CameraImageComponent].image"
_BOX = "[CameraBoxComponent].box"
_SIDES = (f"{_BOX}.center.x", f"{_BOX}.center.y", f"{_BOX}.size.x", f"{_BOX}.size.y")
_TYPE = "[CameraBoxComponent].type"
_BATCH = 16
"""Images that are in memory at once."""


def convert_waymo(source: Path, out: Path, progress: Progress) -> int:
    """Writes the folder `out` and returns the number of segments.

    Raises `DatasetError` for what is no such layout, and `ImportError` without pyarrow.
    """
    _require_pyarrow()
    require_folder(source, "Waymo Open 2 (camera_image/*.parquet and camera_box/*.parquet)")
    images = {path.name: path for path in sorted((source / "camera_image").glob("*.parquet"))}
    boxes = {path.name: path for path in sorted((source / "camera_box").glob("*.parquet"))}
    if not images or images.keys() != boxes.keys():
        records = " (there are .tfrecord files: version 1 is not read, version 2 has the same labels)"
        raise DatasetError(
            f"looked for the same *.parquet in {source / 'camera_image'} and {source / 'camera_box'}: found "
            f"{len(images)} and {len(boxes)}, {len(images.keys() & boxes.keys())} of them in both"
            + (records if any(source.rglob("*.tfrecord")) else "")
        )
    with new_folder(out) as folder:
        for index, name in enumerate(images):
            progress(name, index, len(images))
            _convert(images[name], boxes[name], folder / safe_name(index, Path(name).stem))
        progress("", len(images), len(images))
    return len(images)


def _convert(images: Path, boxes: Path, folder: Path) -> None:
    by_time: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(boxes, [_TIME, _CAMERA, _OBJECT, *_SIDES, _TYPE]):
        if row[_CAMERA] == FRONT:
            x, y, width, height = (float(row[side]) for side in _SIDES)
            if width > 0 and height > 0:
                corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                label = LABELS.get(row[_TYPE], "")
                by_time[int(row[_TIME])].append({"id": str(row[_OBJECT]), "label": label, "xyxy": corners})
    (folder / "frames").mkdir(parents=True)
    times = []
    for row in _rows(images, [_TIME, _CAMERA, _IMAGE]):
        if row[_CAMERA] == FRONT:
            time = int(row[_TIME])
            (folder / "frames" / f"{time}.jpg").write_bytes(row[_IMAGE])
            times.append(time)
    if not times or not set(by_time) <= set(times):
        raise DatasetError(
            f"{images} has {len(times)} images of the front camera, but {boxes} has boxes at {len(by_time)} times, "
            f"{len(set(by_time) - set(times))} of them without an image"
        )
    frames = [{"image": f"frames/{time}.jpg", "boxes": by_time[time]} for time in sorted(times)]
    write_boxes(folder, rate=RATE, frames=frames)


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise DatasetError(f"{path} has no column {', '.join(sorted(missing))}; expected Waymo Open version 2")
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ImportError(
            "reading Waymo Open needs pyarrow, which is not installed: pip install 'rvm_perception[eval]', or pip "
            "install pyarrow"
        ) from None

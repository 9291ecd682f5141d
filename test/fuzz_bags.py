"""Fuzz targets: recordings, sqlite3 and mcap, of which files or metadata are damaged; read whole and recovered."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from bag_files import Shot, query, storage_file, write_bag
from fuzzing import Case, Forbidden, Target, damage, outcome_of
from rvm_perception.bag_reader import Bag, BagError, MessageError, decode
from rvm_perception.bag_types import OWN_TYPES

MOST_MESSAGES = 1000
"""A bag of six messages may not become one without end."""


def bag_target(storage: str, compression: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        shots = [Shot(stamp=stamp, size=(4, 6)).raw() for stamp in range(4)]
        requests = [query(1.5, point_x=[1.0], point_y=[2.0]), query(2.5, clear=True)]
        path = write_bag(folder / "bag", [*shots, *requests], storage=storage, compression=compression)
        files = {file: file.read_bytes() for file in (storage_file(path), path / "metadata.yaml")}
        assert len(read(path, recover=False)) == 6

        def case(numbers: random.Random) -> str:
            for extra in set(path.iterdir()) - files.keys():
                extra.unlink()
            target = numbers.choice((*files, storage_file_of(files)))
            for file, content in files.items():
                file.write_bytes(damage(numbers, content, most=8) if file == target else content)
            if target.name == "metadata.yaml" and numbers.random() < 0.2:
                target.unlink()
            recover = numbers.random() < 0.5
            try:
                found = read(path, recover=recover)
            except BagError as error:
                return outcome_of(error)
            return f"{'recovered' if recover else 'read'} {'all' if len(found) == 6 else 'some'}"

        return case

    return make


def storage_file_of(files: dict[Path, bytes]) -> Path:
    return next(file for file in files if file.name != "metadata.yaml")


def read(path: Path, *, recover: bool) -> list[object]:
    """Every message; those that are damaged as None."""
    found: list[object] = []
    with Bag(path, recover=recover) as bag:
        for topic in bag.topics.values():
            if topic.message_type in OWN_TYPES:
                bag.check_definition(topic)
        for message in bag.messages(list(bag.topics)):
            try:
                found.append(decode(message))
            except MessageError:
                found.append(None)
            if len(found) > MOST_MESSAGES:
                raise Forbidden("more messages than were ever written")
    return found


TARGETS = {
    "sqlite3": Target(make=bag_target("sqlite3", "none"), cases=500),
    "mcap": Target(make=bag_target("mcap", "none"), cases=500),
    "mcap of chunks": Target(make=bag_target("mcap", "chunk"), cases=500),
}

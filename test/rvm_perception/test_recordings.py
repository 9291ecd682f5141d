"""Which recordings a folder has, and what their results are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvm_perception.recordings import find_recordings, is_folder_of_recordings


def make(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def names(folder: Path, leave_out: Path | None = None) -> dict[str, str]:
    found = find_recordings(folder, leave_out=leave_out)
    return {recording.name: recording.path.relative_to(folder).as_posix() for recording in found}


def test_folders_and_files(tmp_path: Path) -> None:
    make(tmp_path, "b/metadata.yaml", "b/b_0.mcap", "b/b_1.mcap", "b/more/x.mcap")
    make(tmp_path, "site/a/metadata.yaml", "site/a/any.db3", "site/c.mcap.zstd", "d.db3", "notes.txt", "site/e.bag")
    assert names(tmp_path) == {
        "b": "b",
        "d": "d.db3",
        "site/a": "site/a",
        "site/c": "site/c.mcap.zstd",
    }


def test_a_recording_without_metadata_is_one(tmp_path: Path) -> None:
    make(tmp_path, "cut/cut_0.mcap", "cut/cut_1.mcap", "loose/one_0.mcap", "loose/two_0.mcap")
    assert list(names(tmp_path)) == ["cut", "loose/one_0", "loose/two_0"]


def test_names_that_clash_keep_their_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.mcap", "a.db3", "b.mcap", "b/c.mcap", "d.mcap", "d/metadata.yaml")
    assert list(names(tmp_path)) == ["a.db3", "a.mcap", "b/c", "b.mcap", "d", "d.mcap"]


def test_results_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.mcap", ".work/x.mcap", "old/summary.json", "old/replay.mcap", "out/a/replay.mcap")
    assert list(names(tmp_path, tmp_path / "out")) == ["a"]


def test_links_make_no_circles(tmp_path: Path) -> None:
    make(tmp_path, "disk/a.mcap")
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "bags")
    assert list(names(tmp_path / "bags")) == ["disk/a"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["b/metadata.yaml", "b/b_0.mcap"], True),
        (["x.mcap"], True),
        (["metadata.yaml", "x.mcap"], False),
        (["bags_0.mcap"], False),
        (["readme.txt"], False),
    ],
)
def test_what_is_a_folder_of_recordings(tmp_path: Path, files: list[str], expected: bool) -> None:
    (tmp_path / "bags").mkdir()
    make(tmp_path / "bags", *files)
    assert is_folder_of_recordings(tmp_path / "bags") is expected


def test_a_file_is_no_folder_of_recordings(tmp_path: Path) -> None:
    make(tmp_path, "x.mcap")
    assert not is_folder_of_recordings(tmp_path / "x.mcap") and not is_folder_of_recordings(tmp_path / "gone")

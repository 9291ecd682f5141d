"""The loaders refuse a folder that is wrong or not whole, and say what was looked for and where."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from mini_datasets import HEIGHT, WIDTH, make_davis, make_jhmdb, make_vip, moving_boxes, write_palette, write_rgb
from rvm_training.datasets.davis import Davis2017
from rvm_training.datasets.jhmdb import Jhmdb
from rvm_training.datasets.label_images import lanczos, read_labels
from rvm_training.datasets.vip import Vip
from rvm_training.evaluation.benchmark import DatasetError


def test_davis(tmp_path: Path) -> None:
    data = Davis2017(make_davis(tmp_path, {"walk": 3, "run": 4}))
    assert data.videos == ["walk", "run"]
    assert [path.name for path in data.frames("run")] == [f"{t:05d}.jpg" for t in range(4)]
    assert [path.stem for path in data.labels("run")] == [path.stem for path in data.frames("run")]


@pytest.mark.parametrize("part", ["ImageSets/2017/val.txt", "JPEGImages/480p", "Annotations/480p"])
def test_davis_without_a_part(part: str, tmp_path: Path) -> None:
    path = make_davis(tmp_path, {"walk": 3}) / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError, match=f"{tmp_path} is no DAVIS 2017: looked for .*found no {part}"):
        Davis2017(tmp_path)


def test_davis_that_is_not_whole(tmp_path: Path) -> None:
    make_davis(tmp_path, {"walk": 3, "run": 4, "short": 2, "gone": 3})
    (tmp_path / "Annotations/480p/run/00002.png").unlink()
    shutil.rmtree(tmp_path / "JPEGImages/480p/gone")
    with pytest.raises(DatasetError) as caught:
        Davis2017(tmp_path)
    message = str(caught.value)
    assert "3 of 4 videos are not whole" in message
    assert "JPEGImages/480p/run/*.jpg" in message and "4 frames and 3 annotations" in message and "00002" in message
    assert "expected 3 frames or more, found 2" in message and "no frames: looked for JPEGImages/480p/gone" in message


def test_an_empty_list(tmp_path: Path) -> None:
    (make_davis(tmp_path, {"walk": 3}) / "ImageSets/2017/val.txt").write_text("\n\n")
    with pytest.raises(DatasetError, match="val.txt is empty"):
        Davis2017(tmp_path)


def test_vip(tmp_path: Path) -> None:
    assert Vip(make_vip(tmp_path / "VIP_Fine", {"videos1": 3})).videos == ["videos1"]
    with pytest.raises(DatasetError, match="VIP_Fine has them: give that to --data"):
        Vip(tmp_path)
    next((tmp_path / "VIP_Fine/Images/videos1").iterdir()).unlink()
    with pytest.raises(DatasetError, match="2 frames and 3 annotations do not belong together"):
        Vip(tmp_path / "VIP_Fine")


@pytest.fixture
def jhmdb(tmp_path: Path) -> Path:
    pytest.importorskip("scipy", reason="is of the extra `eval`")
    return make_jhmdb(tmp_path / "JHMDB", {"jump/first": 3, "brush_hair/it_2_nm_np1": 4})


def test_jhmdb_takes_what_is_for_testing(jhmdb: Path) -> None:
    data = Jhmdb(jhmdb)
    assert data.videos == ["brush_hair/it_2_nm_np1", "jump/first"]
    assert data.joints("jump/first").shape == (3, 15, 2) and len(data.frames("jump/first")) == 3


def test_jhmdb_without_a_split(jhmdb: Path) -> None:
    with pytest.raises(DatasetError, match=r"looked for splits/CLASS_test_split2.txt, and found none"):
        Jhmdb(jhmdb, 2)


def test_jhmdb_that_is_not_whole(jhmdb: Path) -> None:
    shutil.rmtree(jhmdb / "Rename_Images/jump/first")
    with pytest.raises(DatasetError, match=r"no frames: looked for Rename_Images/jump/first/\*.png"):
        Jhmdb(jhmdb)


def test_jhmdb_without_joints(jhmdb: Path) -> None:
    data = Jhmdb(jhmdb)
    data.joints_file("jump/first").write_bytes(b"this is not MATLAB's")
    with pytest.raises(DatasetError, match="cannot read the joints .*joint_positions.mat"):
        data.joints("jump/first")
    data.joints_file("jump/first").unlink()
    with pytest.raises(DatasetError, match="no joints: looked for joint_positions/jump/first/joint_positions.mat"):
        Jhmdb(jhmdb)


@pytest.mark.parametrize("values", [np.zeros((2, 14, 3)), np.full((2, 15, 3), np.nan), np.array(["x"])])
def test_jhmdb_with_other_joints(values: np.ndarray, jhmdb: Path) -> None:
    savemat = import_module("scipy.io").savemat

    data = Jhmdb(jhmdb)
    savemat(data.joints_file("jump/first"), {"pos_img": values})
    with pytest.raises(DatasetError, match="pos_img"):
        data.joints("jump/first")


def test_jhmdb_with_a_list_of_another_kind(jhmdb: Path) -> None:
    (jhmdb / "splits/jump_test_split1.txt").write_text("first.avi yes\n")
    with pytest.raises(DatasetError, match="expected lines such as 'NAME.avi 2', got 'first.avi yes'"):
        Jhmdb(jhmdb)


def test_labels_are_the_numbers_of_a_palette(tmp_path: Path) -> None:
    labels = moving_boxes(1)[1][0]
    write_palette(tmp_path / "palette.png", labels)
    assert (read_labels(tmp_path / "palette.png") == labels).all()


@pytest.mark.parametrize("name", ["colours.png", "broken.png", "missing.png"])
def test_what_is_no_label_image(name: str, tmp_path: Path) -> None:
    write_rgb(tmp_path / "colours.png", moving_boxes(1)[0][0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(DatasetError, match=name):
        read_labels(tmp_path / name)


def test_lanczos_leaves_the_right_size_alone_and_stretches_others() -> None:
    frame = moving_boxes(1)[0][0]
    assert lanczos(frame, (HEIGHT, WIDTH)) is frame
    assert lanczos(frame, (96, 176)).shape == (96, 176, 3)
    flat = np.full((10, 20, 3), 77, np.uint8)
    assert (lanczos(flat, (32, 48)) == 77).all()

"""The image baseline differs from RVM in its memory alone."""

from __future__ import annotations

from rvm_training.config_files import load_config
from rvm_training.pretrain_config import PretrainConfig, from_dict, to_dict


def test_image_baseline_differs_in_memory_alone() -> None:
    image, stream = load_config("rvm_s16_image"), load_config("rvm_s16")
    found, base = to_dict(image), to_dict(stream)
    assert [key for key in base if base[key] != found[key]] == ["model", "sampling"]
    assert base["model"] | {"memory": False} == found["model"] and found["model"]["decoder"]
    assert base["sampling"] | {"source_frames": 1} == found["sampling"]
    assert from_dict(PretrainConfig, found) == image

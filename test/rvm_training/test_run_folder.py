"""Which folders a run may go on in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain_stand_ins import tiny_config
from rvm_training.pretrain_config import to_dict
from rvm_training.run_folder import WITHOUT_EFFECT, RunFolder, RunFolderError, differences


def make_run(path: Path, *steps: str) -> RunFolder:
    folder = RunFolder(path)
    folder.write_config(tiny_config())
    for step in steps:
        (folder.checkpoints / step).mkdir(parents=True)
    return folder


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "10", "9", "11.orbax-checkpoint-tmp")
    assert folder.steps() == [9, 10]
    assert folder.check(tiny_config(), resume=True) == 10


def test_a_new_folder_needs_no_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    assert folder.steps() == [] and folder.check(tiny_config(), resume=False) is None
    assert folder.check(tiny_config(), resume=True) is None


def test_every_difference_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "2")
    config = tiny_config()
    other = replace(config, seed=1, optimizer=replace(config.optimizer, clip_norm=1.0))
    with pytest.raises(RunFolderError) as caught:
        folder.check(other, resume=True)
    assert str(caught.value).splitlines()[1:] == ["  optimizer.clip_norm: null -> 1.0", "  seed: 0 -> 1"]


def test_a_run_begun_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "2")
    values = to_dict(tiny_config())
    del values["objective"], values["sampling"]["flip"]
    folder.config.write_text(json.dumps(values))
    assert folder.check(tiny_config(), resume=True) == 2


def test_what_does_not_change_the_weights_may_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "2")
    config = tiny_config()
    other = replace(config, log_every=7, checkpoint_every=9, data=replace(config.data, workers=3))
    assert folder.check(other, resume=True) == 2


def test_a_run_of_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "2")
    values = json.loads(folder.config.read_text())
    assert values.pop("aggregator") == "core"
    folder.config.write_text(json.dumps(values))
    assert folder.check(tiny_config(), resume=True) == 2
    with pytest.raises(RunFolderError, match='aggregator: "core" -> "self_attention"'):
        folder.check(replace(tiny_config(), aggregator="self_attention"), resume=True)


def test_keys_without_effect_exist() -> None:
    values = to_dict(tiny_config())
    for key in WITHOUT_EFFECT:
        place = values
        for part in key.split("."):
            assert part in place, key
            place = place[part]


def test_a_key_of_one_side_only_is_a_difference() -> None:
    assert list(differences({"a": 1}, {"b": {"c": 2}})) == ["a: 1 -> not there", 'b: not there -> {"c": 2}']


@pytest.mark.parametrize(("text", "message"), [(None, "no config.json"), ("{", "damaged"), ("[]", "must be a mapping")])
def test_a_broken_configuration_is_explained(tmp_path: Path, text: str | None, message: str) -> None:
    folder = make_run(tmp_path, "2")
    folder.config.unlink()
    if text is not None:
        folder.config.write_text(text)
    with pytest.raises((RunFolderError, ValueError), match=message):
        folder.read_config()

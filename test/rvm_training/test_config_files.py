"""Experiments by name, YAML files and changes on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rvm_training import configs
from rvm_training.config_files import changed, experiments, load_config
from rvm_training.pretrain_config import ClipSamplingConfig, ConfigError, to_dict

CONFIG_FILES = sorted(path for path in Path(configs.__path__[0]).glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.name)
def test_every_file_opens_with_command_hardware_cost_and_result(path: Path) -> None:
    opening = path.read_text().split('"""')[1]
    for heading in ("command", "hardware", "cost", "result"):
        assert re.search(rf"^{heading}: +\S", opening, re.MULTILINE), heading
    named = re.findall(r"--config (\w+)", opening)
    assert named and set(named) <= experiments().keys()


def test_released_sizes_have_the_papers_settings() -> None:
    for name, steps in (("rvm_s16", 10**6), ("rvm_b16", 10**6), ("rvm_l16", 10**6), ("rvm_h16", 2 * 10**6)):
        config = load_config(name)
        assert config.model.name == name and config.model.decoder
        assert (config.batch_size, config.optimizer.steps) == (2048, steps)
        assert (config.sampling.image_size, config.sampling.visible) == (256, 12)
        assert config.compute_dtype == "bfloat16" and config.remat and config.scan_layers


def test_masked_autoencoders_hide_what_the_papers_hide() -> None:
    for name, mask, visible in (("trecvit_b16", "tubes", 19), ("4ds_b16", "tubelets", 78), ("4ds_e16", "tubelets", 78)):
        config = load_config(name)
        sampling = config.sampling
        assert config.model.name == name and isinstance(sampling, ClipSamplingConfig)
        assert (sampling.mask, sampling.visible, sampling.frames, sampling.image_size) == (mask, visible, 16, 224)
    assert load_config("4ds_b16", ["model.decoder_blocks=2", "model.encoder.depth=6"]).model.name == "4ds_custom"


def test_ablations_differ_from_their_base_in_one_thing() -> None:
    for prefix in ("ablation", "nano"):
        found = {name: to_dict(config) for name, config in experiments().items() if name.startswith(f"{prefix}_")}
        base = found.pop(f"{prefix}_4_frames")
        assert {f"{prefix}_1_frame", f"{prefix}_2_frames", f"{prefix}_self_attention"} < found.keys()
        for name, config in found.items():
            different = [key for key in base if base[key] != config[key]]
            assert len(different) == 1, name
            if different == ["sampling"]:
                assert sum(base["sampling"][key] != config["sampling"][key] for key in base["sampling"]) == 1, name
    assert load_config("ablation_4_frames").optimizer.steps * 2048 == pytest.approx(500e6, rel=1e-4)


def test_changes_are_parsed_as_yaml() -> None:
    changes = [
        "optimizer.learning_rate=2e-4",
        "remat=false",
        "sampling.crop_scale=[0.5, 1]",
        "optimizer.clip_norm=null",
    ]
    config = load_config("rvm_nano", [*changes, "data.sources=[{name: a, path: b}]", "compute_dtype=float32"])
    assert config.optimizer.learning_rate == 2e-4 and config.optimizer.clip_norm is None
    assert config.sampling.crop_scale == (0.5, 1.0) and not config.remat and config.compute_dtype == "float32"
    assert [source.path for source in config.data.sources] == ["b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rte=1", "unknown keys learning_rte"),
        ("nonsense", "expected key=value"),
        ("=1", "expected key=value"),
        ("batch_size=many", "batch_size must be of type int"),
        ("batch_size.a=1", "batch_size has no parts"),
        ("sampling.mask_ratio=1.5", "mask_ratio must be between 0 and 1"),
        ("data.sources=[", "the value of data.sources cannot be read"),
    ],
)
def test_wrong_changes_are_explained(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(load_config("rvm_nano"), [change])


def test_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown experiment 'rvm_nan': did you mean rvm_nano\? There are ablation"):
        load_config("rvm_nan")


def test_a_file_changes_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: rvm_nano\noptimizer: {learning_rate: 3e-4}\nbatch_size: 8\n")
    config, base = load_config(str(path)), load_config("rvm_nano")
    assert (config.batch_size, config.optimizer.learning_rate) == (8, 3e-4)
    assert config.optimizer.steps == base.optimizer.steps and config.model == base.model


def test_a_whole_configuration_as_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(load_config("rvm_l16"))))
    assert load_config(str(path)) == load_config("rvm_l16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must hold a mapping, got list"),
        ("a: [", "cannot be read"),
        ("base: rvm_nano\nbatchsize: 8\n", "unknown keys batchsize"),
        ("batch_size: 8\n", "lacks model"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))

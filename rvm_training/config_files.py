"""Finds a configuration of pretraining: an experiment of rvm_training/configs by its name, or a YAML file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from rvm_training.pretrain_config import ConfigError, PretrainConfig, from_dict, to_dict

BASE = "base"
"""Key of a YAML file that names the experiment whose values it changes."""


def experiments() -> dict[str, PretrainConfig]:
    """All named experiments. Each file of rvm_training/configs has them in its dictionary CONFIGS."""
    package = import_module("rvm_training.configs")
    found: dict[str, PretrainConfig] = {}
    for module in iter_modules(package.__path__):
        found |= import_module(f"{package.__name__}.{module.name}").CONFIGS
    return found


def load_config(name_or_file: str, changes: Sequence[str] = ()) -> PretrainConfig:
    """The configuration of a named experiment, or of a file whose name ends with .yaml, .yml or .json.

    Args:
        name_or_file: what a file leaves out keeps the default, or the value of the experiment under its key "base".
        changes: "key=value", with dotted keys such as "optimizer.learning_rate=2e-4"; values as in YAML.

    Raises:
        ConfigError: it says what is wrong where, and names what is near to an unknown name.
        OSError: the file cannot be read.
    """
    if Path(name_or_file).suffix in (".yaml", ".yml", ".json"):
        config = from_dict(PretrainConfig, _read(Path(name_or_file).expanduser()))
    else:
        config = _named(name_or_file)
    return changed(config, changes)


def changed(config: PretrainConfig, changes: Sequence[str]) -> PretrainConfig:
    """A configuration with changes, as in `load_config`. Raises `ConfigError`."""
    values = to_dict(config)
    for change in changes:
        _set(values, change)
    return from_dict(PretrainConfig, values)


def _named(name: str) -> PretrainConfig:
    known = experiments()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown experiment {name!r}: {hint}There are {', '.join(known)}, or give a .yaml file")
    return known[name]


def _read(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping, got {type(values).__name__}")
    values = _numbers(values)
    if base := values.pop(BASE, None):
        values = _merged(to_dict(_named(str(base))), values)
    return values


def _set(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected key=value, such as optimizer.learning_rate=2e-4, got {change!r}")
    yaml = _yaml()
    try:
        value = _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key} cannot be read: {text!r}") from error
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} has no parts")
        place = inner
    place[last] = value


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _numbers(value: Any) -> Any:
    """YAML takes 1e-4 for a text, as its numbers need a point."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("PyYAML is missing; pip install 'rvm_perception[train]'") from error
    return yaml

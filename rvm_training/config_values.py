"""Checked configurations: frozen dataclasses, and their way to JSON and YAML and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A configuration that makes no sense, or a file that holds something else."""


def check(config: object, name: str, valid: bool, expected: str) -> None:
    """Raises `ConfigError`, naming the field, unless it is valid."""
    if not valid:
        value = getattr(config, name)
        raise ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {value!r}")


def to_dict(config: object) -> dict[str, Any]:
    """A configuration as what JSON and YAML can hold; `from_dict` reads it."""
    return {name: _plain(value) for name, value in vars(config).items()}


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(cls: type[_T], values: object, *, at: str = "") -> _T:
    """The dataclass `cls` from what `to_dict` returned or a YAML file held; what is left out keeps its default.

    A class may tell by a class method `chosen_types(values)` which types some of its fields have.

    `at` says in messages where in the file this is. Raises `ConfigError` for unknown or missing keys, wrong types and
    values that the class refuses.
    """
    where = at or cls.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := [str(key) for key in values if key not in fields]:
        raise ConfigError(f"{where} has unknown keys {', '.join(unknown)}; known ones: {', '.join(fields)}")
    needs = [name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needs if name not in values]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(cls) | _chosen_types(cls, values)
    parsed = {name: _parse(hints[name], value, f"{at}.{name}".lstrip(".")) for name, value in values.items()}
    try:
        return cls(**parsed)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _chosen_types(cls: type, values: Mapping[Any, object]) -> dict[str, type]:
    """Types of the fields whose type depends on the value of another one, as a class with `chosen_types` tells them."""
    choose = getattr(cls, "chosen_types", None)
    return choose(values) if choose else {}


def _parse(hint: Any, value: object, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _parse(next(argument for argument in arguments if argument is not types.NoneType), value, at)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{at} must be one of {', '.join(arguments)}, got {value!r}")
    if origin is tuple:
        return _parse_tuple(arguments, value, at)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, at=at)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{at} must be of type {hint.__name__}, got {value!r}")
    return value


def _parse_tuple(arguments: tuple[Any, ...], value: object, at: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{at} must be a list, got {value!r}")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise ConfigError(f"{at} must be a list of {len(arguments)}, got {value!r}")
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(_parse(hint, item, f"{at}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))

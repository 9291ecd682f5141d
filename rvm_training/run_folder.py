"""The folder of a pretraining run: what lies where, and whether a run may go on in it. Needs neither jax nor torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file
from rvm_core.file_lock import try_lock
from rvm_training.pretrain_config import PretrainConfig, from_dict, to_dict

WITHOUT_EFFECT = {
    "checkpoint_every",
    "data.workers",
    "eval_batches",
    "eval_every",
    "keep_checkpoints",
    "log_every",
    "picture_every",
}
"""Keys of a configuration that may change when a run goes on: the weights do not depend on them."""


class RunFolderError(RuntimeError):
    """The folder does not fit what was asked for."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, of the step's number; those that are being written are called otherwise."""
        return self.path / "checkpoints"

    @property
    def scalars(self) -> Path:
        return self.path / "scalars.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def curve(self) -> Path:
        return self.path / "loss.png"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdecimal())

    def read_config(self) -> PretrainConfig:
        """Raises `RunFolderError` if there is none."""
        return from_dict(PretrainConfig, self._read())

    def write_config(self, config: PretrainConfig) -> None:
        with atomic_file(self.config) as temporary:
            temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")

    def check(self, config: PretrainConfig, *, resume: bool) -> int | None:
        """The step to go on from; None to start with the first one.

        Raises `RunFolderError` if there is a run and `resume` is False, or the run has another configuration; then the
        message names the differences.
        """
        steps = self.steps()
        if not steps:
            return None
        if not resume:
            raise RunFolderError(
                f"{self.path} has a run up to step {steps[-1]}: go on with --resume, or name another folder with --out"
            )
        if different := list(differences(to_dict(self.read_config()), to_dict(config))):
            raise RunFolderError(
                f"{self.path} has a run of another configuration; it goes on only with its own (leave out --config), "
                "or name another folder with --out. There and here:\n  " + "\n  ".join(different)
            )
        return steps[-1]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made if need be, until the end of the body or of this process.

        Raises `RunFolderError` if there is another one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "ab") as file:
            if not try_lock(file):
                raise RunFolderError(
                    f"another process trains in {self.path}: wait for it, stop it, or name another folder with --out"
                )
            yield

    def _read(self) -> Any:
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} has no config.json: it is not the folder of a run") from error
        except ValueError as error:
            raise RunFolderError(f"{self.config} is damaged: {error}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """What differs between two configurations as `to_dict` gives them, but for what is in `WITHOUT_EFFECT`."""
    for key in (*old, *(key for key in new if key not in old)):
        name = f"{at}{key}"
        a, b = old.get(key), new.get(key)
        if a == b or name in WITHOUT_EFFECT:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{name}.")
        else:
            yield f"{name}: {_shown(old, key)} -> {_shown(new, key)}"


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"

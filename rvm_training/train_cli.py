"""The `rvm-train` command: data, pretraining and readouts of the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvm_core.cli import CommandLine, own_commands

GROUP = "rvm_train.commands"
"""Entry points of its subcommands; see `rvm_core.cli.GROUP`."""

RVM_TRAIN = CommandLine(
    program="rvm-train",
    description="Training of the recurrent video encoder: data, pretraining, readouts.",
    group=GROUP,
    own=own_commands(GROUP, "rvm_training", ("ablate", "export", "plan", "pretrain", "readout", "shards")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rvm-train`; see `CommandLine.main`."""
    return RVM_TRAIN.main(argv)


if __name__ == "__main__":
    sys.exit(main())

"""The `rvm` command: finds its subcommands among the installed packages and loads only the one that is called."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

GROUP = "rvm.commands"
"""Entry points of this group are functions `register(subparsers)` that add one parser, of the entry point's name, with
`set_defaults(run=...)`, a function from the parsed arguments to the exit code. The help shown in the list of commands
is the first line of the module's docstring, so that the list costs no import."""

_OWN = tuple(
    EntryPoint(name, f"rvm_core.{name.replace('-', '_')}_cli:register", GROUP)
    for name in ("bench", "bench-tracking", "engine", "weights")
)
"""Known without installation, so that a source checkout has them too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rvm`. Returns 0, 1 after an error that one line explains, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SystemExit as stop:
        # argparse has printed help or usage.
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("rvm: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if "--traceback" in arguments:
            raise
        print(f"rvm: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    commands = {command.name: command for command in (*_OWN, *entry_points(group=GROUP))}
    called = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="rvm", description="Recurrent video encoder: weights, demo and evaluation.")
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error came from")
    if len(commands) == len(_OWN):
        parser.epilog = "The commands of other packages appear when rvm_perception is installed."
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in sorted(commands.items()):
        if name == called:
            command.load()(subparsers)
        else:
            subparsers.add_parser(name, help=_summary(command))
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def _summary(command: EntryPoint) -> str:
    """First line of the docstring of a command's module, read without running it."""
    try:
        spec = find_spec(command.module)
        source = spec.loader.get_source(command.module) if spec and spec.loader else None  # type: ignore[attr-defined]
        docstring = ast.get_docstring(ast.parse(source or ""))
    except (ImportError, AttributeError, SyntaxError, ValueError):
        return ""
    return docstring.splitlines()[0].replace("%", "%%") if docstring else ""


if __name__ == "__main__":
    sys.exit(main())

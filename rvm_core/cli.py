"""The `rvm` command and what other commands share with it: they find their subcommands among the installed packages and
load only the one that is called."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

GROUP = "rvm.commands"
"""Entry points of this group are functions `register(subparsers)` that add one parser, of the entry point's name, with
`set_defaults(run=...)`, a function from the parsed arguments to the exit code. The help shown in the list of commands
is the first line of the module's docstring, so that the list costs no import."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rvm`; see `CommandLine.main`."""
    return RVM_COMMAND.main(argv)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A program with subcommands."""

    program: str
    """Its name, as in messages."""
    description: str
    group: str
    """Of the subcommands' entry points; what these are, `GROUP` says."""
    own: tuple[EntryPoint, ...]
    """Known without installation, so that a source checkout has them too."""
    epilog: str | None = None
    """Shown under the help where there are only its own commands."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs it. Returns the subcommand's code, 1 after an error that one line explains, 2 for wrong usage, 130
        after Ctrl-C."""
        arguments = list(sys.argv[1:] if argv is None else argv)
        try:
            return self._run(arguments)
        except SystemExit as stop:
            # argparse has printed help or usage.
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            print(f"{self.program}: interrupted", file=sys.stderr)
            return 130
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            if "--traceback" in arguments:
                raise
            print(f"{self.program}: error: {str(error) or type(error).__name__}", file=sys.stderr)
            return 1

    def _run(self, arguments: list[str]) -> int:
        commands = {command.name: command for command in (*self.own, *entry_points(group=self.group))}
        called = next((word for word in arguments if not word.startswith("-")), None)
        parser = argparse.ArgumentParser(prog=self.program, description=self.description)
        parser.add_argument("--traceback", action="store_true", help="show where in the program an error came from")
        if len(commands) == len(self.own):
            parser.epilog = self.epilog
        subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for name, command in sorted(commands.items()):
            if name == called:
                command.load()(subparsers)
            else:
                subparsers.add_parser(name, help=_summary(command))
        parsed = parser.parse_args(arguments)
        return int(parsed.run(parsed))


def own_commands(group: str, package: str, names: Sequence[str]) -> tuple[EntryPoint, ...]:
    """Commands of which the one called some-name is `package`.some_name_cli:register."""
    return tuple(EntryPoint(name, f"{package}.{name.replace('-', '_')}_cli:register", group) for name in names)


def _summary(command: EntryPoint) -> str:
    """First line of the docstring of a command's module, read without running it."""
    try:
        spec = find_spec(command.module)
        source = spec.loader.get_source(command.module) if spec and spec.loader else None  # type: ignore[attr-defined]
        docstring = ast.get_docstring(ast.parse(source or ""))
    except (ImportError, AttributeError, SyntaxError, ValueError):
        return ""
    return docstring.splitlines()[0].replace("%", "%%") if docstring else ""


RVM_COMMAND = CommandLine(
    program="rvm",
    description="Recurrent video encoder: weights, demo and evaluation.",
    group=GROUP,
    own=own_commands(GROUP, "rvm_core", ("bench", "bench-tracking", "engine", "weights")),
    epilog="The commands of other packages appear when rvm_perception is installed.",
)


if __name__ == "__main__":
    sys.exit(main())

"""The `rvm` command: dispatch, exit codes and messages."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from _pytest.capture import CaptureResult

import rvm_core.cli
from rvm_core.cli import GROUP, main

COMMAND_SOURCE = '''"""Breaks 100% of things.

More about it.
"""
from pathlib import Path
Path(__file__).with_suffix(".loaded").touch()

class Special(RuntimeError):
    pass

def fail(args):
    if args.how == "seven":
        return 7
    raise {"value": ValueError("bad value"), "os": OSError(2, "No such file", "x"), "special": Special("gone"),
           "import": ModuleNotFoundError("No module named 'nothing'"), "bug": TypeError("bug"), "empty": ValueError(),
           "interrupt": KeyboardInterrupt()}[args.how]

def register(subparsers):
    parser = subparsers.add_parser("break")
    parser.add_argument("how")
    parser.set_defaults(run=fail)
'''


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package's command; returns the file that shows that it was loaded."""
    (tmp_path / "breaking_command.py").write_text(COMMAND_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "breaking_command", raising=False)
    entries = [
        EntryPoint("break", "breaking_command:register", GROUP),
        EntryPoint("gone", "module_that_is_not_there:register", GROUP),
    ]
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: entries)
    return tmp_path / "breaking_command.loaded"


Output = Callable[[], CaptureResult[str]]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return capsys.readouterr


def test_help_lists_every_command_without_loading_it(command: Path, output: Output) -> None:
    assert main(["--help"]) == 0
    out = output().out
    assert "break" in out
    assert "Breaks 100% of things." in out
    assert "gone" in out
    assert "Fetch, show and convert model weights." in out
    assert not command.exists()


def test_only_the_called_command_is_loaded(command: Path, output: Output) -> None:
    assert main(["weights", "--help"]) == 0
    assert "fetch" in output().out
    assert not command.exists()
    assert main(["break", "--help"]) == 0
    assert "how" in output().out
    assert command.exists()


def test_help_does_not_import_torch(output: Output) -> None:
    program = (
        "import sys; from rvm_core.cli import main; "
        "codes = [main(['--help']), main(['weights', '--help']), main(['weights', 'fetch', '--help'])]; "
        "sys.exit(any(codes) or [name for name in ('torch', 'rclpy', 'cv2') if name in sys.modules] or 0)"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_source_checkout_has_its_own_command(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    monkeypatch.setattr(rvm_core.cli, "entry_points", lambda group: [])
    assert main(["--help"]) == 0
    out = output().out
    assert "weights" in out
    assert "appear when rvm_perception is installed" in out
    assert main(["demo"]) == 2
    assert "invalid choice: 'demo'" in output().err


def test_exit_code_is_the_commands(command: Path) -> None:
    assert main(["break", "seven"]) == 7


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["weights"], ["weights", "info"], ["--nonsense"]])
def test_wrong_usage(arguments: list[str], output: Output) -> None:
    assert main(arguments) == 2
    assert "usage: rvm" in output().err


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("value", "bad value"),
        ("os", "[Errno 2] No such file: 'x'"),
        ("special", "gone"),
        ("import", "No module named 'nothing'"),
        ("empty", "ValueError"),
    ],
)
def test_expected_error_is_one_line(command: Path, output: Output, how: str, message: str) -> None:
    assert main(["break", how]) == 1
    printed = output()
    assert printed.err == f"rvm: error: {message}\n"
    assert printed.out == ""


def test_traceback_is_shown_when_asked_for(command: Path) -> None:
    with pytest.raises(ValueError, match="bad value"):
        main(["--traceback", "break", "value"])


def test_bug_is_not_hidden(command: Path) -> None:
    with pytest.raises(TypeError, match="bug"):
        main(["break", "bug"])


def test_interrupt(command: Path, output: Output) -> None:
    assert main(["break", "interrupt"]) == 130
    assert output().err == "rvm: interrupted\n"


def test_command_whose_package_is_missing(command: Path, output: Output) -> None:
    assert main(["gone"]) == 1
    assert output().err == "rvm: error: No module named 'module_that_is_not_there'\n"

"""The public names of rvm_core."""

import subprocess
import sys
from pathlib import Path

import pytest

import rvm_core


@pytest.mark.parametrize("name", rvm_core.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(rvm_core, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'rvm_core' has no attribute 'load_model'"):
        _ = rvm_core.load_model


def test_import_is_light() -> None:
    program = "import sys, rvm_core; sys.exit([name for name in ('torch', 'numpy', 'cv2') if name in sys.modules] or 0)"
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

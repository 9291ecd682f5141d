"""Which graphics library is chosen, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("mujoco", reason="the extra `scenes` is not installed")

from rvm_training.data import mujoco_scenes_render  # noqa: E402
from rvm_training.data.mujoco_scenes_render import BACKENDS, RenderError, find_backend  # noqa: E402


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    find_backend.cache_clear()
    yield
    find_backend.cache_clear()


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(mujoco_scenes_render, "_probe", lambda name: "no driver" if name == "egl" else None)
    assert find_backend() == "osmesa"


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_scenes_render, "_probe", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert find_backend() == "osmesa"
    find_backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(RenderError, match="egl, osmesa, or not set, got glfw"):
        find_backend()


def test_without_a_library_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(mujoco_scenes_render, "_probe", lambda name: f"no {name} here")
    with pytest.raises(RenderError, match="no egl here") as raised:
        find_backend()
    for name, packages in BACKENDS.items():
        assert f"no {name} here" in str(raised.value) and f"sudo apt install {packages}" in str(raised.value)


def test_a_library_that_is_missing_is_found_out() -> None:
    """In a real process: there is no module of mujoco of that name."""
    assert "no_such_library" in str(mujoco_scenes_render._probe("no_such_library"))

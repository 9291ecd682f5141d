"""Pictures of MuJoCo's scenes, drawn off screen through EGL or OSMesa, with or without a GPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rvm_training.data.mujoco_scenes_world import mujoco

BACKENDS = {
    "egl": "libegl1 libopengl0 libgl1-mesa-dri",
    "osmesa": "libosmesa6",
}
"""Ways to draw without a screen, the better first, and the Debian packages each needs."""
_PROBE_SECONDS = 60.0

UInt8Array = npt.NDArray[np.uint8]


class RenderError(RuntimeError):
    """This machine cannot draw off screen."""


@functools.lru_cache(maxsize=1)
def find_backend() -> str:
    """The first of `BACKENDS` that works here, or what the environment variable MUJOCO_GL says.

    Each is tried in a process of its own, about a second, as a failed attempt leaves libraries behind that hinder the
    next one. Raises `RenderError`.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and wanted not in BACKENDS:
        raise RenderError(f"expected MUJOCO_GL to be one of {', '.join(BACKENDS)}, or not set, got {wanted}")
    failures = {}
    for name in [wanted] if wanted else BACKENDS:
        failure = _probe(name)
        if failure is None:
            return name
        failures[name] = failure
    tried = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
    packages = ", or: ".join(f"sudo apt install {BACKENDS[name]}" for name in failures)
    raise RenderError(f"drawing off screen does not work here ({tried}). On Debian or Ubuntu: {packages}")


def _probe(name: str) -> str | None:
    """Why a backend does not work, or None if it does."""
    program = (
        f"from mujoco.{name} import GLContext; import mujoco; c = GLContext(32, 32); c.make_current(); "
        "m = mujoco.MjModel.from_xml_string('<mujoco/>'); r = mujoco.MjrContext(m, 100); r.free(); c.free()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"did not start within {_PROBE_SECONDS:g} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


class Renderer:
    """Draws a model's camera. To be closed before the program ends; `open_renderer` does so."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        """height and width: pixels, at most the model's off-screen size. Raises `RenderError`."""
        # Not by mujoco.Renderer, which is bound to the backend that was chosen when mujoco was first imported.
        self._gl = importlib.import_module(f"mujoco.{find_backend()}").GLContext(width, height)
        self._gl.make_current()
        self._model, self._rect = model, mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=2 * model.ngeom + 100)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        self._option = mujoco.MjvOption()

    def draw(self, data: mujoco.MjData) -> UInt8Array:
        """The image (H, W, 3), RGB, of the state in `data`, whose positions of bodies and camera are up to date."""
        self._update(data)
        return self._read()

    def draw_labels(self, data: mujoco.MjData) -> UInt8Array:
        """The number of the body seen in each pixel (H, W); 0 is the room."""
        self._update(data)
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        colours = self._read().astype(np.int64)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        bodies = np.zeros(self._scene.ngeom + 1, np.uint8)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                bodies[geom.segid + 1] = self._model.geom_bodyid[geom.objid]
        return bodies[colours @ (1, 256, 65536)]

    def _update(self, data: mujoco.MjData) -> None:
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)

    def _read(self) -> UInt8Array:
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        image = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._rect, self._context)
        # OpenGL's rows begin at the bottom.
        return np.ascontiguousarray(image[::-1])

    def close(self) -> None:
        """Frees what it has in the graphics library."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


@contextlib.contextmanager
def open_renderer(model: mujoco.MjModel, height: int, width: int) -> Iterator[Renderer]:
    """A renderer that is closed at the end. Raises `RenderError`."""
    renderer = Renderer(model, height, width)
    try:
        yield renderer
    finally:
        renderer.close()

"""Where everything is in each frame of a MuJoCo scene, and what rays from the camera meet.

T frames, H W image, O objects. World: metres, z up. Camera: metres, x right, y down, z forward. Pixel coordinates are
(x, y): right, down, pixel centres at .5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rvm_training.data.mujoco_scenes_camera import camera_places, pixel_rays
from rvm_training.data.mujoco_scenes_world import mujoco

VISIBLE_TOLERANCE = 1e-3
"""A point is visible if what the ray to it meets is no nearer than it by more than this, metres."""

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
Float64Array = npt.NDArray[np.float64]


def body_poses(model: mujoco.MjModel, motion: Float64Array) -> Float64Array:
    """[R | t] (T, 1 + O, 3, 4), from the room, which is the world, and from each body to the world.

    motion: (T, nq), MuJoCo's positions in each frame.
    """
    data = mujoco.MjData(model)
    poses = np.empty((len(motion), model.nbody, 3, 4))
    for t, positions in enumerate(motion):
        data.qpos[:] = positions
        mujoco.mj_kinematics(model, data)
        poses[t, :, :, :3] = data.xmat.reshape(-1, 3, 3)
        poses[t, :, :, 3] = data.xpos
    return poses


class SceneGeometry:
    """The shapes of a scene as the camera sees them, by rays, so without a graphics library."""

    def __init__(
        self, model: mujoco.MjModel, motion: Float64Array, world_to_camera: Float64Array, intrinsics: Float64Array
    ) -> None:
        """model: with one camera; motion: (T, nq); world_to_camera: (T, 3, 4); intrinsics: (3, 3)."""
        self.layer_to_world = body_poses(model, motion)
        """(T, 1 + O, 3, 4): of the room and of the objects."""
        self.world_to_camera, self.intrinsics = world_to_camera, intrinsics
        self._model, self._motion, self._data = model, motion, mujoco.MjData(model)
        self._places = camera_places(world_to_camera)

    def set_frame(self, t: int) -> mujoco.MjData:
        """MuJoCo's state of a frame, with its camera; valid until the next call of anything here."""
        rotation = self.world_to_camera[t, :, :3]
        quaternion = np.empty(4)
        # MuJoCo's cameras have y up and look along -z.
        mujoco.mju_mat2Quat(quaternion, (rotation * [[1], [-1], [-1]]).T.ravel())
        self._model.cam_pos[0], self._model.cam_quat[0] = self._places[t], quaternion
        # The principal point is in the middle of the image.
        self._model.cam_fovy[0] = np.rad2deg(2 * np.arctan(self.intrinsics[1, 2] / self.intrinsics[1, 1]))
        self._data.qpos[:] = self._motion[t]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return self._data

    def cast(self, t: int, pixels: Float64Array) -> tuple[IntArray, Float64Array, Float64Array]:
        """What rays through pixels (n, 2) meet: layers (n,), depths (n,) and places in the world (n, 3)."""
        rays = pixel_rays(pixels, self.world_to_camera[t], self.intrinsics)
        lengths = np.linalg.norm(rays, axis=1)
        layers, distances = self._meet(t, rays / lengths[:, None])
        depths = distances / lengths
        return layers, depths, self._places[t] + rays * depths[:, None]

    def sees(self, t: int, places: Float64Array, layers: IntArray) -> BoolArray:
        """(n,): whether the ways from the camera to places (n, 3) on layers (n,) are free."""
        ways = places - self._places[t]
        lengths = np.linalg.norm(ways, axis=1)
        met, distances = self._meet(t, ways / lengths[:, None])
        free: BoolArray = np.logical_and(met == layers, np.abs(distances - lengths) < VISIBLE_TOLERANCE)
        return free

    def _meet(self, t: int, directions: Float64Array) -> tuple[IntArray, Float64Array]:
        """First layers (n,) in these directions (n, 3), of length 1, and their distances (n,)."""
        geoms, distances = np.empty(len(directions), np.int32), np.empty(len(directions))
        mujoco.mj_multiRay(
            m=self._model,
            d=self.set_frame(t),
            pnt=self._places[t],
            vec=np.ascontiguousarray(directions).ravel(),
            geomgroup=None,
            flg_static=True,
            bodyexclude=-1,
            geomid=geoms,
            dist=distances,
            normal=None,
            nray=len(directions),
            cutoff=mujoco.mjMAXVAL,
        )
        if (geoms < 0).any():
            raise ValueError("expected every ray to end in the room, got one that left it: the camera is outside")
        return self._model.geom_bodyid[geoms].astype(np.intp), distances

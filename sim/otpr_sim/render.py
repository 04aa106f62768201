# SPDX-License-Identifier: Apache-2.0
"""Pictures of a scene: OpenGL where the machine has it, our own software renderer where it has not; and film strips.

The backend is chosen once per process, at the first picture. A failed start of OpenGL can leave a process unable to
try another way (PyOpenGL binds its platform at import), so each candidate first draws in a child process.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from otpr_policy.errors import EnvironmentSetupError, unknown
from otpr_policy.files import atomic_path
from otpr_policy.spec import Array

OPENGL_BACKENDS = ("egl", "osmesa")
BACKENDS = (*OPENGL_BACKENDS, "software")
VISUAL_GROUPS = (1,)  # robosuite's group of what is meant to be seen; group 0 is for collisions
PROBE_TIMEOUT_S = 60.0
PROBE_SCENE = "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='0.2' group='1'/></worldbody></mujoco>"

Picture = NDArray[np.uint8]  # (height, width, 3) RGB


@dataclass(frozen=True)
class Camera:
    """A camera that looks at a point, with the vertical field of view that the model states.

    Args:
        lookat: the point [m], in the world.
        distance: from there [m].
        azimuth_deg: direction of view about the vertical; 0 looks along +x, 90 along +y.
        elevation_deg: direction of view against the horizontal; negative looks down.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth_deg: float
    elevation_deg: float

    def position(self) -> Array:
        """Where the camera is, (3,) [m]."""
        return np.array(self.lookat) - self.distance * self.rotation()[2]

    def rotation(self) -> Array:
        """Rows are the picture's right, the picture's down, and the direction of view, (3, 3)."""
        azimuth, elevation = np.radians([self.azimuth_deg, self.elevation_deg])
        forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
        return np.stack([right, np.cross(forward, right), forward])


TABLE_CAMERA = Camera(lookat=(-0.14, 0.0, 1.02), distance=1.2, azimuth_deg=145.0, elevation_deg=-15.0)


@cache
def backend() -> str:
    """Name of the backend of this process: ``egl``, ``osmesa`` or ``software``, the first that works.

    The environment variable OTPR_RENDERER names one to use instead.

    Raises:
        EnvironmentSetupError: OTPR_RENDERER names none of them, or one that does not work here.
    """
    wanted = os.environ.get("OTPR_RENDERER", "")
    if wanted and wanted not in BACKENDS:
        raise EnvironmentSetupError(unknown("OTPR_RENDERER", wanted, BACKENDS))
    if wanted in OPENGL_BACKENDS and not _works(wanted):
        raise EnvironmentSetupError(f"OTPR_RENDERER={wanted} does not work on this machine; unset it to let one be chosen")
    return wanted or next((name for name in OPENGL_BACKENDS if _works(name)), "software")


class SceneRenderer:
    """Draws one model; close() it after use."""

    def __init__(
        self,
        model: mujoco.MjModel,
        camera: Camera = TABLE_CAMERA,
        groups: tuple[int, ...] = VISUAL_GROUPS,
        site_groups: tuple[int, ...] = (),
    ) -> None:
        """Args:
        model: the scene.
        camera: where it is seen from.
        groups: geom groups to draw.
        site_groups: site groups to draw; the software renderer draws no sites.
        """
        self._drawer: _OpenGlDrawer | _SoftwareDrawer
        name = backend()
        if name == "software":
            self._drawer = _SoftwareDrawer(model, camera, groups)
        else:
            self._drawer = _OpenGlDrawer(model, camera, groups, site_groups, name)

    def render(self, data: mujoco.MjData, width: int, height: int) -> Picture:
        """Picture of the scene as it lies in ``data``, whose kinematics must be up to date."""
        return self._drawer.draw(data, width, height)

    def close(self) -> None:
        """Frees the graphics context."""
        self._drawer.close()


class _SoftwareDrawer:
    def __init__(self, model: mujoco.MjModel, camera: Camera, groups: tuple[int, ...]) -> None:
        from otpr_sim.software_renderer import PinholeView, SoftwareRenderer  # numba is slow to import

        self._renderer = SoftwareRenderer(model, groups)
        self._view = PinholeView(camera.position(), camera.rotation(), float(model.vis.global_.fovy))
        self._lookat = np.array(camera.lookat)

    def draw(self, data: mujoco.MjData, width: int, height: int) -> Picture:
        return self._renderer.render(data, self._view, self._lookat, width, height)

    def close(self) -> None:
        pass


class _OpenGlDrawer:
    """MuJoCo's own renderer on an off-screen context of the named kind."""

    def __init__(self, model: mujoco.MjModel, camera: Camera, groups: tuple[int, ...], site_groups: tuple[int, ...], kind: str) -> None:
        self._model = model
        self._make_context: Any = importlib.import_module(f"mujoco.{kind}").GLContext
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.lookat[:] = camera.lookat
        self._camera.distance, self._camera.azimuth, self._camera.elevation = camera.distance, camera.azimuth_deg, camera.elevation_deg
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [group in groups for group in range(mujoco.mjNGROUP)]
        self._option.sitegroup[:] = [group in site_groups for group in range(mujoco.mjNGROUP)]
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._gl: Any = None
        self._context: Any = None
        self._size = (0, 0)

    def draw(self, data: mujoco.MjData, width: int, height: int) -> Picture:
        if width > self._size[0] or height > self._size[1]:
            self._open(max(width, self._size[0]), max(height, self._size[1]))
        self._gl.make_current()
        mujoco.mj_camlight(self._model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, mujoco.MjvPerturb(), self._camera, everything, self._scene)
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, rectangle, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def _open(self, width: int, height: int) -> None:
        self.close()
        self._gl = self._make_context(width, height)
        self._gl.make_current()
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._size = (width, height)

    def close(self) -> None:
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl, self._context, self._size = None, None, (0, 0)


def _works(kind: str) -> bool:
    """Whether a child process can draw with that OpenGL backend."""
    code = f"from otpr_sim.render import _draw_probe; _draw_probe({kind!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def _draw_probe(kind: str) -> None:
    """Draws a sphere; raises, or ends the process, when that does not work."""
    model = mujoco.MjModel.from_xml_string(PROBE_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    drawer = _OpenGlDrawer(model, Camera((0.0, 0.0, 0.0), 1.0, 0.0, -20.0), VISUAL_GROUPS, (), kind)
    picture = drawer.draw(data, 32, 24)
    drawer.close()
    if picture.max() == picture.min():
        raise EnvironmentSetupError(f"{kind} draws nothing")


def filmstrip(frames: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Frames of one size side by side, each with its caption below. Raises ValueError when there are none or they do not match."""
    if not frames or len(frames) != len(captions) or len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"{len(frames)} frames of shapes {sorted({f.shape for f in frames})} and {len(captions)} captions")
    height, width = frames[0].shape[:2]
    gap, text_size = max(2, width // 80), max(11, width // 20)
    strip = Image.new("RGB", (len(frames) * (width + gap) - gap, height + 2 * text_size), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(text_size)
    for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        left = index * (width + gap)
        strip.paste(Image.fromarray(frame), (left, 0))
        draw.text((left + width / 2, height + text_size), caption, fill="black", font=font, anchor="mm")
    return np.asarray(strip)


def write_filmstrip(path: Path, frames: Sequence[Picture], labels: Sequence[str]) -> None:
    """Writes :func:`filmstrip` as PNG, atomically. Raises OutputError when ``path`` cannot be written."""
    picture = filmstrip(frames, labels)
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")

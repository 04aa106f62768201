# SPDX-License-Identifier: Apache-2.0
"""Laws of the pictures: where things appear, what hides what, and which backend draws."""

import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
from PIL import Image

from otpr_policy.errors import EnvironmentSetupError, OutputError
from otpr_sim import registry, render
from otpr_sim.render import Camera
from otpr_sim.software_renderer import PinholeView, SoftwareRenderer, geom_colour

WIDTH, HEIGHT = 160, 120
CAMERA = Camera(lookat=(0.1, -0.2, 0.3), distance=1.5, azimuth_deg=160.0, elevation_deg=-25.0)


def _draw(bodies: str, camera: Camera = CAMERA) -> np.ndarray:
    """Software picture of a scene without floor, as whole numbers."""
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    view = PinholeView(camera.position(), camera.rotation(), model.vis.global_.fovy)
    return SoftwareRenderer(model, groups=(0,)).render(data, view, np.array(camera.lookat), WIDTH, HEIGHT).astype(int)


def _is_red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 60) & (picture[..., 1:].max(axis=-1) < 30)


def _coverage(picture: np.ndarray) -> np.ndarray:
    """Fraction of each pixel that something red covers, which has no blue of its own, before the sky, which has."""
    return 1.0 - picture[..., 2] / picture[0, 0, 2]


def _is_green(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 1] > 60) & (picture[..., [0, 2]].max(axis=-1) < 30)


def _pinhole(point: np.ndarray, camera: Camera, fovy_deg: float = 45.0) -> np.ndarray:
    """Column and row of a world point, from first principles."""
    azimuth, elevation = np.radians(camera.azimuth_deg), np.radians(camera.elevation_deg)
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.cross(forward, [0.0, 0.0, 1.0]) / np.cos(elevation)
    up = np.cross(right, forward)
    way = point - (np.array(camera.lookat) - camera.distance * forward)
    focal = HEIGHT / 2 / np.tan(np.radians(fovy_deg) / 2)
    return np.array([WIDTH / 2 + focal * (way @ right) / (way @ forward), HEIGHT / 2 - focal * (way @ up) / (way @ forward)])


@pytest.mark.parametrize("centre", [(0.1, -0.2, 0.3), (0.3, -0.1, 0.5), (-0.2, 0.1, 0.1), (0.5, -0.5, 0.2)])
def test_a_red_cube_appears_where_a_pinhole_camera_sees_it(centre: tuple[float, float, float]) -> None:
    picture = _draw(f"<geom type='box' size='.02 .02 .02' pos='{centre[0]} {centre[1]} {centre[2]}' rgba='1 0 0 1'/>")
    rows, columns = np.nonzero(_is_red(picture))
    seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    np.testing.assert_allclose(seen, _pinhole(np.array(centre), CAMERA), atol=0.6)


def test_a_sphere_has_the_area_that_perspective_gives_it() -> None:
    radius, distance = 0.1, CAMERA.distance
    picture = _draw(f"<geom type='sphere' size='{radius}' pos='0.1 -0.2 0.3' rgba='1 0 0 1'/>")
    focal = HEIGHT / 2 / np.tan(np.radians(22.5))
    expected = np.pi * (focal * radius / np.sqrt(distance**2 - radius**2)) ** 2
    assert _coverage(picture).sum() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("order", ["near first", "far first"])
def test_a_nearer_object_hides_a_farther_one_in_whichever_order_they_are_drawn(order: str) -> None:
    towards_camera = -CAMERA.rotation()[2]
    near, far = np.array(CAMERA.lookat) + 0.3 * towards_camera, np.array(CAMERA.lookat) - 0.3 * towards_camera
    geoms = [
        f"<geom type='sphere' size='.05' pos='{near[0]} {near[1]} {near[2]}' rgba='1 0 0 1'/>",
        f"<geom type='sphere' size='.12' pos='{far[0]} {far[1]} {far[2]}' rgba='0 1 0 1'/>",
    ]
    picture = _draw("".join(geoms if order == "near first" else geoms[::-1]))
    assert _is_red(picture)[HEIGHT // 2, WIDTH // 2]
    green_rows, green_columns = np.nonzero(_is_green(picture))
    assert green_rows.min() < np.nonzero(_is_red(picture))[0].min(), "the far, larger sphere shows around the near one"
    assert len(green_columns) > 100


def test_a_floor_that_reaches_behind_the_camera_fills_the_picture_below_the_horizon() -> None:
    level = Camera(lookat=(0.0, 0.0, 1.0), distance=1.0, azimuth_deg=30.0, elevation_deg=0.0)
    picture = _draw("<geom type='plane' size='0 0 1' rgba='0 1 0 1'/>", level)
    green = _is_green(picture)
    assert not green[: HEIGHT // 2].any()
    assert green[HEIGHT // 2 + 8 :].all()  # the plane ends at 20 m, a few rows below the horizon


def test_what_stands_in_the_light_casts_a_shadow_straight_below() -> None:
    bodies = "<light type='directional' dir='0 0 -1'/><geom type='plane' size='1 1 1' rgba='0 1 0 1'/>"
    shade = _draw(bodies + "<geom type='box' size='.05 .05 .01' pos='.1 -.2 .6' rgba='1 0 0 1'/>")
    column, row = _pinhole(np.array([0.1, -0.2, 0.0]), CAMERA).astype(int)
    assert shade[row, column, 1] < 0.8 * _draw(bodies)[row, column, 1]


@pytest.mark.parametrize(
    ("shape", "half_height"),
    [("type='cylinder' size='.1 .2'", 0.2), ("type='capsule' size='.1 .2'", 0.3), ("type='ellipsoid' size='.1 .1 .25'", 0.25)],
)
def test_primitive_shapes_have_their_height_and_width(shape: str, half_height: float) -> None:
    far = Camera(lookat=(0.0, 0.0, 0.0), distance=3.0, azimuth_deg=0.0, elevation_deg=0.0)
    rows, columns = np.nonzero(_coverage(_draw(f"<geom {shape} rgba='1 0 0 1'/>", far)) > 0.2)
    pixel = far.distance / (HEIGHT / 2 / np.tan(np.radians(22.5)))
    assert (np.ptp(rows) + 1) * pixel == pytest.approx(2 * half_height, abs=1.5 * pixel)
    assert (np.ptp(columns) + 1) * pixel == pytest.approx(0.2, abs=1.5 * pixel)


def test_the_camera_stands_where_mujocos_free_camera_stands() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    scene, free = mujoco.MjvScene(model, maxgeom=10), mujoco.MjvCamera()
    free.lookat[:] = CAMERA.lookat
    free.distance, free.azimuth, free.elevation = CAMERA.distance, CAMERA.azimuth_deg, CAMERA.elevation_deg
    mujoco.mjv_updateScene(model, mujoco.MjData(model), mujoco.MjvOption(), None, free, mujoco.mjtCatBit.mjCAT_ALL, scene)
    eyes = scene.camera[0].pos, scene.camera[1].pos
    np.testing.assert_allclose(np.mean(eyes, axis=0), CAMERA.position(), atol=1e-6)
    np.testing.assert_allclose(scene.camera[0].forward, CAMERA.rotation()[2], atol=1e-6)
    np.testing.assert_allclose(scene.camera[0].up, -CAMERA.rotation()[1], atol=1e-6)


def test_a_texture_counts_by_its_mean_colour_unless_the_geom_has_its_own() -> None:
    assets = "<texture name='t' type='2d' builtin='flat' rgb1='.2 .4 .6' width='8' height='8'/><material name='m' texture='t'/>"
    geoms = "<geom size='1' material='m'/><geom size='1' material='m' rgba='1 0 0 1'/><geom size='1' rgba='0 1 0 .5'/>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco><asset>{assets}</asset><worldbody>{geoms}</worldbody></mujoco>")
    colours = [geom_colour(model, geom) for geom in range(3)]
    np.testing.assert_allclose(colours, [[0.2, 0.4, 0.6, 1], [1, 0, 0, 1], [0, 1, 0, 0.5]], atol=1 / 255)


def test_the_lift_cube_appears_where_it_lies_and_the_picture_changes_when_the_arm_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "backend", lambda: "software")
    with registry.make("lift") as env:
        env.reset(3)
        picture = env.render(WIDTH, HEIGHT)
        cube = env.object_poses()["cube"].position + np.array([-0.56, 0.0, 0.912])  # the base stands there
        env.step(np.array([0.05, 0.05, -0.05, 0, 0, 0, 0.04]))
        moved = env.render(WIDTH, HEIGHT)
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    column, row = _pinhole(cube, render.TABLE_CAMERA).astype(int)
    red, green, blue = picture[row, column].astype(int)
    assert red > 2 * max(green, blue)
    assert (picture != moved).any()


def test_an_unknown_backend_is_refused_and_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTPR_RENDERER", "vulkan")
    with pytest.raises(EnvironmentSetupError, match="unknown OTPR_RENDERER 'vulkan'; known: egl, osmesa, software"):
        render.backend.__wrapped__()


def test_a_backend_that_was_asked_for_and_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTPR_RENDERER", "osmesa")
    monkeypatch.setattr(render, "_works", lambda kind: False)
    with pytest.raises(EnvironmentSetupError, match="OTPR_RENDERER=osmesa does not work"):
        render.backend.__wrapped__()


@pytest.mark.parametrize(("working", "chosen"), [((), "software"), (("osmesa",), "osmesa"), (("egl", "osmesa"), "egl")])
def test_without_a_wish_the_first_backend_that_works_is_chosen(
    monkeypatch: pytest.MonkeyPatch, working: tuple[str, ...], chosen: str
) -> None:
    monkeypatch.delenv("OTPR_RENDERER", raising=False)
    monkeypatch.setattr(render, "_works", lambda kind: kind in working)
    assert render.backend.__wrapped__() == chosen


def test_the_software_renderer_needs_no_graphics_library_and_mujoco_gl_stays_as_it_was() -> None:
    code = """
import os, sys
from otpr_sim import registry
env = registry.make('lift')
assert env.render(64, 48).max() > 0
assert 'MUJOCO_GL' not in os.environ
assert 'OpenGL' not in sys.modules
maps = open('/proc/self/maps').read()
assert 'libEGL' not in maps and 'libOSMesa' not in maps
"""
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment |= {"OTPR_RENDERER": "software", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_a_film_strip_shows_each_frame_unchanged_above_its_caption(tmp_path: Path) -> None:
    frames = [np.full((60, 80, 3), shade, dtype=np.uint8) for shade in (10, 120, 230)]
    target = tmp_path / "strip.png"
    render.write_filmstrip(target, frames, ["0.0 s", "0.5 s", "1.0 s"])
    picture = np.asarray(Image.open(target))
    gap = (picture.shape[1] - 3 * 80) // 2
    for index, frame in enumerate(frames):
        left = index * (80 + gap)
        np.testing.assert_array_equal(picture[:60, left : left + 80], frame)
        assert picture[60:, left : left + 80].min() < 100, "no caption"
    assert [path.name for path in tmp_path.iterdir()] == ["strip.png"]


@pytest.mark.parametrize(("shapes", "captions"), [([], []), ([(4, 4, 3)], []), ([(4, 4, 3), (4, 5, 3)], ["a", "b"])])
def test_a_film_strip_refuses_frames_and_captions_that_do_not_match(shapes: list[tuple[int, ...]], captions: list[str]) -> None:
    with pytest.raises(ValueError, match="frames of shapes"):
        render.filmstrip([np.zeros(shape, dtype=np.uint8) for shape in shapes], captions)


def test_a_film_strip_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        render.write_filmstrip(tmp_path / "file" / "strip.png", [np.zeros((8, 8, 3), dtype=np.uint8)], ["a"])

# SPDX-License-Identifier: Apache-2.0
"""Pictures of a MuJoCo scene without any graphics library: triangles, a pinhole camera and a depth buffer.

It draws meshes, boxes, spheres, ellipsoids, capsules, cylinders and planes in one colour each (a texture counts by its
mean colour), lit by the ambient light, a lamp at the camera and the scene's first directional light, which casts
shadows. Height fields, signed distance fields, skins and translucency are not drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array

Mesh = tuple[Array, NDArray[np.int32]]  # vertices (n, 3) [m] and triangles (m, 3) of vertex numbers

NEAR_M = 0.02
INVISIBLE_ALPHA = 0.05
TEXEL_STRIDE = 17  # a texture's mean is taken over every 17th texel
SEGMENTS = 32  # of a full circle
INFINITE_PLANE_M = 20.0  # half-size of a plane that the model calls infinite
SUPERSAMPLING = 2
SHADOW_PIXELS = 768
SHADOW_HALF_SIZE_M = 1.1  # half-width of the square around the point looked at in which shadows fall
SHADOW_BIAS_M = 0.008  # a surface does not shade itself
AMBIENT, HEADLIGHT, LAMP = 0.40, 0.32, 0.42  # a white face turned to lamp and camera just saturates
SKY = np.array([0.80, 0.85, 0.92])
DEFAULT_LAMP = np.array([-0.3, -0.4, -0.87])


@dataclass(frozen=True)
class PinholeView:
    """Where the camera is and how it looks.

    Args:
        position: (3,) [m], in the world.
        rotation: (3, 3), rows are the image's right, the image's down, and the viewing direction, in the world.
        fovy_deg: vertical field of view.
    """

    position: Array
    rotation: Array
    fovy_deg: float

    def focal_px(self, height: int) -> float:
        """Focal length in pixels of an image of that height."""
        return height / 2.0 / float(np.tan(np.radians(self.fovy_deg) / 2.0))

    def project(self, points: Array, width: int, height: int) -> Array:
        """World points (n, 3) to (column, row, depth [m]) (n, 3); the picture's upper left corner is (0, 0)."""
        local = (points - self.position) @ self.rotation.T
        centre = np.array([width, height]) / 2.0
        return np.column_stack([centre + self.focal_px(height) * local[:, :2] / local[:, 2:], local[:, 2]])


class SoftwareRenderer:
    """Draws the geoms of the given groups of one model.

    Args:
        model: the scene. Its colours are read once, its shapes for each picture, as a task may resize its objects.
        groups: geom groups to draw.
    """

    def __init__(self, model: mujoco.MjModel, groups: tuple[int, ...]) -> None:
        self._model = model
        shown = np.isin(model.geom_group, groups) & np.isin(model.geom_type, list(_SHAPES))
        colours = {int(geom): geom_colour(model, int(geom)) for geom in np.flatnonzero(shown)}
        self._colours = {geom: colour[:3] for geom, colour in colours.items() if colour[3] > INVISIBLE_ALPHA}

    def render(self, data: mujoco.MjData, view: PinholeView, lookat: Array, width: int, height: int) -> NDArray[np.uint8]:
        """Picture (height, width, 3) RGB of the scene as it lies in ``data`` (needs kinematics); shadows fall around ``lookat``."""
        vertices, triangles, colours = self._triangles(data)
        lamp = self._lamp_direction()
        shadow_axes = _axes_looking_along(lamp)
        shadow = np.full((SHADOW_PIXELS, SHADOW_PIXELS), np.inf, dtype=np.float32)
        _draw_shadow_map(((vertices - lookat) @ shadow_axes.T)[triangles], SHADOW_HALF_SIZE_M, shadow)
        wide, high = width * SUPERSAMPLING, height * SUPERSAMPLING
        image = np.broadcast_to(SKY, (high, wide, 3)).astype(np.float32)
        local = (vertices - view.position) @ view.rotation.T
        from_view = shadow_axes @ view.rotation.T  # camera axes to shadow axes
        origin = shadow_axes @ (view.position - lookat)
        _draw_picture(local[triangles], colours, view.focal_px(high), view.rotation @ lamp, from_view, origin, shadow, image)
        image = image.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean(axis=(1, 3))
        return np.asarray(np.clip(image * 255.0 + 0.5, 0.0, 255.0), dtype=np.uint8)

    def _triangles(self, data: mujoco.MjData) -> tuple[Array, NDArray[np.int32], Array]:
        """All vertices in the world (n, 3), triangles (m, 3), and one RGB colour in 0..1 per triangle (m, 3)."""
        vertices, triangles, colours, count = [], [], [], 0
        for geom, colour in self._colours.items():
            local, faces = _SHAPES[int(self._model.geom_type[geom])](self._model, geom)
            vertices.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
            triangles.append(faces + count)
            colours.append(np.broadcast_to(colour, (len(faces), 3)))
            count += len(local)
        if not vertices:
            return np.zeros((0, 3)), np.zeros((0, 3), np.int32), np.zeros((0, 3))
        return np.concatenate(vertices), np.concatenate(triangles), np.concatenate(colours)

    def _lamp_direction(self) -> Array:
        directional = np.flatnonzero(self._model.light_type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
        direction = self._model.light_dir[directional[0]] if len(directional) else DEFAULT_LAMP
        return np.asarray(direction / np.linalg.norm(direction))


def geom_colour(model: mujoco.MjModel, geom: int) -> Array:
    """RGBA in 0..1 (4,): the material's, times its texture's mean, unless the geom has a colour of its own."""
    material = int(model.geom_matid[geom])
    own = np.asarray(model.geom_rgba[geom], dtype=np.float64)
    if material < 0 or not np.allclose(own, [0.5, 0.5, 0.5, 1.0]):  # MuJoCo's value for "not given"
        return own
    colour = np.asarray(model.mat_rgba[material], dtype=np.float64)
    texture = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])
    if texture < 0:
        return colour
    channels = int(model.tex_nchannel[texture])
    size = int(model.tex_width[texture]) * int(model.tex_height[texture]) * channels
    start = int(model.tex_adr[texture])
    mean = model.tex_data[start : start + size].reshape(-1, channels)[::TEXEL_STRIDE, :3].mean(axis=0) / 255.0
    return np.append(colour[:3] * mean, colour[3])


# Shapes


def _mesh(model: mujoco.MjModel, geom: int) -> Mesh:
    mesh = int(model.geom_dataid[geom])
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    return model.mesh_vert[vertices], model.mesh_face[faces]


def _box(model: mujoco.MjModel, geom: int) -> Mesh:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
    quads = np.array([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]], dtype=np.int32)
    return corners * model.geom_size[geom], np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _plane(model: mujoco.MjModel, geom: int) -> Mesh:
    half = np.array([size if size > 0 else INFINITE_PLANE_M for size in model.geom_size[geom, :2]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return np.column_stack([corners, np.zeros(4)]), np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)


def _ellipsoid(model: mujoco.MjModel, geom: int) -> Mesh:
    vertices, faces = _revolve(_half_circle())
    return vertices * model.geom_size[geom], faces


def _sphere(model: mujoco.MjModel, geom: int) -> Mesh:
    return _revolve(_half_circle() * model.geom_size[geom, 0])


def _capsule(model: mujoco.MjModel, geom: int) -> Mesh:
    radius, half_length = model.geom_size[geom, :2]
    profile = _half_circle() * radius
    shift = np.where(np.arange(len(profile)) < len(profile) // 2, -half_length, half_length)
    return _revolve(profile + np.column_stack([np.zeros(len(profile)), shift]))


def _cylinder(model: mujoco.MjModel, geom: int) -> Mesh:
    radius, half_length = model.geom_size[geom, :2]
    return _revolve(np.array([[0.0, -half_length], [radius, -half_length], [radius, half_length], [0.0, half_length]]))


def _half_circle() -> Array:
    """Unit half circle of (radius, height) from the lower pole to the upper; an even number of points."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, SEGMENTS // 2)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def _revolve(profile: Array) -> Mesh:
    """Surface of revolution about z of a profile (n, 2) of (radius, height)."""
    turn = np.linspace(0.0, 2.0 * np.pi, SEGMENTS, endpoint=False)
    ring = np.column_stack([np.cos(turn), np.sin(turn)])
    vertices = np.concatenate([np.column_stack([radius * ring, np.full(SEGMENTS, height)]) for radius, height in profile])
    here = np.arange(SEGMENTS, dtype=np.int32)
    after = (here + 1) % SEGMENTS
    band = np.concatenate([np.column_stack([here, after, here + SEGMENTS]), np.column_stack([after, after + SEGMENTS, here + SEGMENTS])])
    faces = np.concatenate([band + level * SEGMENTS for level in range(len(profile) - 1)])
    return vertices, faces.astype(np.int32)


_SHAPES: dict[int, Callable[[mujoco.MjModel, int], Mesh]] = {
    int(mujoco.mjtGeom.mjGEOM_MESH): _mesh,
    int(mujoco.mjtGeom.mjGEOM_BOX): _box,
    int(mujoco.mjtGeom.mjGEOM_PLANE): _plane,
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): _ellipsoid,
    int(mujoco.mjtGeom.mjGEOM_SPHERE): _sphere,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): _capsule,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): _cylinder,
}


def _axes_looking_along(direction: Array) -> Array:
    """A rotation (3, 3) whose third row is the unit vector ``direction``."""
    helper = np.eye(3)[np.argmin(np.abs(direction))]
    right = np.cross(helper, direction)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction])


# Rasterisation. Coordinates are (column, row, depth).


@numba.njit(cache=True)
def _pixel_range(a: float, b: float, c: float, size: int) -> tuple[int, int]:
    """First and one past the last pixel whose centre can lie between the smallest and the largest of three coordinates."""
    first = max(0, int(np.ceil(min(a, b, c) - 0.5)))
    last = min(size, int(np.floor(max(a, b, c) - 0.5)) + 1)
    return first, last


@numba.njit(cache=True)
def _draw_shadow_map(triangles: Array, half_size: float, depth: NDArray[np.float32]) -> None:
    """Orthographic depth along the third axis of triangles (n, 3 corners, 3) over the square of the given half-size."""
    size = depth.shape[0]
    scale = size / (2.0 * half_size)
    for t in range(triangles.shape[0]):
        x = triangles[t, :, 0] * scale + size / 2.0
        y = triangles[t, :, 1] * scale + size / 2.0
        z = triangles[t, :, 2]
        area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
        if area == 0.0:
            continue
        left, right = _pixel_range(x[0], x[1], x[2], size)
        top, bottom = _pixel_range(y[0], y[1], y[2], size)
        for row in range(top, bottom):
            for column in range(left, right):
                px, py = column + 0.5, row + 0.5
                w1 = ((px - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (py - y[0])) / area
                w2 = ((x[1] - x[0]) * (py - y[0]) - (px - x[0]) * (y[1] - y[0])) / area
                if w1 >= 0.0 and w2 >= 0.0 and w1 + w2 <= 1.0:
                    here = z[0] + w1 * (z[1] - z[0]) + w2 * (z[2] - z[0])
                    if here < depth[row, column]:
                        depth[row, column] = here


@numba.njit(cache=True)
def _clip_near(triangle: Array, polygon: Array) -> int:
    """Cuts a triangle (3, 3) at the near plane into ``polygon`` (4, 3); returns its number of corners: 0, 3 or 4."""
    count = 0
    for i in range(3):
        here, after = triangle[i], triangle[(i + 1) % 3]
        if here[2] >= NEAR_M:
            polygon[count] = here
            count += 1
        if (here[2] >= NEAR_M) != (after[2] >= NEAR_M):
            polygon[count] = here + (NEAR_M - here[2]) / (after[2] - here[2]) * (after - here)
            count += 1
    return count


@numba.njit(cache=True)
def _lit(x: float, y: float, z: float, from_view: Array, origin: Array, shadow: NDArray[np.float32]) -> bool:
    """Whether the lamp reaches a point given in camera axes; outside the shadow map it does."""
    size = shadow.shape[0]
    scale = size / (2.0 * SHADOW_HALF_SIZE_M)
    column = (from_view[0, 0] * x + from_view[0, 1] * y + from_view[0, 2] * z + origin[0]) * scale + size / 2.0
    row = (from_view[1, 0] * x + from_view[1, 1] * y + from_view[1, 2] * z + origin[1]) * scale + size / 2.0
    if not (0.0 <= column < size and 0.0 <= row < size):
        return True
    depth = from_view[2, 0] * x + from_view[2, 1] * y + from_view[2, 2] * z + origin[2]
    return depth <= shadow[int(row), int(column)] + SHADOW_BIAS_M


@numba.njit(cache=True)
def _draw_picture(
    triangles: Array,
    colours: Array,
    focal: float,
    lamp: Array,
    from_view: Array,
    origin: Array,
    shadow: NDArray[np.float32],
    image: NDArray[np.float32],
) -> None:
    """Draws triangles (n, 3 corners, 3) in camera axes, each in one colour with two-sided Lambert shading, into ``image``."""
    height, width = image.shape[:2]
    nearness = np.zeros((height, width))  # 1 / depth, which is linear in the picture
    polygon = np.empty((4, 3))
    for t in range(triangles.shape[0]):
        corners = _clip_near(triangles[t], polygon)
        if corners == 0:
            continue
        edge1, edge2 = triangles[t, 1] - triangles[t, 0], triangles[t, 2] - triangles[t, 0]
        normal = np.array(
            [
                edge1[1] * edge2[2] - edge1[2] * edge2[1],
                edge1[2] * edge2[0] - edge1[0] * edge2[2],
                edge1[0] * edge2[1] - edge1[1] * edge2[0],
            ]
        )
        length = np.sqrt((normal**2).sum())
        if length == 0.0:
            continue
        normal /= length
        towards = (normal * triangles[t, 0]).sum()
        if towards > 0.0:  # a face seen from behind is lit like one seen from the front
            normal, towards = -normal, -towards
        distance = np.sqrt((triangles[t, 0] ** 2).sum())
        dim = AMBIENT + HEADLIGHT * (-towards / distance)
        bright = LAMP * max(0.0, -(normal * lamp).sum())
        for fan in range(1, corners - 1):
            z0, z1, z2 = 1.0 / polygon[0, 2], 1.0 / polygon[fan, 2], 1.0 / polygon[fan + 1, 2]
            x0, y0 = width / 2.0 + focal * polygon[0, 0] * z0, height / 2.0 + focal * polygon[0, 1] * z0
            x1, y1 = width / 2.0 + focal * polygon[fan, 0] * z1, height / 2.0 + focal * polygon[fan, 1] * z1
            x2, y2 = width / 2.0 + focal * polygon[fan + 1, 0] * z2, height / 2.0 + focal * polygon[fan + 1, 1] * z2
            area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
            if area == 0.0:
                continue
            left, right = _pixel_range(x0, x1, x2, width)
            top, bottom = _pixel_range(y0, y1, y2, height)
            for row in range(top, bottom):
                for column in range(left, right):
                    px, py = column + 0.5, row + 0.5
                    w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) / area
                    w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) / area
                    if w1 < 0.0 or w2 < 0.0 or w1 + w2 > 1.0:
                        continue
                    near = z0 + w1 * (z1 - z0) + w2 * (z2 - z0)
                    if near <= nearness[row, column]:
                        continue
                    nearness[row, column] = near
                    z = 1.0 / near
                    x, y = (px - width / 2.0) * z / focal, (py - height / 2.0) * z / focal
                    light = dim
                    if bright > 0.0 and _lit(x, y, z, from_view, origin, shadow):
                        light += bright
                    for channel in range(3):
                        image[row, column, channel] = colours[t, channel] * light

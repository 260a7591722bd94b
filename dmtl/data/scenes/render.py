"""Render one scene to an image and exact labels.

H, W image size   N = H W pixels, row by row
    K solids; surface ids 0..K-1 are solids, K..K+5 the room's six sides
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .classes import BACKGROUND, PERSON
from .draw import Draw
from .geometry import apply, cast
from .layout import Camera
from .room import Scene, build_scene
from .shading import outlines, photograph, shade, surfaces

IGNORE = 255
LABELS = ("semseg", "human_parts", "sal", "normals", "edge", "depth")


def render(
    seed: int, stream: int, index: int, size: tuple[int, int], tasks: Iterable[str] = LABELS
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Render scene `index` of stream (`seed`, `stream`) at `size` = (H, W).

    Return the image, uint8 [3,H,W], and the labels of `tasks`: semseg, human_parts, sal, edge uint8 [1,H,W];
    normals float32 [3,H,W]; depth float32 [1,H,W] in metres; instances int64 [1,H,W]. No label depends on
    which others are requested.
    """
    draw = Draw(seed, stream, index)
    scene = build_scene(draw)
    rays_3N, pixel = camera_rays(scene.camera, size)
    depth_N, surface_N = first_hits(scene, rays_3N)
    seen = surfaces(scene, rays_3N, depth_N, surface_N)
    outline_HW = outlines(surface_N.reshape(size))
    image = photograph(shade(scene, seen, depth_N, pixel, outline_HW), outline_HW, draw)
    instance_N = np.append(scene.solids.instance, np.arange(6))[surface_N]
    make = {
        "semseg": lambda: scene.classes[instance_N],
        "human_parts": lambda: _parts(scene, surface_N),
        "sal": lambda: salient(scene.classes, instance_N, size),
        "normals": lambda: apply(scene.camera.axes, seen.normal_3N),
        "edge": lambda: edges(instance_N.reshape(size)),
        "depth": lambda: depth_N,
        "instances": lambda: instance_N,
    }
    return image, {task: make[task]().reshape(-1, *size) for task in tasks}


def _parts(scene: Scene, surface_N: np.ndarray) -> np.ndarray:
    """Return the human part of each pixel, uint8 [N], 0 outside people; all IGNORE if no one is visible."""
    part_N = np.append(scene.solids.part, np.zeros(6, np.uint8))[surface_N]
    return part_N if part_N.any() else np.full_like(part_N, IGNORE)


def camera_rays(camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.float32]:
    """Return ray directions, float32 [3,N], in the world frame, and the side of a pixel one metre away.

    The component of each direction along the optical axis is one metre, so the ray parameter t is the depth.
    The focal length is that of a square image of the same area.
    """
    height, width = size
    pixel = np.float32(2 * camera.tan_half / np.sqrt(height * width))
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) * pixel
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5 - height / 2)) * -pixel
    right, up, back = camera.axes[:, :, None, None]
    return (right * x + up * y[:, None] - back).reshape(3, -1), pixel


def first_hits(scene: Scene, rays_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return depth float32 [N] and surface id [N] of each ray's first hit."""
    eye = scene.camera.position
    # A ray from inside a box leaves it through the nearest of the three sides that it approaches.
    steep = np.where(np.abs(rays_3N) < 1e-9, np.float32(1e-9), rays_3N)
    exits = np.where(steep > 0, (scene.size - eye)[:, None], -eye[:, None]) / steep
    axis = exits.argmin(axis=0)
    depth = exits.min(axis=0)
    ahead = np.take_along_axis(steep, axis[None], axis=0)[0] > 0
    side = np.array([[2, 0, 4], [3, 1, 5]])[ahead.astype(int), axis]
    surface = side + len(scene.solids.shape)
    cast(scene.solids, eye, rays_3N, depth, surface)
    return depth, surface


def edges(instance_HW: np.ndarray) -> np.ndarray:
    """Return uint8 [H,W]: 1 if the pixel to the right or below is of another instance (or room side)."""
    edge = np.zeros(instance_HW.shape, np.uint8)
    edge[:, :-1] |= instance_HW[:, :-1] != instance_HW[:, 1:]
    edge[:-1] |= instance_HW[:-1] != instance_HW[1:]
    return edge


def salient(classes: np.ndarray, instance_N: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [N]: 1 on the most prominent instances.

    Prominence = visible pixels x exp(-d^2 / (2 0.3^2)) x (1.5 for a person), where d is the distance of the
    visible part's centre from the image centre, as a fraction of the image's sides. Instances with at least
    half of the greatest prominence are salient; parts of the room (`BACKGROUND`) never are.
    """
    height, width = size
    row, column = np.divmod(np.arange(height * width), width)
    area = np.bincount(instance_N, minlength=len(classes))
    visible = np.maximum(area, 1)
    x = np.bincount(instance_N, column, len(classes)) / visible / width - 0.5
    y = np.bincount(instance_N, row, len(classes)) / visible / height - 0.5
    prominence = area * np.exp(-(x * x + y * y) / (2 * 0.3**2)) * np.where(classes == PERSON, 1.5, 1.0)
    prominence[np.isin(classes, BACKGROUND)] = 0
    chosen = (prominence > 0) & (prominence >= 0.5 * prominence.max())
    return chosen.astype(np.uint8)[instance_N]

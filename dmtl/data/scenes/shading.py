"""Colour: textures, lamp and sun with cast shadows, ambient light with occlusion, and the camera's film.

N pixels   K solids   G blockers of ambient light. World frame, metres, linear light.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .classes import WINDOW
from .draw import Draw
from .geometry import BALL, BOX, DRUM, apply, cast, local_normal
from .room import Light, Scene
from .textures import albedo

_BLOCKERS = 14  # number of solids, largest first, that darken their surroundings
_CHUNK = 65536


@dataclass
class Surface:
    """What each pixel shows: points, normals, viewing directions and texture coordinates."""

    point_3N: np.ndarray
    normal_3N: np.ndarray  # unit, towards the camera
    view_3N: np.ndarray  # unit, from the camera
    groups: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]  # surface id, its pixels, u and v in metres


def surfaces(scene: Scene, rays_3N: np.ndarray, depth_N: np.ndarray, surface_N: np.ndarray) -> Surface:
    """Return points, normals and texture coordinates of the hits (`depth_N`, `surface_N`)."""
    solids, eye = scene.solids, scene.camera.position
    point = eye[:, None] + rays_3N * depth_N
    normal = np.empty_like(rays_3N)
    order = np.argsort(surface_N, kind="stable")
    count = len(solids.shape)
    cuts = np.searchsorted(surface_N[order], np.arange(count + 7))
    groups = []
    for k in np.flatnonzero(np.diff(cuts)):
        pixels = order[cuts[k] : cuts[k + 1]]
        p = point[:, pixels]
        if k < count:
            p = apply(solids.to_local[k], p - solids.origin[k][:, None])
            n = local_normal(solids.shape[k], p, solids.extra[k])
            normal[:, pixels] = apply(solids.to_local[k].T, n)
            u, v = _coordinates(int(solids.shape[k]), p, n, solids.half[k], solids.extra[k])
            if solids.material[k].pattern == "face":
                u, v = np.where(p[2] > 0, p[0], np.float32(9)), p[1]
        else:
            side = k - count
            axis = (1, 1, 0, 0, 2, 2)[side]
            n = np.zeros((3, 1), np.float32)
            n[axis] = 1 if side % 2 == 0 else -1
            normal[:, pixels] = n
            u, v = (p[2], p[1]) if axis == 0 else (p[0], p[2]) if axis == 1 else (p[0], p[1])
        groups.append((int(k), pixels, u, v))
    view = rays_3N / np.sqrt((rays_3N * rays_3N).sum(axis=0))
    normal /= np.sqrt((normal * normal).sum(axis=0))
    normal *= np.where(
        (normal * view).sum(axis=0) > 0, np.float32(-1), np.float32(1)
    )  # rounding at the silhouette
    return Surface(point, normal, view, groups)


def _coordinates(shape: int, p, n, half, extra):
    """Return texture coordinates (u, v) in metres of local points `p` with local normals `n`."""
    if shape == BOX:
        x, y, z = p * half[:, None]
        side, lid = n[0] != 0, n[1] != 0
        return np.where(side, z, x), np.where(lid, z, y)
    radius = extra[1] if shape not in (BALL, DRUM) else half[0]
    u, v = np.arctan2(p[0], p[2]) * radius, p[1] * half[1]
    if shape == DRUM:
        lid = (n[0] == 0) & (n[2] == 0)
        u, v = np.where(lid, p[0] * half[0], u), np.where(lid, p[2] * half[2], v)
    return u, v


def shade(
    scene: Scene, seen: Surface, depth_N: np.ndarray, pixel: np.float32, outline_HW: np.ndarray
) -> np.ndarray:
    """Return linear light at the camera, float32 [3,N]; `pixel` is the side of a pixel at one metre.

    `outline_HW` (bool) marks pixels next to another surface: the blur of shadows must not cross it.
    """
    materials = [*scene.solids.material, *scene.surfaces]
    facing_N = -(seen.normal_3N * seen.view_3N).sum(axis=0)
    width_N = depth_N * np.float32(pixel) / np.maximum(facing_N, np.float32(0.2))
    base = np.empty_like(seen.point_3N)
    gloss_N, glow_N = np.empty_like(depth_N), np.empty_like(depth_N)
    for k, pixels, u, v in seen.groups:
        material = materials[k]
        width = width_N[pixels]
        if material.pattern == "face":
            width = width / scene.solids.half[k][0]
        base[:, pixels] = albedo(material, u, v, width)
        gloss_N[pixels], glow_N[pixels] = material.gloss, material.glow
    bounce = base.mean(axis=1, keepdims=True)
    up = 0.5 + 0.5 * seen.normal_3N[1]
    sky = scene.ambient[:, None] * (up * 0.45 + 0.55) + (1 - up) * 0.25 * bounce * scene.ambient[:, None]
    light = sky * _openness(scene, seen)
    shine = np.zeros_like(base)
    for lamp in scene.lights:
        diffuse, highlight = _lit(scene, lamp, seen, gloss_N, outline_HW)
        light += lamp.colour[:, None] * diffuse
        shine += lamp.colour[:, None] * highlight
    return base * (light + glow_N) + shine


def _lit(
    scene, lamp: Light, seen: Surface, gloss_N: np.ndarray, outline_HW: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return diffuse light [N] and highlight [N] of one lamp, with shadows, per unit of its colour."""
    ray = seen.point_3N - lamp.position[:, None]  # from the lamp: t = 1 at the surface
    distance = np.sqrt((ray * ray).sum(axis=0))
    ray_unit = ray / distance
    cosine = -(seen.normal_3N * ray_unit).sum(axis=0)
    reached = cosine > 0
    solids = scene.solids
    if lamp.opening is not None:
        axis, plane, *spans = lamp.opening
        axis = int(axis)
        s = (np.float32(plane) - lamp.position[axis]) / ray[axis]
        other = 2 - axis
        across, up = lamp.position[other] + s * ray[other], lamp.position[1] + s * ray[1]
        reached &= (across > spans[0]) & (across < spans[1]) & (up > spans[2]) & (up < spans[3])
        solids = solids.subset(scene.classes[solids.instance] != WINDOW)
    pixels = np.flatnonzero(reached)
    far = 1 - np.float32(0.006) / distance[pixels]
    blocked = np.full(len(pixels), -1)
    cast(solids, lamp.position, ray[:, pixels], far, blocked)
    clear_HW = np.zeros(outline_HW.shape, np.float32)
    clear_HW.ravel()[pixels[blocked < 0]] = 1
    # A lamp is not a point: a narrow penumbra.
    clear = np.where(outline_HW, clear_HW, _blur(clear_HW[None])[0]).ravel()
    fade = 4.5 / (distance**2 + 1) if lamp.opening is None else np.float32(1)
    half = ray_unit + seen.view_3N
    aligned = -(seen.normal_3N * half).sum(axis=0) / np.sqrt((half * half).sum(axis=0) + np.float32(1e-9))
    highlight = np.maximum(aligned, 0)
    for _ in range(5):  # to the power of 32
        highlight = highlight * highlight
    clear = clear * fade
    return clear * np.maximum(cosine, 0), clear * gloss_N * highlight


def _openness(scene: Scene, seen: Surface) -> np.ndarray:
    """Return the share [N] of ambient light that arrives: less in corners and near large objects."""
    p, n = seen.point_3N, seen.normal_3N
    wall = np.minimum(p, scene.size[:, None] - p)  # distance to the nearer of two opposite sides
    corner = 1 - np.float32(0.38) * np.exp(wall * np.float32(-2.6)) * (1 - np.abs(n))
    share = corner.prod(axis=0)
    solids = scene.solids
    biggest = np.argsort(-solids.blocker, kind="stable")[:_BLOCKERS]
    biggest = biggest[solids.blocker[biggest] > 0]
    c, r2 = solids.centre[biggest], solids.blocker[biggest, None] ** 2
    for start in range(0, p.shape[1], _CHUNK):
        q, m = p[:, start : start + _CHUNK], n[:, start : start + _CHUNK]
        # A ball of radius r at the offset w hides about (n . w) r^2 / |w|^3 of a point's hemisphere.
        distance2 = np.maximum(
            (c * c).sum(axis=1)[:, None] - 2 * apply(c, q) + (q * q).sum(axis=0), r2 * np.float32(0.8)
        )
        above = np.maximum(apply(c, m) - (q * m).sum(axis=0), 0)
        hidden = np.minimum(above * r2 / (distance2 * np.sqrt(distance2)), np.float32(0.85))
        share[start : start + _CHUNK] *= np.maximum(1 - hidden, np.float32(0.2)).prod(axis=0)
    return share


def photograph(light_3N: np.ndarray, outline_HW: np.ndarray, draw: Draw) -> np.ndarray:
    """Turn linear light into an image, uint8 [3,H,W].

    Applies exposure, film curve, vignette, white balance, soft outlines and sensor noise.
    """
    height, width = outline_HW.shape
    luminance = light_3N.mean(axis=0)
    exposure = draw(0.55, 1.0) / (
        0.5 * float(luminance.mean()) + 0.5 * float(np.sqrt((luminance**2).mean())) + 1e-6
    )
    balance = np.array([draw(0.93, 1.07), 1.0, draw(0.93, 1.07)], np.float32)[:, None]
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    vignette = 1 - np.float32(draw(0.0, 0.14)) * (y[:, None] ** 2 + x**2)
    film = 1 - np.exp(light_3N * (-exposure * balance))
    picture = (film ** np.float32(1 / 2.2)).reshape(3, height, width) * vignette
    picture = np.where(outline_HW, _blur(picture), picture)  # anti-aliasing, as there is one ray per pixel
    noise = np.float32(draw(0.004, 0.02))
    picture = picture + noise * draw.bell(picture.shape) * (1.25 - 0.5 * picture)
    return np.clip(picture * 255 + np.float32(0.5), 0, 255).astype(np.uint8)


def outlines(surface_HW: np.ndarray) -> np.ndarray:
    """Return bool [H,W]: the pixels on both sides of every change of surface."""
    outline = np.zeros(surface_HW.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        change = surface_HW[a] != surface_HW[b]
        outline[a] |= change
        outline[b] |= change
    return outline


def _blur(x_CHW: np.ndarray) -> np.ndarray:
    """Blur by a 1-2-1 average in both directions, edges repeated."""
    p = np.pad(x_CHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    p = (p[:, :-2] + p[:, 2:]) * np.float32(0.25) + p[:, 1:-1] * np.float32(0.5)
    return (p[:, :, :-2] + p[:, :, 2:]) * np.float32(0.25) + p[:, :, 1:-1] * np.float32(0.5)

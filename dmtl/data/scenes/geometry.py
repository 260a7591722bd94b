"""Solids and exact ray casting, vectorised over (solid, ray) pairs.

Every solid is a canonical shape under an affine map, local = A (world - origin). The map leaves the ray
parameter t unchanged, so hits of different solids can be compared directly. World frame: metres,
right-handed, y up.

    N rays   K solids   P (solid, ray) pairs that survive culling
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

BALL, BOX, DRUM, LIMB = range(4)
"""Canonical shapes: the unit ball; the cube [-1,1]^3; a capped cone of radius 1 + k y, |y| <= 1; the convex
hull of two balls on the y axis."""

Vector = Sequence[float]
_CHUNK = 32768  # rays per pass: limits the size of the K x N culling table for large images
_NEAR = np.float32(1e-4)


def apply(matrix_KI: np.ndarray, x_IN: np.ndarray) -> np.ndarray:
    """Multiply matrices without BLAS: its threads cost more than they save, and its rounding varies."""
    return np.einsum("ki,in->kn", matrix_KI, x_IN)


def yaw_axes(angle: float) -> list[list[float]]:
    """Return local axes (rows, world coordinates) of a body turned by `angle` radians about the vertical."""
    c, s = math.cos(angle), math.sin(angle)
    return [[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]]


def axes_along(y_axis: Vector, front: Vector) -> list[list[float]]:
    """Return orthonormal axes whose y is `y_axis` (unit) and whose z is as near to `front` as possible."""
    yx, yy, yz = y_axis
    dot = front[0] * yx + front[1] * yy + front[2] * yz
    z = [front[0] - dot * yx, front[1] - dot * yy, front[2] - dot * yz]
    length = math.sqrt(z[0] * z[0] + z[1] * z[1] + z[2] * z[2])
    if length < 1e-3:  # parallel: any perpendicular will do
        return axes_along(y_axis, (yy, yz, yx) if abs(yx) < 0.9 else (0.0, 0.0, 1.0))
    z = [z[0] / length, z[1] / length, z[2] / length]
    x = [yy * z[2] - yz * z[1], yz * z[0] - yx * z[2], yx * z[1] - yy * z[0]]
    return [x, [yx, yy, yz], z]


@dataclass
class Solids:
    """K solids, ordered by shape."""

    shape: np.ndarray  # int [K]
    origin: np.ndarray  # float32 [K,3], origin of the local frame
    half: np.ndarray  # float32 [K,3], metres per local unit
    to_local: np.ndarray  # float32 [K,3,3] = A
    extra: np.ndarray  # float32 [K,3]: DRUM (k, 0, 0); LIMB (length, ra, rb)
    centre: np.ndarray  # float32 [K,3] bounding sphere
    radius: np.ndarray  # float32 [K]
    instance: np.ndarray  # int [K]
    part: np.ndarray  # uint8 [K], human part or 0
    material: list  # [K]
    # float32 [K], radius of the ball that replaces the solid in ambient occlusion; 0: none
    blocker: np.ndarray

    def subset(self, keep_K: np.ndarray) -> Solids:
        """Return the solids where `keep_K` (bool) is true, in the same order."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        material = [m for m, keep in zip(columns.pop("material"), keep_K) if keep]
        return Solids(**{name: column[keep_K] for name, column in columns.items()}, material=material)


class Builder:
    """Collect solids; `finish` turns them into arrays."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []
        self.classes: list[int] = []  # class of each instance

    def instance(self, class_id: int) -> int:
        self.classes.append(class_id)
        return len(self.classes) - 1

    def add(self, shape, origin, axes, half, instance, material, part=0, extra=(0.0, 0.0, 0.0), blocks=True):
        self.rows.append((shape, origin, axes, half, instance, material, part, extra, blocks))

    def limb(self, a, b, ra, rb, instance, material, part=0, front=(0.0, 0.0, 1.0), flat=1.0, blocks=False):
        """Add a round cone from a (radius ra) to b (radius rb), `flat` times as deep towards `front`."""
        d = [b[0] - a[0], b[1] - a[1], b[2] - a[2]]
        length = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        axes = axes_along([d[0] / length, d[1] / length, d[2] / length], front)
        self.add(LIMB, a, axes, (1.0, 1.0, flat), instance, material, part, (length, ra, rb), blocks)

    def finish(self) -> Solids:
        rows = sorted(self.rows, key=lambda row: row[0])
        shapes, *vectors, instance, material, part, extras, blocks = zip(*rows)
        shape = np.array(shapes)
        origin, axes, half, extra = (np.array(x, np.float32) for x in (*vectors, extras))
        limb, drum = shape == LIMB, shape == DRUM
        centre = origin + np.where(limb, extra[:, 0] / 2, 0)[:, None] * axes[:, 1]
        widest = half.max(axis=1)
        radius = np.where(shape == BOX, np.sqrt((half**2).sum(axis=1)), widest)
        wide = np.maximum(half[:, 0], half[:, 2]) * (1 + np.abs(extra[:, 0]))
        radius = np.where(drum, np.sqrt(wide**2 + half[:, 1] ** 2), radius)
        radius = np.where(limb, (extra[:, 0] / 2 + np.maximum(extra[:, 1], extra[:, 2])) * widest, radius)
        stand_in = np.where(limb, (extra[:, 1] + extra[:, 2]) / 2, np.cbrt(half.prod(axis=1)))
        return Solids(
            shape,
            origin,
            half,
            (axes / half[:, :, None]).astype(np.float32),
            extra,
            centre.astype(np.float32),
            (radius * 1.001).astype(np.float32),
            np.array(instance),
            np.array(part, np.uint8),
            list(material),
            np.where(blocks, stand_in, 0).astype(np.float32),
        )


def cast(solids: Solids, origin: np.ndarray, d_3N: np.ndarray, far_N: np.ndarray, ids_N: np.ndarray) -> None:
    """Find the first hit of each ray origin + t d, in place.

    Where a solid is hit at t < `far_N`, `far_N` becomes t and `ids_N` the index of the solid.
    """
    for start in range(0, d_3N.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        _cast(solids, origin, d_3N[:, part], far_N[part], ids_N[part])


def _cast(solids, origin, d_3N, far_N, ids_N) -> None:
    n = d_3N.shape[1]
    # A ray meets a bounding sphere of radius r about v exactly if cos(angle) |v| > sqrt(|v|^2 - r^2).
    v_K3 = solids.centre - origin
    margin_K = (v_K3**2).sum(axis=1) - solids.radius**2
    bound_K = np.where(margin_K > 0, np.sqrt(np.maximum(margin_K, 0)), -np.inf).astype(np.float32)
    length_N = np.sqrt((d_3N * d_3N).sum(axis=0))
    near_KN = apply(v_K3, d_3N) > bound_K[:, None] * length_N
    pairs_P = np.flatnonzero(near_KN)
    if not pairs_P.size:
        return
    cuts = np.searchsorted(pairs_P, np.arange(len(bound_K) + 1) * n)
    counts = np.diff(cuts)
    ray_P = pairs_P - np.repeat(np.arange(len(bound_K)) * n, counts)
    d_3P = np.take(d_3N, ray_P, axis=1)
    for k in np.flatnonzero(counts):
        d_3P[:, cuts[k] : cuts[k + 1]] = apply(solids.to_local[k], d_3P[:, cuts[k] : cuts[k + 1]])
    o_K3 = np.einsum("kij,kj->ki", solids.to_local, origin - solids.origin).astype(np.float32)
    t_P = np.empty(len(ray_P), np.float32)
    for shape, intersect in ((BALL, _ball), (BOX, _box), (DRUM, _drum), (LIMB, _limb)):
        k0, k1 = np.searchsorted(solids.shape, [shape, shape + 1])
        p0, p1 = cuts[k0], cuts[k1]
        if p1 > p0:
            # one row per component: o (3), then the shape's parameters (3)
            row_6K = np.concatenate([o_K3[k0:k1], solids.extra[k0:k1]], axis=1).T
            row_6P = np.repeat(row_6K, counts[k0:k1], axis=1)
            t_P[p0:p1] = intersect(row_6P[:3], d_3P[:, p0:p1], row_6P[3:])
    for k in np.flatnonzero(counts):
        rays, t = ray_P[cuts[k] : cuts[k + 1]], t_P[cuts[k] : cuts[k + 1]]
        closer = t < far_N[rays]
        rays = rays[closer]
        far_N[rays] = t[closer]
        ids_N[rays] = k


def _entry(a, b, c):
    """Return the smaller root of a t^2 + 2 b t + c (a > 0) if it is real and positive, else infinity."""
    disc = b * b - a * c
    t = (-b - np.sqrt(np.maximum(disc, 0))) / a
    return np.where((disc > 0) & (t > _NEAR), t, np.inf)


def _ball(o, d, extra):
    return _entry((d * d).sum(axis=0), (o * d).sum(axis=0), (o * o).sum(axis=0) - 1)


def _box(o, d, extra):
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    middle, reach = -o * inverse, np.abs(inverse)
    enter = (middle - reach).max(axis=0)
    leave = (middle + reach).min(axis=0)
    return np.where((enter < leave) & (enter > _NEAR), enter, np.inf)


def _drum(o, d, extra):
    ox, oy, oz = o
    dx, dy, dz = d
    k = extra[0]
    level = 1 + k * oy
    slope = k * dy
    a = dx * dx + dz * dz - slope * slope
    b = ox * dx + oz * dz - slope * level
    c = ox * ox + oz * oz - level * level
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    best = np.full_like(a, np.inf)
    for t in (
        (-b - root) / a,
        (-b + root) / a,
    ):  # both roots: with a slanted wall the first one may be outside the drum
        on = (disc > 0) & (t > _NEAR) & (np.abs(oy + t * dy) <= 1)
        best = np.where(on, np.minimum(best, t), best)
    lid = np.where(dy > 0, np.float32(-1), np.float32(1))
    t = (lid - oy) / np.where(np.abs(dy) < 1e-9, np.float32(1e-9), dy)
    x, z = ox + t * dx, oz + t * dz
    on = (x * x + z * z <= (1 + k * lid) ** 2) & (t > _NEAR)
    return np.where(on, np.minimum(best, t), best)


def _limb(o, d, extra):
    ox, oy, oz = o
    dx, dy, dz = d
    length, ra, rb = extra
    s = (
        ra - rb
    ) / length  # sine of the wall's slant; the wall touches the balls at y = ra s and length + rb s
    c2 = 1 - s * s
    side_a, side_b, side_c = dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz
    level = ra - s * oy
    slope = s * dy
    # wall: (x^2 + z^2) c^2 = (ra - s y)^2
    a = side_a * c2 - slope * slope
    crosses = a > 1e-9  # else the ray is steeper than the wall and enters through a ball
    t = _entry(np.where(crosses, a, np.float32(1)), side_b * c2 + slope * level, side_c * c2 - level * level)
    y = oy + np.where(t < np.inf, t, 0) * dy
    t = np.where(crosses & (y >= ra * s) & (y <= length + rb * s), t, np.inf)
    full = side_a + dy * dy
    t = np.minimum(t, _entry(full, side_b + oy * dy, side_c + oy * oy - ra * ra))
    top = oy - length
    return np.minimum(t, _entry(full, side_b + top * dy, side_c + top * top - rb * rb))


def local_normal(shape: int, p_3N: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Return outward normals (any length) in the local frame at surface points `p_3N` of one solid."""
    if shape == BALL:
        return p_3N
    n = np.zeros_like(p_3N)
    if shape == BOX:
        face = np.abs(p_3N).argmax(axis=0)
        here = np.arange(p_3N.shape[1])
        n[face, here] = np.sign(p_3N[face, here])
        return n
    if shape == DRUM:
        k = extra[0]
        x, y, z = p_3N
        rim = (1 + k * y) - np.sqrt(x * x + z * z)  # 0 on the wall
        wall = np.abs(rim) < 1 - np.abs(y)
        n[0] = np.where(wall, x, 0)
        n[1] = np.where(wall, -k * (1 + k * y), np.sign(y))
        n[2] = np.where(wall, z, 0)
        return n
    length, ra, rb = (float(e) for e in extra)
    s = (ra - rb) / length
    y = p_3N[1]
    # the point's ball has its centre on the axis; along the wall it slides from 0 to length
    along = np.clip((y - ra * s) / (length + rb * s - ra * s), 0, 1)
    n[0], n[1], n[2] = p_3N[0], y - along * length, p_3N[2]
    return n

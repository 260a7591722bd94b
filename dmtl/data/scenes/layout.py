"""The empty room, the camera, and free places for objects on the floor and the walls.

The room is the box [0, width] x [0, height] x [0, depth] of the world frame (metres, y up). The camera stands
near z = 0 and looks towards larger z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .classes import CEILING, FLOOR, WALL
from .draw import Draw
from .geometry import Builder


@dataclass
class Camera:
    position: np.ndarray  # float32 [3]
    axes: np.ndarray  # float32 [3,3], rows: right, up, backward (towards the viewer), in world coordinates
    tan_half: float  # tangent of half the field of view of a square image


class Layout:
    """A room while it is being furnished: its size, camera and solids, and the places already taken."""

    def __init__(self, draw: Draw):
        self.draw = draw
        self.builder = Builder()
        for class_id in (FLOOR, CEILING, WALL, WALL, WALL, WALL):
            self.builder.instance(class_id)
        self.width, self.height, self.depth = draw(3.0, 6.0), draw(2.35, 3.1), draw(3.8, 6.8)
        self.taken: list[tuple[float, float, float]] = []  # circles x, z, radius on the floor
        self.hung: list[list[tuple[float, float, float, float]]] = [[], [], []]  # rectangles per wall
        self.tops: list[
            tuple[float, float, float, float]
        ] = []  # x, y, z, radius of places to put small things
        self.seats: list[tuple[float, float, float, float]] = []  # x, height, z, yaw
        self.windows: list[tuple[int, float, float, float, float]] = []
        self.camera = self._camera()

    def _camera(self) -> Camera:
        draw = self.draw
        x, y, z = self.width * draw(0.15, 0.85), draw(0.95, 1.75), draw(0.25, 0.7)
        if draw.chance(0.15):
            y = min(self.height - 0.3, draw(1.9, 2.4))
        goal = (self.width * draw(0.35, 0.65), draw(0.75, 1.15), self.depth * draw(0.5, 0.75))
        self.yaw = math.atan2(goal[0] - x, goal[2] - z)
        pitch = math.atan2(goal[1] - y, math.hypot(goal[0] - x, goal[2] - z)) + draw(-0.05, 0.08)
        roll = draw(-0.03, 0.03)
        forward = np.array(
            [math.sin(self.yaw) * math.cos(pitch), math.sin(pitch), math.cos(self.yaw) * math.cos(pitch)]
        )
        right = np.array([-math.cos(self.yaw), 0.0, math.sin(self.yaw)])  # forward x up
        up = np.cross(right, forward)
        right, up = math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right
        self.eye = (x, z)
        self.half_view = math.radians(draw(48, 70)) / 2
        axes = np.stack([right, up, -forward]).astype(np.float32)
        return Camera(np.array([x, y, z], np.float32), axes, math.tan(self.half_view))

    # ---- floor

    def free(self, x: float, z: float, radius: float) -> bool:
        inside = radius <= x <= self.width - radius and radius <= z <= self.depth - radius
        gap = math.hypot(x - self.eye[0], z - self.eye[1]) - radius
        return inside and gap > 0.8 and all(math.hypot(x - a, z - b) > radius + r for a, b, r in self.taken)

    def seen(self, x: float, z: float, near: float, far: float) -> bool:
        dx, dz = x - self.eye[0], z - self.eye[1]
        turn = (math.atan2(dx, dz) - self.yaw + math.pi) % (2 * math.pi) - math.pi
        return abs(turn) < 0.85 * self.half_view and near < math.hypot(dx, dz) < far

    def spot(
        self, radius: float, near: float = 1.2, far: float = 9.0, tries: int = 24
    ) -> tuple[float, float] | None:
        """Reserve a free circle of the floor in front of the camera; return None if none was found."""
        for _ in range(tries):
            distance, turn = (
                self.draw(near, min(far, self.depth)),
                self.yaw + self.half_view * self.draw(-0.8, 0.8),
            )
            x, z = self.eye[0] + distance * math.sin(turn), self.eye[1] + distance * math.cos(turn)
            if self.free(x, z, radius):
                self.taken.append((x, z, radius))
                return x, z
        return None

    # ---- walls

    def on_wall(self, half: float, bottom: float, top: float, deep: float = 0.0, tries: int = 12):
        """Reserve a free place on a visible wall; return (wall, x, z, yaw) or None.

        Wall 0 is at x = 0, 1 at x = width, 2 at z = depth. With `deep` > 0 the piece also takes that depth of
        floor in front of the wall.
        """
        for _ in range(tries):
            wall = self.draw.pick((0, 1, 2, 2))
            length = self.width if wall == 2 else self.depth
            if length < 2 * half + 0.2:
                continue
            along = self.draw(half + 0.08, length - half - 0.08)
            x, z, yaw = (
                (deep / 2, along, math.pi / 2),
                (self.width - deep / 2, along, -math.pi / 2),
                (along, self.depth - deep / 2, math.pi),
            )[wall]
            rect = (along - half - 0.06, along + half + 0.06, bottom, top)
            clash = any(
                rect[0] < b and a < rect[1] and bottom < d and c < top for a, b, c, d in self.hung[wall]
            )
            if (
                clash
                or not self.seen(x, z, 1.3 + half, 12.0)
                or (deep and not self._clear(x, z, half, deep, wall))
            ):
                continue
            self.hung[wall].append(rect)
            if deep:
                n = max(1, math.ceil(half / deep * 1.2))
                for i in range(n):
                    shift = (2 * i + 1 - n) / n * half
                    dx, dz = (shift, 0.0) if wall == 2 else (0.0, shift)
                    self.taken.append((x + dx, z + dz, max(deep / 2, half / n)))
            return wall, x, z, yaw
        return None

    def _clear(self, x: float, z: float, half: float, deep: float, wall: int) -> bool:
        hx, hz = (half, deep / 2) if wall == 2 else (deep / 2, half)
        for a, b, r in (*self.taken, (*self.eye, 1.0)):
            if math.hypot(max(abs(a - x) - hx, 0), max(abs(b - z) - hz, 0)) < r:
                return False
        return True

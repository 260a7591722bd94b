"""Layout of one scene: the room, the camera, what stands where, and the light.

The room is the box [0, width] x [0, height] x [0, depth] of the world frame (metres, y up). The camera stands near z = 0 and
looks towards larger z. Things are placed one by one where they touch nothing placed before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import furniture
from .draw import Draw
from .figures import add_figure, sitting_pose, standing_pose
from .geometry import BALL, BOX, DRUM, Builder, Solids, yaw_axes
from .textures import Colour, Material, colour, finish, related, wood

CLASSES = ("wall", "floor", "ceiling", "door", "window", "picture", "rug", "table", "seat", "cabinet", "plant", "vase",
           "ball", "person")  # fmt: skip
"""Names of the semantic classes; the position is the class id."""
(WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, RUG, TABLE, SEAT, CABINET, PLANT, VASE, BALL_, PERSON) = range(14)
BACKGROUND = (WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, RUG)
"""Classes that belong to the room and are never salient."""


@dataclass
class Camera:
    position: np.ndarray  # float32 [3]
    axes: np.ndarray  # float32 [3,3], rows: right, up, backward (towards the viewer), in world coordinates
    tan_half: float  # tangent of half the field of view of a square image


@dataclass
class Light:
    position: np.ndarray  # float32 [3]
    colour: np.ndarray  # float32 [3]
    fades: bool  # falls off with the square of the distance; else it is the sun
    opening: tuple[float, ...] | None = None  # sun: axis, plane, and the window's ranges along the two other axes


@dataclass
class Scene:
    size: np.ndarray  # float32 [3], width, height, depth of the room
    surfaces: list[Material]  # floor, ceiling, walls x = 0, x = width, z = 0, z = depth
    solids: Solids
    classes: np.ndarray  # uint8 [instances]; the first six are the room's surfaces
    camera: Camera
    lights: list[Light]
    ambient: np.ndarray  # float32 [3]


class Layout:
    """State while a scene is being furnished."""

    def __init__(self, draw: Draw):
        self.draw = draw
        self.builder = Builder()
        for class_id in (FLOOR, CEILING, WALL, WALL, WALL, WALL):
            self.builder.instance(class_id)
        self.width, self.height, self.depth = draw(3.0, 6.0), draw(2.35, 3.1), draw(3.8, 6.8)
        self.taken: list[tuple[float, float, float]] = []  # circles x, z, radius on the floor
        self.hung: list[list[tuple[float, float, float, float]]] = [[], [], []]  # rectangles per wall
        self.tops: list[tuple[float, float, float, float]] = []  # x, y, z, radius of places to put small things
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
        forward = np.array([math.sin(self.yaw) * math.cos(pitch), math.sin(pitch), math.cos(self.yaw) * math.cos(pitch)])
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

    def spot(self, radius: float, near: float = 1.2, far: float = 9.0, tries: int = 24) -> tuple[float, float] | None:
        """A free circle of the floor before the camera, taken; None where none was found."""
        for _ in range(tries):
            distance, turn = self.draw(near, min(far, self.depth)), self.yaw + self.half_view * self.draw(-0.8, 0.8)
            x, z = self.eye[0] + distance * math.sin(turn), self.eye[1] + distance * math.cos(turn)
            if self.free(x, z, radius):
                self.taken.append((x, z, radius))
                return x, z
        return None

    # ---- walls

    def on_wall(self, half: float, bottom: float, top: float, deep: float = 0.0, tries: int = 12):
        """A free place on a visible wall: (wall 0 left, 1 right, 2 back, x, z, yaw of the wall's normal), taken; or None.

        `deep` > 0: the piece also needs that depth of floor before the wall.
        """
        for _ in range(tries):
            wall = self.draw.pick((0, 1, 2, 2))
            length = self.width if wall == 2 else self.depth
            if length < 2 * half + 0.2:
                continue
            along = self.draw(half + 0.08, length - half - 0.08)
            x, z, yaw = ((deep / 2, along, math.pi / 2), (self.width - deep / 2, along, -math.pi / 2),
                         (along, self.depth - deep / 2, math.pi))[wall]  # fmt: skip
            rect = (along - half - 0.06, along + half + 0.06, bottom, top)
            clash = any(rect[0] < b and a < rect[1] and bottom < d and c < top for a, b, c, d in self.hung[wall])
            if clash or not self.seen(x, z, 1.3 + half, 12.0) or (deep and not self._clear(x, z, half, deep, wall)):
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


def build_scene(draw: Draw) -> Scene:
    """Furnishes one random room. All randomness comes from `draw`."""
    room = Layout(draw)
    _add_wall_pieces(room)
    _add_furniture(room)
    _add_people(room)
    _add_small_things(room)
    surfaces = _surfaces(draw)
    lights, ambient = _lights(room)
    size = np.array([room.width, room.height, room.depth], np.float32)
    classes = np.array(room.builder.classes, np.uint8)
    return Scene(size, surfaces, room.builder.finish(), classes, room.camera, lights, ambient)


def _slab(room: Layout, class_id: int, place, half: tuple[float, float], middle: float, thick: float, material: Material) -> int:
    wall, x, z, yaw = place
    instance = room.builder.instance(class_id)
    room.builder.add(BOX, (x, middle, z), yaw_axes(yaw), (half[0], half[1], thick), instance, material, blocks=False)
    return instance


def _add_wall_pieces(room: Layout) -> None:
    draw = room.draw
    if draw.chance(0.5):
        half = (draw(0.4, 0.5), draw(1.0, 1.07))
        place = room.on_wall(half[0], 0.0, 2 * half[1])
        if place:
            tones = wood(draw) if draw.chance(0.5) else (colour(draw), colour(draw))
            options = {"panels": (draw.integer(1, 2), draw.integer(1, 3)), "inset": 0.1}
            skin = Material("panels", tones, size=half, options=options, gloss=0.15)
            instance = _slab(room, DOOR, place, half, half[1], 0.05, skin)
            _, x, z, yaw = place
            ax, _, az = yaw_axes(yaw)
            side = draw.sign() * (half[0] - 0.08)
            knob = (x + side * ax[0] + 0.08 * az[0], 1.0, z + side * ax[2] + 0.08 * az[2])
            metal = Material("plain", (draw.pick(((0.5, 0.48, 0.45), (0.6, 0.45, 0.15))),), gloss=0.8)
            room.builder.add(BALL, knob, yaw_axes(0.0), (0.035, 0.035, 0.035), instance, metal, blocks=False)
    for _ in range(draw.pick((0, 1, 1, 1, 2))):
        half = (draw(0.4, 0.95), draw(0.45, 0.7))
        middle = min(1.55, room.height - half[1] - 0.25)
        place = room.on_wall(half[0], middle - half[1], middle + half[1])
        if place:
            frame = (draw(0.5, 0.9),) * 3 if draw.chance(0.7) else wood(draw)[1]
            sky = draw.pick((((0.75, 0.85, 0.95), (0.25, 0.5, 0.9)), ((0.9, 0.75, 0.55), (0.5, 0.6, 0.85)), ((0.8,) * 3, (0.6, 0.65, 0.7))))
            land = draw.pick(((0.12, 0.22, 0.08), (0.25, 0.23, 0.22), (0.3, 0.2, 0.15)))
            pane = Material("window", (frame, *sky, land), size=half, glow=draw(0.1, 0.55), gloss=0.3, grain=0.0,
                            options={"bars": (draw.integer(1, 3), draw.integer(1, 2))}, seed=draw.integer(0, 999))  # fmt: skip
            _slab(room, WINDOW, place, half, middle, 0.03, pane)
            along = place[1] if place[0] == 2 else place[2]
            room.windows.append((place[0], along, half[0], middle, half[1]))
    for _ in range(draw.pick((0, 1, 1, 2, 3))):
        half = (draw(0.18, 0.5), draw(0.18, 0.42))
        middle = draw(1.4, 1.7)
        place = room.on_wall(half[0], middle - half[1], middle + half[1])
        if place:
            paints = (related(draw, colour(draw, (0, 0.5), (0.1, 0.9))), colour(draw), colour(draw), colour(draw))
            art = Material("picture", paints, size=half, seed=draw.integer(0, 999), options={"mount": draw.chance(0.5)}, grain=0.03)
            _slab(room, PICTURE, place, half, middle, 0.02, art)


def _add_furniture(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    if draw.chance(0.6):
        half, height = (draw(0.3, 0.75), draw(0.18, 0.25)), draw(0.45, 2.0)
        place = room.on_wall(half[0], 0.0, height, deep=2 * half[1] + 0.04)
        if place:
            _, x, z, yaw = place
            furniture.cabinet(builder, builder.instance(CABINET), draw, (x, 0.0, z), yaw, half, height)
            if height < 1.3:
                room.tops.append((x, height, z, half[1] * 0.9))
    if draw.chance(0.45):
        half = draw(0.42, 0.5) if draw.chance(0.5) else draw(0.75, 1.05)
        place = room.on_wall(half, 0.0, 0.9, deep=0.84)
        if place:
            _, x, z, yaw = place
            height = furniture.sofa(builder, builder.instance(SEAT), draw, (x, 0.0, z), yaw, half)
            room.seats.append((x + 0.05 * math.sin(yaw), height, z + 0.05 * math.cos(yaw), yaw))
    if draw.chance(0.62):
        half = (draw(0.35, 0.8), draw(0.3, 0.45))
        radius = math.hypot(*half) * 0.92
        place = room.spot(radius, near=1.6 + radius)
        if place:
            yaw = draw.pick((0.0, math.pi / 2)) + draw(-0.15, 0.15)
            height = furniture.table(builder, builder.instance(TABLE), draw, (place[0], 0.0, place[1]), yaw, half)
            room.tops.append((place[0], height, place[1], min(half) * 0.85))
            if draw.chance(0.4):
                reach = 0.3 * max(half)
                room.tops.append((place[0] + reach * math.cos(yaw), height, place[1] - reach * math.sin(yaw), min(half) * 0.4))
    for _ in range(draw.pick((0, 1, 1, 2))):
        place = room.spot(0.3, near=1.4)
        if place:
            yaw = draw(-math.pi, math.pi)
            height = furniture.chair(builder, builder.instance(SEAT), draw, (place[0], 0.0, place[1]), yaw)
            room.seats.append((place[0], height, place[1], yaw))
    if draw.chance(0.42):
        half, flat = (draw(0.5, 1.1), draw(0.6, 1.4)), 0.008
        distance, turn = draw(1.8, 3.6), room.yaw + room.half_view * draw(-0.5, 0.5)
        x, z = room.eye[0] + distance * math.sin(turn), room.eye[1] + distance * math.cos(turn)
        x = min(max(x, half[0]), room.width - half[0])
        z = min(max(z, half[1]), room.depth - half[1])
        paper = draw.pick(("plain", "stripes", "checker", "plaid", "dots", "clouds"))
        tones = (colour(draw), colour(draw), colour(draw))
        skin = Material("rug", tones, draw(0.12, 0.35), half, options={"paper": paper}, grain=0.12)
        instance = builder.instance(RUG)
        if draw.chance(0.3):
            radius = min(half)
            skin = Material("rug", tones, skin.period, (radius, radius), options={"paper": paper}, grain=0.12)
            builder.add(DRUM, (x, flat, z), yaw_axes(0.0), (radius, flat, radius), instance, skin, blocks=False)
        else:
            builder.add(BOX, (x, flat, z), yaw_axes(draw.pick((0.0, draw(-0.3, 0.3)))), (half[0], flat, half[1]), instance, skin, blocks=False)


def _add_people(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    seats = [seat for seat in room.seats if room.seen(seat[0], seat[2], 1.5, 6.0)]
    for _ in range(draw.pick((0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3))):
        height = draw(1.5, 1.9) if draw.chance(0.85) else draw(1.1, 1.4)
        if seats and draw.chance(0.5):
            x, seat, z, yaw = seats.pop()
            height = max(height, 1.45)
            forward = 0.06
            at = (x + forward * math.sin(yaw), 0.0, z + forward * math.cos(yaw))
            add_figure(builder, builder.instance(PERSON), draw, sitting_pose(draw), at, yaw, height, seat)
            room.taken.append((at[0] + 0.35 * math.sin(yaw), at[2] + 0.35 * math.cos(yaw), 0.3))
            continue
        place = room.spot(0.34, near=1.6, far=4.3, tries=40)
        if place:
            facing = math.atan2(room.eye[0] - place[0], room.eye[1] - place[1])
            yaw = facing + draw(-1.1, 1.1) if draw.chance(0.7) else draw(-math.pi, math.pi)
            add_figure(builder, builder.instance(PERSON), draw, standing_pose(draw), (place[0], 0.0, place[1]), yaw, height)


def _add_small_things(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    for x, y, z, radius in room.tops:
        kind = draw.pick((VASE, VASE, PLANT, BALL_, None))
        at = (x + draw(-0.1, 0.1) * radius, y, z + draw(-0.1, 0.1) * radius)
        if kind == VASE:
            furniture.vase(builder, builder.instance(VASE), draw, at, draw(0.2, 0.42))
        elif kind == PLANT:
            furniture.plant(builder, builder.instance(PLANT), draw, at, draw(0.3, 0.6))
        elif kind == BALL_:
            furniture.ball(builder, builder.instance(BALL_), draw, at, min(radius, draw(0.07, 0.15)))
    if draw.chance(0.35):
        place = room.spot(0.3, near=2.0)
        if place:
            furniture.plant(builder, builder.instance(PLANT), draw, (place[0], 0.0, place[1]), draw(0.7, 1.7))
    if draw.chance(0.25):
        place = room.spot(0.22, near=1.5)
        if place:
            furniture.vase(builder, builder.instance(VASE), draw, (place[0], 0.0, place[1]), draw(0.4, 0.85))
    for _ in range(draw.pick((0, 0, 1, 1, 2))):
        radius = draw(0.1, 0.32)
        place = room.spot(radius, near=1.1 + radius, far=5.0)
        if place:
            furniture.ball(builder, builder.instance(BALL_), draw, (place[0], 0.0, place[1]), radius)


def _surfaces(draw: Draw) -> list[Material]:
    offset, seed = (draw(0, 5), draw(0, 5)), draw.integer(0, 999)
    kind = draw.pick(("planks", "planks", "tiles", "tiles", "checker", "clouds", "plain"))
    if kind == "planks":
        floor = Material("planks", wood(draw), draw(0.09, 0.2), offset=offset, turned=draw.chance(0.5), seed=seed, gloss=draw(0, 0.3))
    else:
        base = colour(draw, (0, 0.45), (0.3, 0.9))
        tones: tuple[Colour, ...] = (base, related(draw, base, draw(0.1, 0.8)), related(draw, base, 0.6))
        floor = Material(kind, tones, draw(0.2, 0.6), offset=offset, seed=seed, gloss=draw(0, 0.35) if kind != "clouds" else 0.0)
    base = colour(draw, (0.0, draw(0.1, 0.5)), (0.45, 0.95))
    paper = draw.pick(("plain", "plain", "plain", "clouds", "stripes", "tiles", "dots", "plaid"))
    tones = (base, related(draw, base, draw(0.06, 0.35)), colour(draw, (0, 0.6), (0.25, 0.9)), colour(draw, (0, 0.3), (0.3, 0.95)))
    walls, grout = [], related(draw, base, draw(0.1, 0.5))
    for _ in range(4):
        dado = draw(0.8, 1.1) if draw.chance(0.25) else 0.0
        bond = {"paper": paper, "dado": dado, "aspect": 0.4 if draw.chance(0.5) else 1.0, "bond": draw.chance(0.5),
                "grout": grout}
        walls.append(Material("wall", tones, draw(0.12, 0.3), options=bond, seed=seed, grain=0.07))
    if draw.chance(0.25):  # one accent wall
        accent = finish(draw) if draw.chance(0.3) else Material("plain", (colour(draw),), grain=0.08)
        walls[draw.pick((0, 1, 3))] = accent
    light = draw(0.6, 0.92)
    ceiling = Material("plain", ((light, light * draw(0.93, 1.0), light * draw(0.82, 1.0)),), grain=0.04)
    return [floor, ceiling, *walls]


def _lights(room: Layout) -> tuple[list[Light], np.ndarray]:
    draw = room.draw
    warmth = draw(0.0, 1.0)
    tint = np.array([1.0, 0.97 - 0.12 * warmth, 0.93 - 0.33 * warmth], np.float32)
    spot = [room.width * draw(0.2, 0.8), room.height - draw(0.1, 0.5), room.depth * draw(0.2, 0.7)]
    lamp = Light(np.array(spot, np.float32), tint * np.float32(draw(2.0, 4.5)), True)
    lights = [lamp]
    ambient = np.array([1.0, 1.0, 1.0], np.float32) * np.float32(draw(0.25, 0.55)) * (tint + 1) / 2
    if room.windows and draw.chance(0.6):
        wall, along, half, middle, tall = draw.pick(room.windows)
        plane = (0.0, room.width, room.depth)[wall]
        outward = (-1.0, 1.0, 1.0)[wall]
        climb, side = draw(0.45, 0.9), draw(-0.5, 0.5)
        far = 9.0
        out, across = plane + outward * far * math.cos(climb) * math.cos(side), along + far * math.cos(climb) * math.sin(side)
        up = middle + far * math.sin(climb)
        place = (across, up, out) if wall == 2 else (out, up, across)
        opening = (2.0 if wall == 2 else 0.0, plane, along - half, along + half, middle - tall, middle + tall)
        sun = np.array([1.0, 0.9, 0.72], np.float32) * np.float32(draw(2.0, 4.5))
        lights.append(Light(np.array(place, np.float32), sun, False, opening))
        lamp.colour *= np.float32(draw(0.15, 0.9))
    return lights, ambient

"""One scene: a furnished room, its surfaces, its lights and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .draw import Draw
from .furnish import furnish
from .geometry import Solids
from .layout import Camera, Layout
from .materials import colour, finish, related, wood
from .textures import Material


@dataclass
class Light:
    position: np.ndarray  # float32 [3]
    colour: np.ndarray  # float32 [3]
    opening: tuple[float, ...] | None = None
    """None for a lamp, whose light fades with distance. For the sun, the window it shines through: axis and
    coordinate of the wall, range along the wall (2 numbers), range of heights (2 numbers), metres."""


@dataclass
class Scene:
    size: np.ndarray  # float32 [3], width, height, depth of the room
    surfaces: list[Material]  # floor, ceiling, walls x = 0, x = width, z = 0, z = depth
    solids: Solids
    classes: np.ndarray  # uint8 [instances]; the first six are the room's surfaces
    camera: Camera
    lights: list[Light]
    ambient: np.ndarray  # float32 [3]


def build_scene(draw: Draw) -> Scene:
    """Furnish one random room. All randomness comes from `draw`."""
    room = Layout(draw)
    furnish(room)
    surfaces = [_floor(draw), _ceiling(draw), *_walls(draw)]
    lights, ambient = _lights(room)
    size = np.array([room.width, room.height, room.depth], np.float32)
    classes = np.array(room.builder.classes, np.uint8)
    return Scene(size, surfaces, room.builder.finish(), classes, room.camera, lights, ambient)


def _floor(draw: Draw) -> Material:
    offset, seed = (draw(0, 5), draw(0, 5)), draw.integer(0, 999)
    kind = draw.pick(("planks", "planks", "tiles", "tiles", "checker", "clouds", "plain"))
    gloss = 0.0 if kind == "clouds" else draw(0, 0.35)
    if kind == "planks":
        return Material(kind, wood(draw), draw(0.09, 0.2), (1, 1), offset, draw.chance(0.5), seed, gloss)
    base = colour(draw, (0, 0.45), (0.3, 0.9))
    tones = (base, related(draw, base, draw(0.1, 0.8)), related(draw, base, 0.6))
    return Material(kind, tones, draw(0.2, 0.6), offset=offset, seed=seed, gloss=gloss)


def _ceiling(draw: Draw) -> Material:
    light = draw(0.6, 0.92)
    return Material("plain", ((light, light * draw(0.93, 1.0), light * draw(0.82, 1.0)),), grain=0.04)


def _walls(draw: Draw) -> list[Material]:
    """Draw four walls with one wallpaper; sometimes one wall has another."""
    base = colour(draw, (0.0, draw(0.1, 0.5)), (0.45, 0.95))
    lower, skirting = colour(draw, (0, 0.6), (0.25, 0.9)), colour(draw, (0, 0.3), (0.3, 0.95))
    tones = (base, related(draw, base, draw(0.06, 0.35)), lower, skirting)
    options = {
        "paper": draw.pick(("plain", "plain", "plain", "clouds", "stripes", "tiles", "dots", "plaid")),
        "dado": draw(0.8, 1.1) if draw.chance(0.3) else 0.0,
        "aspect": draw.pick((0.4, 1.0)),
        "bond": draw.chance(0.5),
        "grout": related(draw, base, draw(0.1, 0.5)),
    }
    paper = Material("wall", tones, draw(0.12, 0.3), seed=draw.integer(0, 999), grain=0.07, options=options)
    walls = [paper] * 4
    if draw.chance(0.25):
        accent = (
            finish(draw) if draw.chance(0.3) else Material("plain", (colour(draw, (0.1, 0.55)),), grain=0.08)
        )
        walls[draw.pick((0, 1, 3))] = accent
    return walls


def _lights(room: Layout) -> tuple[list[Light], np.ndarray]:
    """Draw a lamp below the ceiling, often a sun outside a window, and the colour of the ambient light."""
    draw = room.draw
    warmth = draw(0.0, 1.0)
    tint = np.array([1.0, 0.97 - 0.12 * warmth, 0.93 - 0.33 * warmth], np.float32)
    spot = [room.width * draw(0.2, 0.8), room.height - draw(0.1, 0.5), room.depth * draw(0.2, 0.7)]
    lamp = Light(np.array(spot, np.float32), tint * np.float32(draw(2.0, 4.5)))
    ambient = (tint + 1) * np.float32(draw(0.12, 0.27))
    if not room.windows or not draw.chance(0.6):
        return [lamp], ambient
    lamp.colour *= np.float32(draw(0.15, 0.9))
    return [lamp, _sun(room)], ambient


def _sun(room: Layout) -> Light:
    """Draw a light 9 m outside a window: its rays are nearly parallel, and float32 is precise enough."""
    draw = room.draw
    wall, along, half, middle, tall = draw.pick(room.windows)
    plane, outward = ((0.0, -1.0), (room.width, 1.0), (room.depth, 1.0))[wall]
    climb, side, far = draw(0.45, 0.9), draw(-0.5, 0.5), 9.0
    out = plane + outward * far * math.cos(climb) * math.cos(side)
    across = along + far * math.cos(climb) * math.sin(side)
    up = middle + far * math.sin(climb)
    place = (across, up, out) if wall == 2 else (out, up, across)
    opening = (2.0 if wall == 2 else 0.0, plane, along - half, along + half, middle - tall, middle + tall)
    light = np.array([1.0, 0.9, 0.72], np.float32) * np.float32(draw(2.0, 4.5))
    return Light(np.array(place, np.float32), light, opening)

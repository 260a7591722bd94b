"""Furnish a room: wall pieces, furniture, people and small objects, placed one by one at random."""

from __future__ import annotations

import math

from . import furniture
from .classes import BALL, CABINET, DOOR, PERSON, PICTURE, PLANT, RUG, SEAT, TABLE, VASE, WINDOW
from .figures import add_figure, sitting_pose, standing_pose
from .geometry import BALL as ROUND
from .geometry import BOX, DRUM, yaw_axes
from .layout import Layout
from .materials import colour, related, wood
from .textures import Material

_SKIES = (
    ((0.55, 0.7, 0.9), (0.14, 0.36, 0.8)),
    ((0.85, 0.6, 0.4), (0.4, 0.48, 0.75)),
    ((0.65, 0.67, 0.7), (0.45, 0.5, 0.58)),
)
_LANDS = ((0.12, 0.22, 0.08), (0.25, 0.23, 0.22), (0.3, 0.2, 0.15))
_METALS = ((0.5, 0.48, 0.45), (0.6, 0.45, 0.15))
_CROWD = (0,) * 5 + (1,) * 8 + (2,) * 4 + (3,) * 2  # number of people, by frequency


def furnish(room: Layout) -> None:
    """Fill `room` piece by piece; earlier pieces have the first choice of places."""
    draw = room.draw
    if draw.chance(0.5):
        _door(room)
    for _ in range(draw.pick((0, 1, 1, 1, 2))):
        _window(room)
    for _ in range(draw.pick((0, 1, 1, 2, 3))):
        _picture(room)
    if draw.chance(0.6):
        _cabinet(room)
    if draw.chance(0.45):
        _sofa(room)
    if draw.chance(0.62):
        _table(room)
    for _ in range(draw.pick((0, 1, 1, 2))):
        _chair(room)
    if draw.chance(0.42):
        _rug(room)
    seats = [seat for seat in room.seats if room.seen(seat[0], seat[2], 1.5, 6.0)]
    for _ in range(draw.pick(_CROWD)):
        _person(room, seats)
    for top in room.tops:
        _thing_on(room, *top)
    _things_on_floor(room)


def _panel(room: Layout, class_id: int, place, half, middle: float, thick: float, material: Material) -> int:
    """Add a flat box on a wall at the height `middle` and return its instance."""
    _, x, z, yaw = place
    instance = room.builder.instance(class_id)
    size = (half[0], half[1], thick)
    room.builder.add(BOX, (x, middle, z), yaw_axes(yaw), size, instance, material, blocks=False)
    return instance


def _door(room: Layout) -> None:
    draw = room.draw
    half = (draw(0.4, 0.5), draw(1.0, 1.07))
    place = room.on_wall(half[0], 0.0, 2 * half[1])
    if not place:
        return
    tones = wood(draw) if draw.chance(0.5) else (colour(draw), colour(draw))
    options = {"panels": (draw.integer(1, 2), draw.integer(1, 3)), "inset": 0.1}
    skin = Material("panels", tones, size=half, options=options, gloss=0.15)
    instance = _panel(room, DOOR, place, half, half[1], 0.05, skin)
    _, x, z, yaw = place
    ax, _, az = yaw_axes(yaw)
    side = draw.sign() * (half[0] - 0.08)
    knob = (x + side * ax[0] + 0.08 * az[0], 1.0, z + side * ax[2] + 0.08 * az[2])
    metal = Material("plain", (draw.pick(_METALS),), gloss=0.8)
    room.builder.add(ROUND, knob, yaw_axes(0.0), (0.035, 0.035, 0.035), instance, metal, blocks=False)


def _window(room: Layout) -> None:
    draw = room.draw
    half = (draw(0.4, 0.95), draw(0.45, 0.7))
    middle = min(1.55, room.height - half[1] - 0.25)
    place = room.on_wall(half[0], middle - half[1], middle + half[1])
    if not place:
        return
    grey = draw(0.5, 0.9)
    frame = (grey, grey, grey) if draw.chance(0.7) else wood(draw)[1]
    colours = (frame, *draw.pick(_SKIES), draw.pick(_LANDS))
    options = {"bars": (draw.integer(1, 3), draw.integer(1, 2))}
    glow, seed = draw(0.05, 0.5), draw.integer(0, 999)
    pane = Material("window", colours, size=half, seed=seed, gloss=0.3, glow=glow, grain=0.0, options=options)
    _panel(room, WINDOW, place, half, middle, 0.03, pane)
    along = place[1] if place[0] == 2 else place[2]
    room.windows.append((place[0], along, half[0], middle, half[1]))


def _picture(room: Layout) -> None:
    draw = room.draw
    half, middle = (draw(0.18, 0.5), draw(0.18, 0.42)), draw(1.4, 1.7)
    place = room.on_wall(half[0], middle - half[1], middle + half[1])
    if place:
        frame = related(draw, colour(draw, (0, 0.5), (0.1, 0.9)))
        paints = (frame, colour(draw), colour(draw), colour(draw))
        options = {"mount": draw.chance(0.5)}
        art = Material("picture", paints, size=half, seed=draw.integer(0, 999), grain=0.03, options=options)
        _panel(room, PICTURE, place, half, middle, 0.02, art)


def _cabinet(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    half, height = (draw(0.3, 0.75), draw(0.18, 0.25)), draw(0.45, 2.0)
    place = room.on_wall(half[0], 0.0, height, deep=2 * half[1] + 0.04)
    if place:
        _, x, z, yaw = place
        furniture.cabinet(builder, builder.instance(CABINET), draw, (x, 0.0, z), yaw, half, height)
        if height < 1.3:
            room.tops.append((x, height, z, half[1] * 0.9))


def _sofa(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    half = draw(0.42, 0.5) if draw.chance(0.5) else draw(0.75, 1.05)
    place = room.on_wall(half, 0.0, 0.9, deep=0.84)
    if place:
        _, x, z, yaw = place
        height = furniture.sofa(builder, builder.instance(SEAT), draw, (x, 0.0, z), yaw, half)
        room.seats.append((x + 0.05 * math.sin(yaw), height, z + 0.05 * math.cos(yaw), yaw))


def _table(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    half = (draw(0.35, 0.8), draw(0.3, 0.45))
    radius = math.hypot(*half) * 0.92
    place = room.spot(radius, near=1.6 + radius)
    if place:
        x, z = place
        yaw = draw.pick((0.0, math.pi / 2)) + draw(-0.15, 0.15)
        height = furniture.table(builder, builder.instance(TABLE), draw, (x, 0.0, z), yaw, half)
        room.tops.append((x, height, z, min(half) * 0.85))


def _chair(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    place = room.spot(0.3, near=1.4)
    if place:
        x, z = place
        yaw = draw(-math.pi, math.pi)
        height = furniture.chair(builder, builder.instance(SEAT), draw, (x, 0.0, z), yaw)
        room.seats.append((x, height, z, yaw))


def _rug(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    half, flat = (draw(0.5, 1.1), draw(0.6, 1.4)), 0.008
    distance, turn = draw(1.8, 3.6), room.yaw + room.half_view * draw(-0.5, 0.5)
    x, z = room.eye[0] + distance * math.sin(turn), room.eye[1] + distance * math.cos(turn)
    x = min(max(x, half[0]), room.width - half[0])
    z = min(max(z, half[1]), room.depth - half[1])
    round_ = draw.chance(0.3)
    if round_:
        half = (min(half), min(half))
    paper = draw.pick(("plain", "stripes", "checker", "plaid", "dots", "clouds"))
    tones = (colour(draw), colour(draw), colour(draw))
    options = {"paper": paper, "round": round_}
    skin = Material("rug", tones, draw(0.12, 0.35), half, options=options, grain=0.12)
    yaw = draw.pick((0.0, draw(-0.3, 0.3)))
    size = (half[0], flat, half[1])
    shape = DRUM if round_ else BOX
    builder.add(shape, (x, flat, z), yaw_axes(yaw), size, builder.instance(RUG), skin, blocks=False)


def _person(room: Layout, seats: list) -> None:
    """Add a person on one of `seats` (removed from the list), or standing."""
    draw, builder = room.draw, room.builder
    height = draw(1.5, 1.9) if draw.chance(0.85) else draw(1.1, 1.4)
    if seats and draw.chance(0.5):
        x, seat, z, yaw = seats.pop()
        ahead = (math.sin(yaw), math.cos(yaw))
        at, height = (x + 0.06 * ahead[0], 0.0, z + 0.06 * ahead[1]), max(height, 1.45)
        room.taken.append((at[0] + 0.35 * ahead[0], at[2] + 0.35 * ahead[1], 0.3))  # the knees
        add_figure(builder, builder.instance(PERSON), draw, sitting_pose(draw), at, yaw, height, seat)
        return
    place = room.spot(0.34, near=1.6, far=4.3, tries=40)
    if place:
        x, z = place
        facing = math.atan2(room.eye[0] - x, room.eye[1] - z)
        yaw = facing + draw(-1.1, 1.1) if draw.chance(0.7) else draw(-math.pi, math.pi)
        add_figure(builder, builder.instance(PERSON), draw, standing_pose(draw), (x, 0.0, z), yaw, height)


def _thing_on(room: Layout, x: float, y: float, z: float, radius: float) -> None:
    """Put a vase, a plant, a ball or nothing on a surface at (x, y, z) of this radius, metres."""
    draw, builder = room.draw, room.builder
    kind = draw.pick((VASE, VASE, PLANT, BALL, None))
    at = (x + draw(-0.4, 0.4) * radius, y, z + draw(-0.4, 0.4) * radius)
    if kind == VASE:
        furniture.vase(builder, builder.instance(VASE), draw, at, draw(0.2, 0.42))
    elif kind == PLANT:
        furniture.plant(builder, builder.instance(PLANT), draw, at, draw(0.3, 0.6))
    elif kind == BALL:
        furniture.ball(builder, builder.instance(BALL), draw, at, min(0.5 * radius, draw(0.07, 0.15)))


def _things_on_floor(room: Layout) -> None:
    draw, builder = room.draw, room.builder
    place = room.spot(0.3, near=2.0) if draw.chance(0.35) else None
    if place:
        at = (place[0], 0.0, place[1])
        furniture.plant(builder, builder.instance(PLANT), draw, at, draw(0.7, 1.7))
    place = room.spot(0.22, near=1.5) if draw.chance(0.25) else None
    if place:
        at = (place[0], 0.0, place[1])
        furniture.vase(builder, builder.instance(VASE), draw, at, draw(0.4, 0.85))
    for _ in range(draw.pick((0, 0, 1, 1, 2))):
        radius = draw(0.1, 0.32)
        place = room.spot(radius, near=1.1 + radius, far=5.0)
        if place:
            furniture.ball(builder, builder.instance(BALL), draw, (place[0], 0.0, place[1]), radius)

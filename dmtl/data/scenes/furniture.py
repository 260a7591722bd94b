"""Furniture and small objects. Each function adds one piece and returns what is needed to put others on it.

`at` = (x, y, z) is the centre of the piece's footprint, on the floor or whatever carries it. `yaw` turns its
front, in radians (0: +z). Lengths are in metres.
"""

from __future__ import annotations

import math

from .draw import Draw
from .geometry import BALL, BOX, DRUM, LIMB, Builder, yaw_axes
from .materials import colour, fabric, finish, related, wood
from .textures import Material

_UPRIGHT = yaw_axes(0.0)


class Piece:
    """Add solids in the frame of one piece of furniture."""

    def __init__(self, builder: Builder, instance: int, at, yaw: float):
        self.builder, self.instance, self.at = builder, instance, at
        self.axes = yaw_axes(yaw)

    def world(self, p):
        ax, _, az = self.axes
        return (
            self.at[0] + p[0] * ax[0] + p[2] * az[0],
            self.at[1] + p[1],
            self.at[2] + p[0] * ax[2] + p[2] * az[2],
        )

    def box(self, p, half, material, blocks=True):
        self.builder.add(BOX, self.world(p), self.axes, half, self.instance, material, blocks=blocks)

    def drum(self, p, radius, half_height, material, taper=0.0, blocks=True):
        half = (radius, half_height, radius)
        self.builder.add(
            DRUM, self.world(p), self.axes, half, self.instance, material, 0, (taper, 0.0, 0.0), blocks
        )

    def ball(self, p, half, material, blocks=True):
        self.builder.add(BALL, self.world(p), self.axes, half, self.instance, material, blocks=blocks)

    def legs(self, x, z, height, thick, material, round_):
        for sx in (-x, x):
            for sz in (-z, z):
                if round_:
                    self.drum((sx, height / 2, sz), thick, height / 2, material, blocks=False)
                else:
                    self.box((sx, height / 2, sz), (thick, height / 2, thick), material, blocks=False)


def table(builder: Builder, instance: int, draw: Draw, at, yaw: float, half: tuple[float, float]) -> float:
    """Add a table of half extents `half` (x, z), on four legs or a pillar; return its height."""
    piece = Piece(builder, instance, at, yaw)
    height = draw(0.38, 0.5) if draw.chance(0.3) else draw(0.68, 0.8)
    top, under = finish(draw), finish(draw)
    thick = draw(0.015, 0.035)
    if draw.chance(0.35):
        radius = min(half)
        piece.drum((0, height - thick, 0), radius, thick, top)
        piece.drum((0, height / 2, 0), draw(0.03, 0.07), height / 2 - thick, under, blocks=False)
        piece.drum((0, 0.02, 0), radius * 0.55, 0.02, under, blocks=False)
        return height
    piece.box((0, height - thick, 0), (half[0], thick, half[1]), top)
    if draw.chance(0.5):
        piece.box(
            (0, height - 2 * thick - 0.04, 0), (half[0] - 0.05, 0.04, half[1] - 0.05), under, blocks=False
        )
    piece.legs(half[0] - 0.06, half[1] - 0.06, height - 2 * thick, draw(0.02, 0.04), under, draw.chance(0.4))
    return height


def chair(builder: Builder, instance: int, draw: Draw, at, yaw: float) -> float:
    """Add a chair or a stool; return the height of its seat."""
    piece = Piece(builder, instance, at, yaw)
    height, wide = draw(0.42, 0.5), draw(0.2, 0.24)
    frame = finish(draw)
    seat = fabric(draw) if draw.chance(0.5) else frame
    kind = draw.pick(("slats", "panel", "panel", "stool", "round"))
    if kind in ("stool", "round"):
        piece.drum((0, height - 0.03, 0), wide, 0.03, seat)
    else:
        piece.box((0, height - 0.025, 0), (wide, 0.025, wide), seat)
    piece.legs(wide - 0.04, wide - 0.04, height - 0.05, 0.02, frame, draw.chance(0.5))
    back = draw(0.4, 0.55)
    if kind == "slats":
        for x in (-wide + 0.02, wide - 0.02):
            piece.box((x, height + back / 2, -wide + 0.02), (0.02, back / 2, 0.02), frame, blocks=False)
        for y in (0.45, 0.85):
            piece.box((0, height + back * y, -wide + 0.02), (wide - 0.04, 0.05, 0.012), frame, blocks=False)
    elif kind == "panel":
        piece.box((0, height + back / 2, -wide + 0.02), (wide, back / 2, 0.02), seat)
    elif kind == "round":
        piece.box((0, height + back / 2, -wide + 0.03), (wide * 0.75, back / 2, 0.015), frame)
    return height


def sofa(builder: Builder, instance: int, draw: Draw, at, yaw: float, half_width: float) -> float:
    """Add an armchair or sofa, depth 0.8 m; return the height of its seat."""
    piece = Piece(builder, instance, at, yaw)
    cloth = fabric(draw, period=0.15)
    height, arm, deep = draw(0.38, 0.45), draw(0.07, 0.11), 0.4
    piece.box((0, height / 2, 0), (half_width - 0.02, height / 2, deep - 0.02), cloth)
    piece.box((0, draw(0.75, 0.9) / 2, -deep + 0.1), (half_width - 0.02, 0.42, 0.1), cloth)
    for x in (-half_width + arm, half_width - arm):
        piece.box((x, 0.3, 0), (arm, 0.3, deep), cloth)
    if draw.chance(0.6):
        pillow = fabric(draw)
        x = draw.sign() * (half_width - 2 * arm - 0.2) * draw(0.6, 1.0)
        piece.ball((x, height + 0.19, -deep + 0.27), (0.2, 0.19, 0.09), pillow, blocks=False)
    return height


def cabinet(
    builder: Builder, instance: int, draw: Draw, at, yaw: float, half: tuple[float, float], height: float
) -> None:
    """Add drawers, a cupboard or a bookshelf of half extents (x, z); doors and books are only its texture."""
    piece = Piece(builder, instance, at, yaw)
    body = finish(draw)
    plinth = 0.04 if draw.chance(0.6) else 0.0
    size = (half[0], (height - plinth) / 2)
    rows = max(1, round(height / draw(0.28, 0.45)))
    if draw.chance(0.4) and height > 0.8:
        books = (body.colours[0], colour(draw), colour(draw), colour(draw))
        front = Material("shelf", books, size=size, options={"panels": (1, rows)}, seed=draw.integer(0, 999))
    else:
        columns = max(1, round(2 * half[0] / draw(0.4, 0.7)))
        tones = (body.colours[0], related(draw, body.colours[0], 0.15), related(draw, body.colours[0], 2.0))
        options = {"panels": (columns, rows), "inset": draw(0.015, 0.05), "knobs": draw.chance(0.7)}
        front = Material("panels", tones, size=size, options=options, gloss=body.gloss)
    middle = plinth + size[1]
    piece.box((0, middle, 0), (half[0], size[1], half[1]), body)
    piece.box((0, middle, half[1]), (half[0] - 0.005, size[1] - 0.005, 0.012), front, blocks=False)
    if plinth:
        piece.box((0, plinth / 2, 0), (half[0] - 0.03, plinth / 2, half[1] - 0.03), body, blocks=False)


def plant(builder: Builder, instance: int, draw: Draw, at, height: float) -> None:
    """Add a pot with leaves: a fan of blades, or a bush."""
    piece = Piece(builder, instance, at, 0.0)
    pot_height = height * draw(0.22, 0.34)
    radius = pot_height * draw(0.45, 0.65)
    pot = Material(
        "stripes" if draw.chance(0.3) else "plain",
        (colour(draw), colour(draw)),
        0.06,
        turned=True,
        gloss=draw(0, 0.4),
    )
    piece.drum((0, pot_height / 2, 0), radius, pot_height / 2, pot, draw(0.1, 0.25))
    hue = draw.pick(
        ((0.13, 0.3, 0.08), (0.2, 0.36, 0.1), (0.08, 0.22, 0.12), (0.35, 0.33, 0.1), (0.36, 0.12, 0.13))
    )
    dark = (0.45 * hue[0], 0.45 * hue[1], 0.45 * hue[2])
    leaf = Material("clouds", (hue, dark), 0.04, gloss=0.08, grain=0.25)
    count = draw.integer(7, 10)
    crown = height - pot_height
    if draw.chance(0.5):
        for n in range(count):
            angle, tilt = 2.4 * n, draw(0.2, 0.9)
            length = crown * draw(0.75, 1.0)
            tip = (
                length * math.sin(tilt) * math.cos(angle),
                pot_height + length * math.cos(tilt),
                length * math.sin(tilt) * math.sin(angle),
            )
            axis = (tip[0], 0.0, tip[2])
            front = (-axis[0], 0.4, -axis[2])
            wide = crown * draw(0.07, 0.11)
            start = (tip[0] * 0.08, pot_height - 0.02, tip[2] * 0.08)
            builder.limb(
                piece.world(start), piece.world(tip), wide * 0.6, wide * 0.35, instance, leaf, 0, front, 0.18
            )
    else:
        trunk = Material("plain", (wood(draw)[1],))
        builder.limb(at_up(at, pot_height - 0.02), at_up(at, height * 0.75), 0.02, 0.012, instance, trunk)
        count += 4
        for n in range(count):
            angle, level = 2.4 * n, (n + 0.5) / count
            size = crown * draw(0.12, 0.2)
            out = crown * 0.3 * math.sin(math.pi * (0.25 + 0.65 * level))
            p = (out * math.cos(angle), pot_height + crown * (0.3 + 0.6 * level), out * math.sin(angle))
            piece.ball(p, (size, size * draw(0.6, 0.9), size), leaf, blocks=n % 3 == 0)


def at_up(at, height: float):
    return (at[0], at[1] + height, at[2])


def vase(builder: Builder, instance: int, draw: Draw, at, height: float) -> None:
    """Add a turned vessel: foot, belly, neck and lip."""
    base = colour(draw)
    glaze = Material(
        draw.pick(("plain", "stripes", "marble")),
        (base, related(draw, base, 1.0)),
        height * 0.25,
        gloss=draw(0.2, 0.7),
        turned=True,
    )
    belly = height * draw(0.2, 0.3)
    low = draw(0.3, 0.5) * height
    neck = belly * draw(0.35, 0.6)
    builder.add(BALL, at_up(at, low), _UPRIGHT, (belly, low * draw(0.85, 0.98), belly), instance, glaze)
    builder.add(
        LIMB,
        at_up(at, low),
        _UPRIGHT,
        (1, 1, 1),
        instance,
        glaze,
        0,
        (height * 0.8 - low, belly * 0.9, neck),
        False,
    )
    builder.add(
        DRUM,
        at_up(at, height * 0.88),
        _UPRIGHT,
        (neck, height * 0.12, neck),
        instance,
        glaze,
        0,
        (draw(0.05, 0.3), 0, 0),
        False,
    )
    builder.add(
        DRUM, at_up(at, 0.012), _UPRIGHT, (belly * 0.6, 0.012, belly * 0.6), instance, glaze, blocks=False
    )


def ball(builder: Builder, instance: int, draw: Draw, at, radius: float) -> None:
    base = colour(draw, (0.2, 0.9))
    kind = draw.pick(("plain", "stripes", "checker", "dots"))
    skin = Material(kind, (base, colour(draw)), radius * draw(0.5, 1.0), gloss=draw(0.05, 0.6))
    turn = yaw_axes(draw(0, 6.3))
    tilt = draw(-1.2, 1.2)
    c, s = math.cos(tilt), math.sin(tilt)
    axes = [
        [c * x + s * y for x, y in zip(turn[0], turn[1])],
        [c * y - s * x for x, y in zip(turn[0], turn[1])],
        turn[2],
    ]
    builder.add(BALL, at_up(at, radius), axes, (radius, radius, radius), instance, skin)

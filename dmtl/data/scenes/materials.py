"""Random colours and materials, drawn so that colour alone does not reveal the class."""

from __future__ import annotations

import colorsys

from .draw import Draw
from .textures import Colour, Material


def colour(
    draw: Draw, saturation: tuple[float, float] = (0.1, 0.75), value: tuple[float, float] = (0.25, 0.95)
) -> Colour:
    """Draw a colour from ranges of HSV as displayed, and return it in linear light."""
    rgb = colorsys.hsv_to_rgb(draw(), draw(*saturation), draw(*value))
    red, green, blue = (c**2.2 for c in rgb)
    return red, green, blue


def related(draw: Draw, base: Colour, contrast: float = 0.5) -> Colour:
    """Draw a colour of a nearby hue, lighter or darker than `base` by about the factor 1 +- contrast."""
    factor = 1 + contrast if draw() < 0.5 else 1 / (1 + contrast)
    red, green, blue = (min(0.95, c * factor * draw(0.88, 1.12)) for c in base)
    return red, green, blue


def wood(draw: Draw) -> tuple[Colour, Colour]:
    base = draw.pick(
        ((0.62, 0.43, 0.25), (0.45, 0.28, 0.16), (0.72, 0.56, 0.38), (0.3, 0.19, 0.13), (0.66, 0.62, 0.56))
    )
    tone = draw(0.85, 1.2)
    light = tuple(min(1.0, c * tone) ** 2.2 for c in base)
    return light, tuple(c * draw(0.45, 0.7) for c in light)


def fabric(draw: Draw, period: float = 0.08, plain: float = 0.5) -> Material:
    """Draw a cloth for clothes or upholstery."""
    base = colour(draw)
    other = related(draw, base, 0.8) if draw.chance(0.6) else colour(draw)
    kind = "plain" if draw.chance(plain) else draw.pick(("stripes", "plaid", "checker", "dots"))
    return Material(kind, (base, other), period * draw(0.7, 1.6), turned=draw.chance(0.6), grain=0.12)


def finish(draw: Draw) -> Material:
    """Draw a furniture material: wood, lacquer or stone."""
    offset = (draw(0, 5), draw(0, 5))
    if draw.chance(0.55):
        return Material(
            "planks",
            wood(draw),
            draw(0.12, 0.3),
            offset=offset,
            turned=draw.chance(0.5),
            seed=draw.integer(0, 999),
            gloss=draw(0, 0.25),
        )
    base = colour(draw, (0.0, 0.7), (0.2, 0.95))
    if draw.chance(0.25):
        return Material(
            "marble", (base, related(draw, base, 0.9)), draw(0.3, 0.8), offset=offset, gloss=draw(0.1, 0.5)
        )
    return Material("plain", (base,), offset=offset, gloss=draw(0, 0.5), grain=0.03)

"""Procedural patterns over surface coordinates (u, v) in metres.

A pattern is called with (material, u_N, v_N, width_N) and returns linear light in [0, 1], float32 [3,N].
`width` is the side of a pixel's footprint on the surface in metres. Patterns are averaged over the footprint,
so fine ones fade to their mean instead of aliasing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .draw import Draw

Colour = tuple[float, float, float]
_TILE = 512  # samples per side of the noise tile


@dataclass(frozen=True)
class Material:
    pattern: str = "plain"
    colours: tuple[Colour, ...] = ((0.5, 0.5, 0.5),)
    period: float = 0.3  # metres
    size: tuple[float, float] = (1.0, 1.0)  # half extents of a panel, metres (picture, window, door, shelf)
    offset: tuple[float, float] = (0.0, 0.0)  # where the pattern starts, metres
    turned: bool = False  # swaps u and v
    seed: int = 0
    gloss: float = 0.0  # strength of the highlight
    glow: float = 0.0  # emitted light, in units of the albedo
    grain: float = 0.06  # relative roughness of the tone
    options: dict = field(default_factory=dict, hash=False)


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """Return periodic 1/f noise, float32 [512,512], normalised to mean 0 and variance 1, then squashed to
    0..1."""
    white = Draw(0, 2**63, 0).bell((_TILE, _TILE))
    f = np.fft.fftfreq(_TILE) * _TILE
    radius = np.hypot(f[:, None], f[None, : _TILE // 2 + 1])
    spectrum = np.fft.rfft2(white) / np.maximum(radius, 1) ** 1.3 * (radius >= 2)
    noise = np.fft.irfft2(spectrum, (_TILE, _TILE))
    return (0.5 + 0.5 * np.tanh(0.8 * noise / noise.std())).astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the noise in 0..1 at (u, v); it has period 1 in both directions."""
    i = (u * _TILE).astype(np.int32) & (_TILE - 1)
    j = (v * _TILE).astype(np.int32) & (_TILE - 1)
    return noise_tile()[i, j]


def cell_tone(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    """Return a value in 0..1 for each integer cell (i, j)."""
    return noise(i * 0.6180340 + (seed % 97) * 0.013, j * 0.7548777 + (seed % 89) * 0.029)


def pulse(x: np.ndarray, width: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Return the mean over [x - width/2, x + width/2] of a square wave.

    The wave has period 1; it is 1 on the first `share` of a period and 0 on the rest.
    """
    width = np.maximum(width, np.float32(1e-3))

    def integral(y):
        whole = np.floor(y)
        return whole * np.float32(share) + np.minimum(y - whole, np.float32(share))

    return (integral(x + width / 2) - integral(x - width / 2)) / width


def step(x: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Return the mean over the footprint of a step from 0 to 1 at x = 0."""
    return np.clip(x / np.maximum(width, np.float32(1e-4)) + np.float32(0.5), 0, 1)


def mix(a, b, share: np.ndarray) -> np.ndarray:
    """Return (1 - share) a + share b for colours ([3] or [3,N]) a and b."""
    a, b = (c if isinstance(c, np.ndarray) else np.array(c, np.float32)[:, None] for c in (a, b))
    return a + (b - a) * share


def albedo(material: Material, u: np.ndarray, v: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return the reflectance of `material` at the surface points (u, v), float32 [3,N]."""
    if material.turned:
        u, v = v, u
    u, v = u + np.float32(material.offset[0]), v + np.float32(material.offset[1])
    colour = _PATTERNS[material.pattern](material, u, v, width)
    if material.grain:
        colour = colour * (1 + np.float32(2 * material.grain) * (noise(u * 0.4, v * 0.4) - np.float32(0.5)))
    return colour.astype(np.float32)


def _plain(m, u, v, w):
    return np.broadcast_to(np.array(m.colours[0], np.float32)[:, None], (3, len(u)))


def _stripes(m, u, v, w):
    return mix(m.colours[0], m.colours[1], pulse(u / m.period, w / m.period, m.options.get("share", 0.5)))


def _checker(m, u, v, w):
    a, b = pulse(u / m.period, w / m.period), pulse(v / m.period, w / m.period)
    return mix(m.colours[0], m.colours[1], a + b - 2 * a * b)


def _plaid(m, u, v, w):
    a, b = pulse(u / m.period, w / m.period, 0.35), pulse(v / m.period, w / m.period, 0.35)
    return mix(m.colours[0], m.colours[1], (a + b) / 2)


def _dots(m, u, v, w):
    row = np.floor(v / m.period)
    x = (u / m.period + 0.5 * (row % 2)) % 1 - 0.5
    y = (v / m.period) % 1 - 0.5
    inside = step(0.3 - np.sqrt(x * x + y * y), w / m.period)
    fade = np.clip(w / m.period, 0, 1)
    return mix(m.colours[0], m.colours[1], inside * (1 - fade) + 0.28 * fade)


def _planks(m, u, v, w):
    row = np.floor(u / m.period)
    shift = cell_tone(row, 0 * row, m.seed)
    length = 7 * m.period
    tone = cell_tone(row, np.floor(v / length + 3 * shift), m.seed)
    grain = noise(v * 0.15 + shift * 7, u * 1.5)
    gap = np.maximum(pulse(u / m.period, w / m.period, 0.05), pulse(v / length + 3 * shift, w / length, 0.01))
    return mix(m.colours[0], m.colours[1], 0.65 * tone + 0.35 * grain) * (1 - 0.55 * gap)


def _tiles(m, u, v, w):
    x, y = u / m.period, v / (m.period * m.options.get("aspect", 1.0))
    if m.options.get("bond"):
        x = x + 0.5 * (np.floor(y) % 2)
    tone = cell_tone(np.floor(x), np.floor(y), m.seed)
    grout = np.maximum(
        pulse(x, w / m.period, 0.05), pulse(y, w / m.period, 0.05 / m.options.get("aspect", 1.0))
    )
    return mix(mix(m.colours[0], m.colours[1], 0.8 * tone), m.options.get("grout", m.colours[-1]), grout)


def _clouds(m, u, v, w):
    k = 0.35 / m.period
    return mix(m.colours[0], m.colours[1], noise(u * k * 0.3, v * k * 0.3))


def _marble(m, u, v, w):
    k = 0.1 / m.period
    vein = 1 - np.abs(2 * noise(u * k, v * k) - 1)
    return mix(m.colours[0], m.colours[1], vein**6)


def _wall(m, u, v, w):
    """Paint a lower and an upper colour or paper, with a skirting board; v is the height above the floor."""
    upper = _PATTERNS[m.options["paper"]](m, u, v, w)
    dado = m.options["dado"]
    if dado > 0:
        upper = mix(m.colours[2], upper, step(v - dado, w))
    return mix(m.colours[3], upper, step(v - 0.1, w)) * (1 - 0.3 * (step(v - 0.1, w) - step(v - 0.12, w)))


def _inset(m, u, v):
    """Return the distance to the rim of a panel in metres."""
    return np.minimum(m.size[0] - np.abs(u), m.size[1] - np.abs(v))


def _frame(m, u, v, w, inner, border):
    """Frame `inner` with a border of the first colour."""
    return mix(m.colours[0], inner, step(_inset(m, u, v) - border, w))


def _picture(m, u, v, w):
    a, b = u / m.size[0], v / m.size[1]
    kind = m.seed % 4
    if kind == 0:  # hills under a sky
        ridge = 0.22 * np.sin(2.3 * a + m.seed) + 0.09 * np.sin(5.9 * a + 2.0 * m.seed) - 0.15
        art = mix(m.colours[2], m.colours[1], np.clip(0.5 + b / 2, 0, 1))
        art = mix(art, m.colours[3], step(ridge - b, w / m.size[1]))
    elif kind == 1:  # blots
        level = noise(a * 0.025 + m.seed * 0.07, b * 0.025 + 0.2)
        art = mix(
            mix(m.colours[1], m.colours[2], step(level - 0.4, 0.08 + 0 * w)),
            m.colours[3],
            step(level - 0.65, 0.08 + 0 * w),
        )
    elif kind == 2:  # discs
        art = np.broadcast_to(np.array(m.colours[1], np.float32)[:, None], (3, len(u)))
        for n, (x, y, r) in enumerate(((-0.3, 0.2, 0.4), (0.3, -0.25, 0.5))):
            inside = step(r - np.hypot(a - x, b - y), w / m.size[0])
            art = mix(art, m.colours[2 + n], inside)
    else:  # bars
        art = mix(
            mix(m.colours[1], m.colours[2], pulse(a * 1.4, w / m.size[0], 0.4)),
            m.colours[3],
            pulse(b * 0.9, w / m.size[1], 0.3),
        )
    if m.options["mount"]:
        art = _frame(m, u, v, w, mix((0.8, 0.78, 0.72), art, step(_inset(m, u, v) - 0.09, w)), 0.03)
    return _frame(m, u, v, w, art, 0.03)


def _window(m, u, v, w):
    """Paint sky, clouds, a skyline and a lawn seen through a frame with glazing bars."""
    b = v / m.size[1]
    sky = mix(m.colours[1], m.colours[2], np.clip(0.5 + 0.5 * b, 0, 1))
    sky = mix(
        sky, (0.95, 0.95, 0.97), 0.6 * step(noise(u * 0.1 + m.seed * 0.1, v * 0.25) - 0.62, 0.4 + 0 * w)
    )
    skyline = 0.7 * noise(np.floor(u * 6) * 0.043 + m.seed * 0.031, np.full_like(u, 0.6)) - 0.75
    sky = mix(sky, m.colours[3], step(skyline - b, w))
    bars = m.options["bars"]
    x, y = (u / m.size[0] + 1) / 2 * bars[0], (v / m.size[1] + 1) / 2 * bars[1]
    half = 0.018
    gap_x = np.abs(x - np.round(x)) * 2 * m.size[0] / bars[0]
    gap_y = np.abs(y - np.round(y)) * 2 * m.size[1] / bars[1]
    glass = step(np.minimum(gap_x, gap_y) - half, w)
    return _frame(m, u, v, w, mix(m.colours[0], sky, glass), 0.06)


def _panels(m, u, v, w):
    """Paint recessed panels, as on doors and drawers, by a dark groove and a light lip."""
    nx, ny = m.options["panels"]
    x, y = (u / m.size[0] + 1) / 2 * nx % 1, (v / m.size[1] + 1) / 2 * ny % 1
    edge = np.minimum(np.minimum(x, 1 - x) * 2 * m.size[0] / nx, np.minimum(y, 1 - y) * 2 * m.size[1] / ny)
    inset = m.options.get("inset", 0.06)
    groove = step(edge - inset, w) - step(edge - inset - 0.02, w)
    base = mix(m.colours[0], m.colours[1], 0.6 * noise(u * 1.1, v * 0.12) + 0.4 * step(edge - inset, w))
    if m.options.get("knobs"):
        knob = step(0.018 - np.hypot((x - 0.5) * 2 * m.size[0] / nx, (y - 0.5) * 2 * m.size[1] / ny), w)
        base = mix(base, m.colours[2], knob)
    return base * (1 - 0.6 * groove)


def _shelf(m, u, v, w):
    """Paint rows of upright books between boards."""
    rows = m.options["panels"][1]
    y = (v / m.size[1] + 1) / 2 * rows
    row, y = np.floor(y), y % 1
    book = np.floor((u + 0.02 * cell_tone(np.floor(u * 9), row, m.seed)) / 0.045)
    pick = cell_tone(book, row, m.seed)
    spine = mix(
        mix(m.colours[1], m.colours[2], step(pick - 0.42, 0.02)), m.colours[3], step(pick - 0.58, 0.02)
    )
    spine = spine * (0.6 + 0.8 * cell_tone(book, row + 31, m.seed))
    top = 0.6 + 0.28 * cell_tone(book, row + 57, m.seed)
    inside = mix(spine, np.array(m.colours[0], np.float32)[:, None] * 0.15, step(y - top, w * 3))
    board = np.maximum(step(0.05 - y, w * 3), step(y - 0.95, w * 3))
    return _frame(m, u, v, w, mix(inside, m.colours[0], board), 0.035)


def _rug(m, u, v, w):
    """Paint any other pattern, with a band along the rim."""
    depth = m.size[0] - np.hypot(u, v) if m.options["round"] else _inset(m, u, v)
    field_ = _PATTERNS[m.options["paper"]](m, u, v, w)
    band = step(depth - 0.08, w) - step(depth - 0.14, w)
    return mix(field_, m.colours[2], band) * (0.9 + 0.2 * noise(u * 2.1, v * 2.1))


def _face(m, u, v, w):
    """Paint eyes and mouth; u to the side and v up, in head radii, on the front only (see shading)."""
    colour = mix(m.colours[0], m.colours[1], step(0.17 - np.hypot(np.abs(u) - 0.4, (v - 0.05) * 1.3), w * 3))
    return mix(colour, m.colours[2], step(0.22 - np.hypot(u * 0.7, (v + 0.5) * 2.5), w * 3))


_PATTERNS = {
    "plain": _plain,
    "stripes": _stripes,
    "checker": _checker,
    "plaid": _plaid,
    "dots": _dots,
    "planks": _planks,
    "tiles": _tiles,
    "clouds": _clouds,
    "marble": _marble,
    "wall": _wall,
    "picture": _picture,
    "window": _window,
    "panels": _panels,
    "shelf": _shelf,
    "rug": _rug,
    "face": _face,
}

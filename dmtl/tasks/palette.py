"""Colours for pictures of classes, probabilities, numbers and directions."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

GREY = np.array([128, 128, 128], np.uint8)  # no label here

# Classes that people expect in a certain colour, whatever their position in the list.
_FAMILIAR = {
    "background": "20242e",
    "void": "20242e",
    "sky": "8ecae6",
    "building": "b08968",
    "road": "5b5f77",
    "pavement": "b79ced",
    "sidewalk": "b79ced",
    "tree": "588157",
    "vegetation": "588157",
    "grass": "8cb369",
    "water": "2a9d8f",
    "wall": "d6ccc2",
    "floor": "c9ada7",
    "ceiling": "e9ecef",
    "sign": "f4d35e",
    "traffic sign": "f4d35e",
    "pole": "ced4da",
    "fence": "bc6c25",
    "car": "3a86ff",
    "person": "e63946",
    "pedestrian": "e63946",
    "bicyclist": "ff7f51",
    "rider": "ff7f51",
    "head": "ffd166",
    "torso": "ef476f",
    "upper arm": "f78c6b",
    "lower arm": "9d4edd",
    "upper leg": "06d6a0",
    "lower leg": "118ab2",
}


def _rgb(code: str) -> tuple[int, int, int]:
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def _scale(codes: str) -> np.ndarray:
    """Return a scale of 256 colours, float32 [256,3], interpolated between hexadecimal ones at equal
    steps."""
    anchors = np.array([_rgb(c) for c in codes.split()], np.float32)
    at = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], -1)


EMBER = _scale("0b0d1c 2b1450 641a80 a92c7d e44f64 fb8d5f fdc98a fcf6d0")  # dark to glowing: probabilities
INK = _scale("fbfaf5 b9bccb 6d7590 363f60 12183a")  # paper to ink: lines
SPECTRUM = _scale("33205c 4054c2 3b93ea 31c6cf 4fe28c a9ee58 edd348 fb9a38 e6511f 9e1a12")  # cold to warm


def apply_scale(scale: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the colours, uint8 [...,3], at positions 0 .. 1 of the scale; non-finite positions are grey."""
    share = np.asarray(share, np.float32)
    finite = np.isfinite(share)
    index = np.rint(np.clip(np.where(finite, share, 0), 0, 1) * (len(scale) - 1)).astype(np.int64)
    return np.where(finite[..., None], np.rint(scale).astype(np.uint8)[index], GREY)


def heat(value_HW: np.ndarray) -> tuple[np.ndarray, float]:
    """Draw amounts from dark (0) to bright (their 99th percentile); non-finite ones are grey.

    Returns:
        uint8 [H,W,3], and the amount at the bright end.
    """
    known = value_HW[np.isfinite(value_HW)]
    top = max(float(np.percentile(known, 99)) if known.size else 0.0, 1e-12)
    return apply_scale(EMBER, value_HW / top), top


def vector_colours(vector_3HW: np.ndarray) -> np.ndarray:
    """Draw x, y, z in -1 .. 1 as red, green, blue, uint8 [H,W,3]; non-finite vectors are grey."""
    vector_HW3 = np.moveaxis(np.asarray(vector_3HW, np.float32), 0, -1)
    finite = np.isfinite(vector_HW3).all(-1, keepdims=True)
    colour = np.rint(np.clip(np.where(finite, vector_HW3, 0) * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    return np.where(finite, colour, GREY)


def swatches(names: Iterable[str], colours_N3: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
    """Return names with their colours as entries of a legend."""
    return [(name, (int(r), int(g), int(b))) for name, (r, g, b) in zip(names, colours_N3, strict=True)]


@lru_cache(maxsize=64)
def class_palette(classes: tuple[str, ...]) -> np.ndarray:
    """Return one colour per class, uint8 [n,3]: a familiar one if the name has one, else a distinct one."""
    familiar = [_FAMILIAR.get(name.lower()) for name in classes]
    first = [None if code in familiar[:i] else code for i, code in enumerate(familiar)]
    taken = [GREY.astype(float)]
    taken += [np.array(_rgb(code), float) for code in first if code is not None]
    colours = []
    for i, code in enumerate(first):
        if code is not None:
            colours.append(np.array(_rgb(code), float))
            continue
        candidates = np.array([_spread(j) for j in range(i, i + 9 + 3 * len(classes))], float)
        distance = np.linalg.norm(candidates[:, None] - np.stack(taken), axis=-1).min(1)
        # Use the first colour that is clearly different, so that hues keep changing; else the most different
        # one.
        clear = distance > 60
        taken.append(candidates[clear.argmax() if clear.any() else distance.argmax()])
        colours.append(taken[-1])
    palette = np.array(colours, np.uint8)
    palette.setflags(write=False)
    return palette


def _spread(i: int) -> tuple[int, int, int]:
    """Return colour number i.

    Hues of consecutive i are a golden angle apart; saturation and value vary too.
    """
    hue = (0.58 + 0.61803399 * i) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.72, 0.5, 0.85)[i % 3], (0.93, 0.78, 0.66)[(i // 3) % 3])
    return round(255 * red), round(255 * green), round(255 * blue)

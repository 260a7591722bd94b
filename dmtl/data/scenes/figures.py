"""Articulated human figures: proportions, poses, clothes, and the solids of each of the six parts.

Figure frame: x to one side, y up, z to where the figure faces. Lengths are fractions of the body height.
Proportions follow the artists' canon, in which a body is seven and a half heads high.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .draw import Draw
from .geometry import BALL, DRUM, Builder, axes_along
from .materials import colour, fabric
from .textures import Material

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)

_THIGH, _SHIN, _ANKLE = 0.245, 0.235, 0.04
_SPINE, _UPPER_ARM, _FOREARM = 0.265, 0.165, 0.145
_SKIN = (
    (0.93, 0.76, 0.65),
    (0.87, 0.66, 0.51),
    (0.78, 0.56, 0.40),
    (0.6, 0.41, 0.29),
    (0.42, 0.28, 0.2),
    (0.3, 0.2, 0.15),
)
_HAIR = (
    (0.08, 0.07, 0.06),
    (0.25, 0.15, 0.09),
    (0.45, 0.3, 0.17),
    (0.75, 0.6, 0.35),
    (0.5, 0.2, 0.1),
    (0.65, 0.64, 0.62),
)


@dataclass
class Pose:
    """Angles of the joints in radians.

    Pitch swings a limb forward, spread to the side; pairs hold both sides.
    """

    arm_pitch: tuple[float, float] = (0.0, 0.0)
    arm_spread: tuple[float, float] = (0.14, 0.14)
    elbow: tuple[float, float] = (0.2, 0.2)
    elbow_in: tuple[float, float] = (0.0, 0.0)  # turns the forearm towards the middle
    leg_pitch: tuple[float, float] = (0.0, 0.0)
    leg_spread: tuple[float, float] = (0.05, 0.05)
    knee: tuple[float, float] = (0.04, 0.04)
    lean: float = 0.0


def _swap(draw: Draw, a: float, b: float) -> tuple[float, float]:
    return (a, b) if draw.chance(0.5) else (b, a)


def _each(angles: Iterable[float]) -> tuple[float, float]:
    """Return two angles, one for each side, as a pair."""
    left, right = angles
    return left, right


def standing_pose(draw: Draw) -> Pose:
    """Draw a random upright pose: legs first, then arms."""
    pose = Pose(
        lean=draw(-0.04, 0.1),
        arm_pitch=(draw(-0.2, 0.3), draw(-0.2, 0.3)),
        elbow=(draw(0.05, 0.5), draw(0.05, 0.5)),
    )
    legs = draw.pick(("stand", "stand", "walk", "walk", "apart", "crouch"))
    if legs == "walk":
        stride = draw(0.3, 0.6)
        first = draw.sign()
        pose.leg_pitch = (first * stride, -first * stride)
        pose.knee = (0.1 if first > 0 else draw(0.3, 0.8), 0.1 if first < 0 else draw(0.3, 0.8))
        pose.arm_pitch = (-first * stride * 1.2, first * stride * 1.2)
        pose.elbow = (draw(0.2, 0.9), draw(0.2, 0.9))
    elif legs == "apart":
        spread = draw(0.12, 0.3)
        pose.leg_spread = (spread, spread)
    elif legs == "crouch":
        bend = draw(0.5, 1.1)
        pose.leg_pitch, pose.knee, pose.lean = (bend, bend * 0.9), (1.8 * bend, 1.8 * bend), 0.5 * bend
        pose.leg_spread = (0.15, 0.15)
    _pose_arms(draw, pose, draw.pick(("free", "free", "wave", "hips", "reach", "raise", "hold", "open")))
    return pose


def sitting_pose(draw: Draw) -> Pose:
    """Draw a pose on a seat, thighs level."""
    pose = Pose(
        lean=draw(-0.12, 0.15),
        leg_pitch=(draw(1.4, 1.55), draw(1.4, 1.55)),
        leg_spread=(draw(0.03, 0.25), draw(0.03, 0.25)),
    )
    pose.knee = (draw(1.2, 1.7), draw(1.2, 1.7))
    pose.arm_pitch, pose.elbow = (0.35, 0.35), (draw(0.7, 1.0), draw(0.7, 1.0))
    _pose_arms(draw, pose, draw.pick(("free", "free", "free", "wave", "hold", "reach")))
    return pose


def _pose_arms(draw: Draw, pose: Pose, arms: str) -> None:
    low = (pose.arm_spread[0], pose.arm_pitch[0], pose.elbow[0])
    if arms == "wave":
        pose.arm_spread = _swap(draw, draw(1.6, 2.5), low[0])
        pose.elbow = _each(draw(0.4, 1.1) if s > 1 else e for s, e in zip(pose.arm_spread, pose.elbow))
        pose.elbow_in = _each(0.9 if s > 1 else 0.0 for s in pose.arm_spread)
    elif arms == "hips":
        pose.arm_spread, pose.arm_pitch = (0.75, 0.75), (-0.25, -0.25)
        pose.elbow, pose.elbow_in = (0.5, 0.5), (1.5, 1.5)
    elif arms == "reach":
        pose.arm_pitch = _swap(draw, draw(1.1, 1.8), low[1])
        pose.elbow = _each(draw(0.0, 0.3) if p > 1 else e for p, e in zip(pose.arm_pitch, pose.elbow))
    elif arms == "raise":
        spread = draw(2.3, 2.9)
        pose.arm_spread, pose.elbow = (spread, spread), (0.1, 0.1)
    elif arms == "hold":
        pose.arm_pitch, pose.elbow, pose.elbow_in = (0.3, 0.3), (1.3, 1.3), (0.45, 0.45)
    elif arms == "open":
        spread = draw(0.9, 1.6)
        pose.arm_spread, pose.elbow, pose.arm_pitch = (spread, spread), (0.1, 0.2), (0.1, 0.1)


def _direction(pitch: float, spread: float, side: float) -> tuple[float, float, float]:
    """Return the unit vector of a limb; with both angles 0 it points down."""
    return (side * math.sin(spread), -math.cos(pitch) * math.cos(spread), math.sin(pitch) * math.cos(spread))


def _along(p, d, length):
    return (p[0] + d[0] * length, p[1] + d[1] * length, p[2] + d[2] * length)


def _forearm(upper, pitch, bend, inward, side):
    """Bend the upper arm's direction at the elbow: forwards, or inwards if the arm is spread."""
    forward = (0.0, math.sin(pitch), math.cos(pitch))
    inner = (-side * abs(upper[1]) - 0.0, abs(upper[0]), 0.0)
    turn = [math.cos(inward) * f + math.sin(inward) * i for f, i in zip(forward, inner)]
    d = [math.cos(bend) * u + math.sin(bend) * t for u, t in zip(upper, turn)]
    length = math.sqrt(sum(c * c for c in d))
    return tuple(c / length for c in d)


class Wardrobe:
    """The materials of one person."""

    def __init__(self, draw: Draw):
        skin = tuple(c**2.2 for c in draw.pick(_SKIN))
        dark = tuple(0.15 * c for c in skin)
        lips = (skin[0] * 0.75, skin[1] * 0.45, skin[2] * 0.45)
        self.skin = Material("plain", (skin,), grain=0.05, gloss=0.06)
        self.face = Material("face", (skin, dark, lips), grain=0.0, gloss=0.06)
        hair = tuple(c**2.2 for c in draw.pick(_HAIR))
        self.hair = Material("clouds", (hair, tuple(1.6 * c for c in hair)), 0.1, gloss=0.15)
        self.shirt = fabric(draw, plain=0.55)
        self.sleeve = self.shirt if draw.chance(0.9) else self.skin
        self.long_sleeve = self.sleeve if draw.chance(0.55) else self.skin
        self.trousers = fabric(draw, plain=0.8)
        self.long_trousers = self.trousers if draw.chance(0.75) else self.skin
        self.shoe = Material("plain", (colour(draw, (0, 0.6), (0.05, 0.9)),), gloss=0.3)
        self.skirt = draw.chance(0.22)
        self.hair_style = draw.pick(("short", "short", "long", "bun", "cap", "bald"))
        self.cap = Material("plain", (colour(draw),))


def add_figure(
    builder: Builder,
    instance: int,
    draw: Draw,
    pose: Pose,
    at: tuple[float, float, float],
    yaw: float,
    height: float,
    seat: float | None = None,
) -> None:
    """Add the solids of one person.

    `at` is the point on the floor below the hips, in metres. `yaw` is the direction in which the person
    faces, in radians (0: +z). `height` is in metres. `seat` is the height of the surface on which the person
    sits, in metres; None: the person stands with the lower foot on the floor.
    """
    wear = Wardrobe(draw)
    build = draw(0.9, 1.18)  # breadth
    sides = []
    for i, side in enumerate((-1.0, 1.0)):
        hip = (side * 0.052 * build, 0.0, 0.0)
        thigh = _direction(pose.leg_pitch[i], pose.leg_spread[i], side)
        knee = _along(hip, thigh, _THIGH)
        shin = _direction(pose.leg_pitch[i] - pose.knee[i], pose.leg_spread[i] * 0.5, side)
        sides.append((hip, knee, _along(knee, shin, _SHIN)))
    rise = -min(ankle[1] for _, _, ankle in sides) + _ANKLE if seat is None else seat / height + 0.062 * build
    spine = (0.0, math.cos(pose.lean), math.sin(pose.lean))
    cos, sin = math.cos(yaw), math.sin(yaw)

    def world(p):
        return (
            at[0] + height * (cos * p[0] + sin * p[2]),
            at[1] + height * (p[1] + rise),
            at[2] + height * (cos * p[2] - sin * p[0]),
        )

    def turn(d):
        return (cos * d[0] + sin * d[2], d[1], cos * d[2] - sin * d[0])

    def limb(a, b, ra, rb, material, part, flat=1.0, blocks=False):
        front = turn((0.0, 0.0, 1.0))
        builder.limb(
            world(a), world(b), ra * height, rb * height, instance, material, part, front, flat, blocks
        )

    def ball(p, half, material, part, axes):
        builder.add(BALL, world(p), axes, [h * height for h in half], instance, material, part, blocks=False)

    for hip, knee, ankle in sides:
        _add_leg(limb, ball, turn, wear, hip, knee, ankle)
    chest = _along((0.0, 0.0, 0.0), spine, _SPINE * 0.78)
    shoulders = _along((0.0, 0.0, 0.0), spine, _SPINE)
    limb((0.0, 0.015, 0.0), chest, 0.088 * build, 0.102 * build, wear.shirt, TORSO, flat=0.62, blocks=True)
    limb((0.0, -0.012, 0.0), (0.0, 0.03, 0.0), 0.086 * build, 0.086 * build, wear.trousers, TORSO, flat=0.72)
    if wear.skirt and seat is None and max(pose.knee) < 1.0:
        builder.add(
            DRUM,
            world((0.0, -0.1, 0.0)),
            axes_along((0.0, 1.0, 0.0), turn((0.0, 0.0, 1.0))),
            (0.115 * height * build, 0.13 * height, 0.09 * height * build),
            instance,
            wear.trousers,
            UPPER_LEG,
            (-0.3, 0.0, 0.0),
            blocks=False,
        )
    for i, side in enumerate((-1.0, 1.0)):
        _add_arm(limb, ball, turn, wear, pose, i, side, shoulders, build)
    _add_head(limb, ball, turn, wear, draw, shoulders, spine)


def _add_leg(limb, ball, turn, wear, hip, knee, ankle) -> None:
    limb(hip, knee, 0.052, 0.036, wear.trousers, UPPER_LEG)
    limb(knee, ankle, 0.035, 0.023, wear.long_trousers, LOWER_LEG)
    foot = (ankle[0], ankle[1] - 0.02, ankle[2] + 0.035)
    ball(foot, (0.027, 0.022, 0.07), wear.shoe, LOWER_LEG, axes_along((0.0, 1.0, 0.0), turn((0.0, 0.0, 1.0))))


def _add_arm(limb, ball, turn, wear, pose, i, side, shoulders, build) -> None:
    shoulder = (side * 0.112 * build, shoulders[1] - 0.012, shoulders[2])
    upper = _direction(pose.arm_pitch[i], pose.arm_spread[i], side)
    elbow = _along(shoulder, upper, _UPPER_ARM)
    fore = _forearm(upper, pose.arm_pitch[i], pose.elbow[i], pose.elbow_in[i], side)
    wrist = _along(elbow, fore, _FOREARM)
    limb(shoulder, elbow, 0.032, 0.025, wear.sleeve, UPPER_ARM)
    limb(elbow, wrist, 0.0245, 0.018, wear.long_sleeve, LOWER_ARM)
    hand = _along(wrist, fore, 0.032)
    ball(hand, (0.024, 0.045, 0.017), wear.skin, LOWER_ARM, axes_along(turn(fore), turn((side, 0.0, 0.0))))


def _add_head(limb, ball, turn, wear, draw, shoulders, spine) -> None:
    nod, look = draw(-0.15, 0.25), draw(-0.6, 0.6)
    front = (math.sin(look) * math.cos(nod), -math.sin(nod), math.cos(look) * math.cos(nod))
    up = (0.0, math.cos(nod), math.sin(nod))
    axes = axes_along(turn(up), turn(front))

    def near(dx, dy, dz):  # a point of the head's frame
        side = (math.cos(look), 0.0, -math.sin(look))
        return tuple(c + dx * s + dy * u + dz * f for c, s, u, f in zip(centre, side, up, front))

    neck = _along(shoulders, spine, -0.02)
    centre = _along(shoulders, spine, 0.105)
    limb(neck, _along(shoulders, spine, 0.06), 0.034, 0.03, wear.skin, TORSO)
    ball(centre, (0.049, 0.066, 0.057), wear.face, HEAD, axes)
    ball(near(0.0, -0.01, 0.058), (0.009, 0.014, 0.012), wear.skin, HEAD, axes)  # nose
    style = wear.hair_style
    if style == "bald":
        return
    ball(
        near(0.0, 0.016, -0.012), (0.054, 0.06, 0.058), wear.cap if style == "cap" else wear.hair, HEAD, axes
    )
    if style == "long":
        limb(near(0.0, 0.0, -0.03), near(0.0, -0.1, -0.04), 0.05, 0.042, wear.hair, HEAD)
    elif style == "bun":
        ball(near(0.0, 0.06, -0.045), (0.026, 0.026, 0.026), wear.hair, HEAD, axes)
    elif style == "cap":
        ball(near(0.0, 0.035, 0.05), (0.042, 0.008, 0.04), wear.cap, HEAD, axes)

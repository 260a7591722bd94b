"""The semantic classes of `scenes`."""

CLASSES = (
    "wall",
    "floor",
    "ceiling",
    "door",
    "window",
    "picture",
    "rug",
    "table",
    "seat",
    "cabinet",
    "plant",
    "vase",
    "ball",
    "person",
)
"""Names of the semantic classes; the position is the class id."""
(WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, RUG, TABLE, SEAT, CABINET, PLANT, VASE, BALL, PERSON) = range(
    14
)
BACKGROUND = (WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, RUG)
"""Classes that belong to the room and are never salient."""

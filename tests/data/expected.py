"""What the fixtures' labels must be: cast from the scenes' geometry, mapped and coded here in plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dmtl.data.scenes.draw import Draw
from dmtl.data.scenes.render import first_hits
from dmtl.data.scenes.room import build_scene
from dmtl.data.scenes.shading import surfaces

STREAM = {"train": 0, "val": 1, "test": 2}
# Of the classes of scenes in their order: wall, floor, ceiling, door, window, picture, rug, table, seat,
# cabinet, plant, vase, ball, person.
NYUD_13 = [11, 4, 2, 5, 12, 7, 4, 9, 3, 5, 6, 6, 6, 6]
NYUD_40 = [0, 1, 21, 7, 8, 10, 19, 6, 4, 2, 39, 39, 39, 30]
CITYSCAPES_19 = [2, 0, 10, 3, 4, 7, 1, 9, 13, 14, 8, 5, 18, 11]
CITYSCAPES_7 = [1, 0, 4, 1, 1, 2, 0, 3, 6, 6, 3, 2, 6, 5]
CLASSES = {"nyud-13": NYUD_13, "nyud-40": NYUD_40, "cityscapes-7": CITYSCAPES_7}
LAYERS = {"semseg": 0, "depth": 1, "normals": 2}


def cast(split, index, size, seed, rows=None, columns=None, mirrored=False):
    """semseg [H, W], depth [H, W] in metres, normals [3, H, W], instances and surfaces [H, W] of a scene.

    rows, columns: places in the image of `size`, in pixels from its upper left corner; None: the centres of
    all pixels. mirrored: of a camera whose right is left.
    """
    height, width = size
    rows = np.arange(height) + 0.5 if rows is None else rows
    columns = np.arange(width) + 0.5 if columns is None else columns
    scene = build_scene(Draw(seed, STREAM[split], index))
    axes = scene.camera.axes * np.array([[-1 if mirrored else 1], [1], [1]], np.float32)
    scene = replace(scene, camera=replace(scene.camera, axes=axes))
    pixel = np.float32(2 * scene.camera.tan_half / np.sqrt(height * width))
    x = (np.asarray(columns) - width / 2).astype(np.float32) * pixel
    y = (height / 2 - np.asarray(rows)).astype(np.float32) * pixel
    right, up, back = (axis[:, None, None] for axis in axes)
    rays = (right * x + up * y[:, None] - back).reshape(3, -1)
    depth, surface = first_hits(scene, rays)
    normals = axes @ surfaces(scene, rays, depth, surface).normal_3N
    instances = np.append(scene.solids.instance, np.arange(6))[surface]
    shape = (len(rows), len(columns))
    return {
        "semseg": scene.classes[instances].reshape(shape).astype(int),
        "depth": depth.reshape(shape),
        "normals": normals.reshape(3, *shape),
        "instances": instances.reshape(shape),
        "surface": surface.reshape(shape),
    }


def labels(format, found):
    """The labels of a format, [K, H, W] by task, of what `cast` found; nothing is unknown in them."""
    table = CLASSES.get(format.removesuffix("-mt").removesuffix("-label"), CITYSCAPES_19)
    result = {"semseg": np.array(table)[found["semseg"]][None], "depth": found["depth"][None]}
    if format.startswith("cityscapes"):
        inverse = np.float32(1) / result["depth"]
        result["depth"] = inverse * (40 if format == "cityscapes-raw" else 6000 / 65535)
        return result
    result["normals"] = found["normals"]
    if format.startswith("nyud-40"):
        ids = found["instances"]
        edge = np.zeros(ids.shape, int)
        edge[:, :-1] += ids[:, :-1] != ids[:, 1:]
        edge[:-1] += ids[:-1] != ids[1:]
        result["edge"] = np.minimum(edge, 1)[None]
    return result


def known(format, task, split, index, size, seed):
    """Where the fixture has a label of the task, bool [H, W]: it leaves out a tenth of the squares of 8x8."""
    if task == "edge" or (task == "normals" and format != "nyud-13"):
        return np.ones(size, bool)
    squares = np.random.default_rng((seed, STREAM[split], index, LAYERS[task])).random(
        (-(-size[0] // 8), -(-size[1] // 8))
    )
    y, x = np.indices(size) // 8
    return squares[y, x] >= 0.1

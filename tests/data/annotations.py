"""The same four pictures, annotated as each tool writes it down in its documentation.

a  a car, and a tree that covers part of it
b  a tree
c  annotated, and empty (where a format can say so)
d  not annotated
"""

from __future__ import annotations

import base64
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
NAMES = ("a", "b", "c", "d")
CLASSES = ("background", "car", "tree")
BOXES = {  # label, left, top, right, bottom; the later one is on top
    "a": [("car", 8, 10, 24, 30), ("tree", 16, 20, 40, 40)],
    "b": [("tree", 30, 4, 60, 44)],
    "c": [],
}


def expected(name: str) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, left, top, right, bottom in BOXES[name]:
        ids[top:bottom, left:right] = CLASSES.index(label)
    return ids


def mapped(name: str) -> np.ndarray:
    return expected("b" if name == "c" else name)


def write_images(folder: Path, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}")
    return folder


def corners(left, top, right, bottom) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def columns(mask: np.ndarray, order: str = "F") -> list[int]:
    """Lengths of runs of zeros and ones, along the columns."""
    flat = mask.ravel(order)
    ends = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# COCO, https://cocodataset.org/#format-data


def coco_head(**other: object) -> dict:
    images = [
        {"id": n + 10, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT, "license": 1}
        for n, name in enumerate(NAMES)
    ]
    categories = [
        {"id": 44, "name": "tree", "supercategory": "plant"},
        {"id": 3, "name": "car", "supercategory": "vehicle"},
    ]
    return {"info": {"year": 2024}, "images": images, "categories": categories, **other}


def write_coco(root: Path) -> dict:
    """A polygon, runs as a list and as COCO's string; an object with a box alone."""
    from pycocotools import mask as coco

    write_images(root / "images")
    found: list[dict] = []
    for number, name in enumerate(NAMES[:2]):
        for label, *box in BOXES[name]:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[box[1] : box[3], box[0] : box[2]] = 1
            counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
            segmentation = [
                [sum(corners(*box), [])],
                {"size": [HEIGHT, WIDTH], "counts": columns(mask)},
                {"size": [HEIGHT, WIDTH], "counts": counts},
            ][len(found) % 3]
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": number + 10,
                    "category_id": {"car": 3, "tree": 44}[label],
                    "segmentation": segmentation,
                    "iscrowd": int(isinstance(segmentation, dict)),
                    "area": int(mask.sum()),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                }
            )
    write_json(root / "annotations" / "instances.json", coco_head(annotations=found))
    return {"source": root / "annotations" / "instances.json", "images": str(root / "images")}


def write_panoptic(root: Path) -> dict:
    write_images(root / "images")
    (root / "panoptic").mkdir()
    found = []
    for number, name in enumerate(NAMES[:3]):
        ids = mapped(name).astype(np.int64) * 70_001
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
        (root / "panoptic" / f"{name}.png").write_bytes(png(rgb))
        segments = [
            {"id": n * 70_001, "category_id": {1: 3, 2: 44}[n], "iscrowd": 0, "area": 9, "bbox": [0, 0, 3, 3]}
            for n in sorted(set(mapped(name).ravel().tolist()) - {0})
        ]
        found.append({"image_id": number + 10, "file_name": f"{name}.png", "segments_info": segments})
    write_json(root / "panoptic.json", coco_head(annotations=found))
    return {"source": root / "panoptic.json", "images": str(root / "images")}


def write_stuff(root: Path) -> dict:
    write_images(root / "images")
    (root / "stuff_pixelmaps").mkdir()
    for name in NAMES[:3]:
        ids = np.array([0, 3, 44], np.uint8)[mapped(name)]
        (root / "stuff_pixelmaps" / f"{name}.png").write_bytes(png(ids))
    write_json(root / "stuff.json", coco_head(annotations=[]))
    return {"source": root / "stuff.json", "images": str(root / "images")}


# LabelMe, https://github.com/wkentaro/labelme


def labelme_shape(label: str, points: list, kind: str = "polygon", **other: object) -> dict:
    shape = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return {**shape, **other}


def labelme_file(name: str, shapes: list[dict], **other: object) -> dict:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{name}.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **other,
    }


def write_labelme(root: Path) -> dict:
    """A polygon, a rectangle, a mask, a point and a line."""
    write_images(root)
    (_, *car), (_, *tree) = BOXES["a"]
    mask = base64.b64encode(png(np.ones((20, 24), bool))).decode()
    shapes = [
        labelme_shape("car", corners(*car)),
        labelme_shape("car", [[20, 20]], "point"),
        labelme_shape("tree", [[tree[0], tree[1]], [tree[2] - 1, tree[3] - 1]], "mask", mask=mask),
    ]
    write_json(root / "a.json", labelme_file("a", shapes))
    (_, *tree) = BOXES["b"][0]
    shapes = [
        labelme_shape("tree", [tree[2:], tree[:2]], "rectangle"),
        labelme_shape("road", [[1, 1], [5, 5], [9, 5]], "linestrip"),
    ]
    write_json(root / "b.json", labelme_file("b", shapes))
    write_json(root / "c.json", labelme_file("c", []))
    return {"source": root}


# CVAT for images 1.1, https://docs.cvat.ai/docs/manual/advanced/xml_format/


def cvat_image(number: int, name: str, shapes: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    return f'<image id="{number}" name="{name}.png" width="{size[1]}" height="{size[0]}">\n{shapes}</image>\n'


def cvat_file(images: str) -> str:
    labels = "".join(
        f"<label><name>{name}</name><color>#fa3253</color><type>{kind}</type><attributes></attributes></label>"
        for name, kind in (("car", "any"), ("tree", "polygon"), ("nose", "points"))
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n<meta><task><id>4</id>'
        f"<labels>{labels}</labels></task></meta>\n{images}</annotations>\n"
    )


def write_cvat(root: Path) -> dict:
    """A box below a mask by its z_order, a polygon, points and a tag."""
    write_images(root / "images")
    (_, *car), (_, *tree) = BOXES["a"]
    runs = ", ".join(map(str, columns(np.ones((20, 24), bool), "C")))
    first = (
        f'<mask label="tree" source="semi-auto" occluded="0" rle="{runs}" left="{tree[0]}" top="{tree[1]}" '
        'width="24" height="20" z_order="1"></mask>\n'
        f'<box label="car" source="manual" occluded="0" xtl="{car[0]:.2f}" ytl="{car[1]:.2f}" '
        f'xbr="{car[2]:.2f}" ybr="{car[3]:.2f}" z_order="0"><attribute name="model">x</attribute></box>\n'
        '<points label="nose" points="3.00,4.00" z_order="0"></points>\n<tag label="car"></tag>\n'
    )
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in corners(*BOXES["b"][0][1:]))
    second = f'<polygon label="tree" source="manual" occluded="0" points="{points}" z_order="0"></polygon>\n'
    images = [
        cvat_image(n, name, s) for n, (name, s) in enumerate(zip(NAMES, (first, second, "", ""), strict=True))
    ]
    (root / "annotations.xml").write_text(cvat_file("".join(images)))
    return {"source": root / "annotations.xml"}


# Label Studio, https://labelstud.io/guide/export


def brush(mask: np.ndarray) -> list[int]:
    """RGBA pixels in Label Studio's runs of bits: blocks of equal values, counts of up to 16 bits."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{values.size:032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    ends = [0, *(np.flatnonzero(np.diff(values.astype(int))) + 1).tolist(), values.size]
    for start, end in pairwise(ends):
        if end - start == 4:  # as values that do not repeat
            bits += f"0{0:02b}{3:03b}" + "".join(f"{v:08b}" for v in values[start:end])
        else:
            bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def region(kind: str, value: dict, name: str = "tag", **other: object) -> dict:
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": "x", "from_name": name, "to_name": "image", "type": kind, "value": value, **sizes, **other}


def percent_box(box: list[int]) -> dict:
    left, top, right, bottom = box
    x, y = 100 * left / WIDTH, 100 * top / HEIGHT
    sides = {"width": 100 * (right - left) / WIDTH, "height": 100 * (bottom - top) / HEIGHT, "rotation": 0}
    return {"x": x, "y": y, **sides}


def studio_task(number: int, name: str, *annotations: dict) -> dict:
    data = {"image": f"/data/upload/1/{name}.png"}
    return {"id": number, "data": data, "annotations": list(annotations), "predictions": [], "project": 1}


def write_label_studio(root: Path) -> dict:
    """A rectangle, a brush mask, a point, a rectangle without a label or pixels, and a polygon; a submitted
    empty annotation; one that was skipped."""
    write_images(root / "images")
    (_, *car), (_, *tree) = BOXES["a"]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[tree[1] : tree[3], tree[0] : tree[2]] = True
    first = [
        region("rectanglelabels", {**percent_box(car), "rectanglelabels": ["car"]}),
        region("brushlabels", {"format": "rle", "rle": brush(mask), "brushlabels": ["tree"]}, "brush"),
        region("keypointlabels", {"x": 1, "y": 1, "width": 1, "keypointlabels": ["car"]}),
        region("rectangle", percent_box([5, 5, 5, 5]), id="y"),
    ]
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(*BOXES["b"][0][1:])]
    second = [region("polygonlabels", {"points": points, "closed": True, "polygonlabels": ["tree"]})]
    tasks = [
        studio_task(1, "a", {"id": 5, "was_cancelled": False, "ground_truth": False, "result": first}),
        studio_task(2, "b", {"id": 6, "was_cancelled": False, "ground_truth": False, "result": second}),
        studio_task(3, "c", {"id": 7, "was_cancelled": False, "ground_truth": False, "result": []}),
        studio_task(4, "d", {"id": 8, "was_cancelled": True, "ground_truth": False, "result": []}),
    ]
    write_json(root / "export.json", tasks)
    return {"source": root / "export.json", "images": str(root / "images")}


# PASCAL VOC; "Segmentation mask 1.1" of CVAT

COLOURS = np.array([[0, 0, 0], [10, 120, 30], [200, 0, 60]], np.uint8)


def write_voc(root: Path) -> dict:
    """Masks of colours, of a palette and of grey values."""
    write_images(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(CLASSES, COLOURS.tolist())]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    masks = [Image.fromarray(expected(name)) for name in NAMES[:3]]
    masks[0] = Image.fromarray(COLOURS[expected("a")])
    masks[1].putpalette(COLOURS.ravel().tolist())
    for name, mask in zip(NAMES, masks, strict=False):
        mask.save(root / "SegmentationClass" / f"{name}.png")
    return {"source": root}


def write_huggingface(root: Path) -> dict:
    import datasets

    write_images(root.parent / f"{root.name}-images")
    rows = {
        "photo": [str(root.parent / f"{root.name}-images" / f"{name}.png") for name in NAMES],
        "label": [Image.fromarray(expected(name)) for name in NAMES[:3]] + [None],
        "depth": [np.full((HEIGHT, WIDTH), n + 0.5, np.float32).tolist() for n in range(3)] + [None],
    }
    kinds = datasets.Features(
        photo=datasets.Image(),
        label=datasets.Image(),
        depth=datasets.Array2D((HEIGHT, WIDTH), "float32"),
    )
    table = datasets.Dataset.from_dict(rows, features=kinds)
    table.save_to_disk(str(root))
    columns = {"image": "photo", "semseg": "label", "depth": "depth"}
    return {"source": root, "map": columns, "classes": CLASSES}


WRITERS = {
    "coco": write_coco,
    "coco-panoptic": write_panoptic,
    "coco-stuff": write_stuff,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "voc": write_voc,
    "huggingface": write_huggingface,
}

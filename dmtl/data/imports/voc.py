"""PASCAL VOC and other data in its layout, such as CVAT's "Segmentation mask 1.1".

    ROOT/JPEGImages/ID.jpg                     or --images FOLDER
    ROOT/SegmentationClass/ID.png              colours, palette or grey; or --masks FOLDER
    ROOT/ImageSets/Segmentation/train.txt      one id per line; without lists all images are one split
    ROOT/labelmap.txt                          label:red,green,blue:parts:actions in a line

With labelmap.txt, masks are read by their colours. Grey masks are read by their values, unless all colours of
the list are grey. Without labelmap.txt, masks are read by their values: the ids of PASCAL VOC, or 0, 1, ...
in the order of --classes. RGB masks are then read by the colours of PASCAL VOC. An image without a mask has
no label. Pixels of the colour (224, 224, 192) or the value 255 are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmtl.data.folder.paths import find_files, read_ids, read_text
from dmtl.data.images import IMAGE_SUFFIXES, read_codes
from dmtl.data.imports.dataset import Entry, ValueMap
from dmtl.data.imports.files import Images, Node, left_out, unique_names
from dmtl.data.imports.format import Context, Format, Found, Options, annotated
from dmtl.data.imports.legend import VOID
from dmtl.errors import DataError
from dmtl.tasks.published import PASCAL

VOID_COLOUR = (224, 224, 192)
Colour = tuple[int, int, int]


def read_voc(source: Path, options: Options, context: Context) -> Found:
    """Read masks whose colours or values mean labels."""
    root = Images(source).root
    images = Images(options.images or root / "JPEGImages")
    masks = Images(options.masks or root / "SegmentationClass")
    file = root / "labelmap.txt"
    if listed := file.is_file():
        colours = _label_colours(file)
    else:
        names = options.classes or PASCAL
        colours = dict(zip(_colour_map(len(names)), names))
    values = {255: VOID, **dict(enumerate(colours.values()))}
    lists = _lists(root)
    notes: list[str] = []
    if lists:
        ids = [id for found in lists.values() for id in found]
        found = find_files(images.root, IMAGE_SUFFIXES, ids)
        entries = [
            Entry(id, images.path(found.get(id, f"{id}.jpg"), root), f"{root}: {id!r:.80}", split=split)
            for split, listed in lists.items()
            for id in listed
        ]
        used = set(ids)
        left = [path for path in images.files([masks.root]) if images.id(path) not in used]
        notes = left_out(left, "image file", "that no list names")
    else:
        entries = [Entry(images.id(path), path, str(path)) for path in images.files([masks.root])]
    known = {VOID_COLOUR: VOID, **colours}
    labelled = find_files(masks.root, (".png",), [entry.id for entry in entries])
    for entry in entries:
        if entry.id in labelled:
            path = masks.path(labelled[entry.id], root)
            entry.labels[options.task] = _Colours(path, values, known, listed)
    read = {masks.root / name for name in labelled.values()}
    left = [path for path in masks.files() if path not in read]
    notes += left_out(left, "mask", "without an image, or not PNG")
    listed_labels = {options.task: list(colours.values())}
    return annotated(source, options, context, entries, listed_labels, notes, complete=True)


@dataclass(frozen=True)
class _Colours(ValueMap):
    """A mask that is read by its values or by the colours of labels.

    The type of the file decides which of the two is read, never the pixels in it.

    Attributes:
        colours: colour -> label.
        listed: the colours are those of labelmap.txt.
    """

    colours: Mapping[Colour, str]
    listed: bool

    def stored(self) -> np.ndarray:
        codes = read_codes(self.path)
        if codes.values.ndim == 3:
            return self._of_colours(codes.values)
        palette = codes.most is None and not codes.numbers
        greys = all(len(set(colour)) == 1 for colour, label in self.colours.items() if label != VOID)
        if not palette and not (self.listed and greys and codes.values.dtype == np.uint8):
            return codes.values
        rgb = read_codes(self.path, colours=True).values
        if self.listed:
            return self._of_colours(rgb)
        try:
            by_colour = self._of_colours(rgb)
        except DataError:
            # the palette's colours are only for display
            return codes.values
        if (by_colour != codes.values).any():
            raise DataError(
                f"{self.path}: its palette gives values the colours of other labels, expected a labelmap.txt "
                "with the colours, or a grey mask of values"
            )
        return codes.values

    def _of_colours(self, rgb: np.ndarray) -> np.ndarray:
        """Convert the colours of labels, uint8 [H, W, 3], to the values of these labels, [H, W]."""
        coded = rgb.astype(np.int64) @ np.array([65536, 256, 1])
        found, places = np.unique(coded, return_inverse=True)
        colours: list[Colour] = [(c >> 16, c >> 8 & 255, c & 255) for c in found.tolist()]
        unknown = [colour for colour in colours if colour not in self.colours]
        if unknown:
            raise DataError(f"{self.path}: colour {unknown[0]} of no label ({len(unknown)} such colours)")
        by_label = {label: value for value, label in self.values.items()}
        return np.array([by_label[self.colours[c]] for c in colours])[places].reshape(coded.shape)


def _lists(root: Path) -> dict[str, list[str]]:
    """Return the ids of each split.

    "trainval" is not a split of its own, because it repeats others; if it is the only list, it is all images.
    """
    files = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    if [path.stem for path in files] == ["trainval"]:
        return {"": read_ids(files[0])}
    return {path.stem: read_ids(path) for path in files if path.stem != "trainval"}


def _label_colours(file: Path) -> dict[Colour, str]:
    """Return the labels in labelmap.txt by their colour."""
    found: dict[Colour, str] = {}
    places: list[tuple[str, object]] = []
    for number, line in enumerate(read_text(file, "lines such as 'car:128,0,0::'").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{file}: line {number}"
        name, _, rest = line.partition(":")
        words = rest.partition(":")[0].split(",")
        if len(words) != 3 or not all(w.strip().isdecimal() and int(w) < 256 for w in words):
            raise DataError(
                f"{where}: {line[:60]!r}, expected a label and its colour such as 'car:128,0,0::'"
            )
        red, green, blue = (int(word) for word in words)
        if (red, green, blue) in found:
            raise DataError(f"{where}: a second label has the colour {red},{green},{blue}")
        found[red, green, blue] = Node(name.strip(), where).text()
        places.append((found[red, green, blue], where))
    list(unique_names(places, "label"))
    if not found:
        raise DataError(f"{file}: no labels, expected lines such as 'car:128,0,0::'")
    return found


def _colour_map(count: int) -> list[Colour]:
    """Return PASCAL VOC's colours of the values 0 .. count-1: a value's bits, spread over the channels."""
    colours: list[Colour] = []
    for value in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (value >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


VOC = Format(read_voc, frozenset({"images", "masks", "task", "classes", "ignore"}))

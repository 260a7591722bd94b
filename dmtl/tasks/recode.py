"""Map stored values or colours to class ids, as the options `values` and `colors` of dataset.yaml say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dmtl.errors import ConfigError
from dmtl.text import shortened

IGNORE = "ignore"  # the word for pixels without a label
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_LARGEST = 1 << 31  # limit of a stored value


def read_value(thing: object) -> int | None:
    """Return `thing` if it can be a stored value; otherwise None."""
    if not isinstance(thing, int) or isinstance(thing, bool):
        return None
    return thing if abs(thing) < _LARGEST else None


def read_colour(thing: object) -> int | None:
    """Return the code 65536 r + 256 g + b of a colour [r, g, b] or "#rrggbb"; None for anything else."""
    if isinstance(thing, str):
        return int(thing[1:], 16) if _HEX.fullmatch(thing) else None
    if not isinstance(thing, (list, tuple)) or len(thing) != 3:
        return None
    if not all(type(part) is int and 0 <= part <= 255 for part in thing):
        return None
    return int(thing[0]) << 16 | int(thing[1]) << 8 | int(thing[2])


def class_table(
    option: str, entries: object, names: Sequence[str], ignore: int, read: Callable[[object], int | None]
) -> dict[int, int]:
    """Return the table for `recode` that an option describes: stored value or colour code -> id.

    Args:
        option: name of the option, for messages.
        entries: a list of the stored value of each class; or a mapping from stored values to classes, or from
            classes to one or more stored values. A class is its name, its id, or "ignore" (also null, or the
            ignore value itself).
        names: names of the classes.
        ignore: id of pixels without a label.
        read: `read_value` or `read_colour`.

    Raises:
        ConfigError: `entries` has another form, names an unknown class, or gives a stored value to two
            classes.
    """
    table: dict[int, int] = {}
    for stored, word in _pairs(option, entries, names, read):
        id = _class_id(option, word, names, ignore)
        if table.setdefault(stored, id) != id:
            raise ConfigError(f"{option} gives {stored_name(option, stored)} to two classes")
    if not table:
        raise ConfigError(f"{option} is empty, expected an entry for each class")
    return table


def recode(codes: np.ndarray, table: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Convert stored values to ids.

    Returns:
        uint8 ids, and bool: whether the table has the value; both of the shape of `codes`.
    """
    if codes.dtype == np.uint8:  # look up 256 values instead of each pixel
        ids, known = recode(np.arange(256), table)
        return ids[codes], known[codes]
    keys = np.array(sorted(table), np.int64)
    ids = np.array([table[key] for key in keys.tolist()], np.uint8)
    codes = codes.astype(np.int64)
    place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
    return ids[place], keys[place] == codes


def colour_codes(stored_HW3: np.ndarray) -> np.ndarray:
    """Convert colours, uint8 [H, W, 3], to the codes of `read_colour`, int64 [H, W]."""
    red, green, blue = np.moveaxis(stored_HW3.astype(np.int64), 2, 0)
    return red << 16 | green << 8 | blue


def stored_name(option: str, code: int) -> str:
    """Return the name of a stored value or colour in messages."""
    return f"#{code:06x}" if option == "colors" else str(code)


def _pairs(
    option: str, entries: object, names: Sequence[str], read: Callable[[object], int | None]
) -> Iterator[tuple[int, Any]]:
    """Yield (stored value or colour code, class) for each entry."""
    what = "[r, g, b] or '#rrggbb'" if option == "colors" else "whole numbers"
    if isinstance(entries, list):
        if len(entries) != len(names):
            raise ConfigError(
                f"{option} lists {len(entries)} entries, expected {len(names)}, one for each class"
            )
        entries = dict(zip(names, entries))
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{option} is {entries!r:.80}, expected a list or a mapping of {what} and classes")
    for key, value in entries.items():
        if (stored := read(key)) is not None:
            yield stored, value
            continue
        several = value if read(value) is None and isinstance(value, list) else [value]
        for thing in several:
            if (stored := read(thing)) is None:
                raise ConfigError(f"{option} has {key!r:.40}: {thing!r:.40}, expected {what} and a class")
            yield stored, key


def _class_id(option: str, word: object, names: Sequence[str], ignore: int) -> int:
    if isinstance(word, bool):  # YAML reads the class names "true" and "false" of a binary task as bool
        word = "yes" if word else "no"
    if isinstance(word, str) and word in names:
        return names.index(word)
    if word in (None, IGNORE, ignore):
        return ignore
    if isinstance(word, int) and 0 <= word < len(names):
        return word
    raise ConfigError(
        f"{option} names the class {word!r:.40}, expected 0 to {len(names) - 1}, a name "
        f"({shortened(names)}) or {IGNORE!r}"
    )

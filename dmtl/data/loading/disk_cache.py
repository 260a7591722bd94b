"""A data set that caches its samples on disk once they have been read or rendered."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from dmtl import __version__
from dmtl.data.base import LabelledImages, Sample
from dmtl.data.loading.wrappers import Wrapper
from dmtl.errors import one_line
from dmtl.runtime.files import write_atomically


class DiskCached(Wrapper):
    """Cache samples below `folder` for all workers, processes and later runs that read the same data.

        FOLDER/<data set>-<split>/image-<digest>/000007.npz            pixels as they were read, uncompressed
        FOLDER/<data set>-<split>/<task>-label-<digest>/000007.npz     labels, once they have been requested

    The digest is that of `dataset.identity` and of this package's version. A different data set, split or
    size, or an edited file, leads to a different folder, so data never get mixed. Unused folders can be
    deleted. Files are written atomically (several processes may write the same one) and have a checksum. If a
    file is damaged, a warning is issued and the file is written again.

    Raises:
        OSError: the folder cannot be written, for example because the disk is full; the message names it.
    """

    def __init__(self, dataset: LabelledImages, folder: str | os.PathLike):
        super().__init__(dataset)
        self.folder = Path(folder)
        base = self.folder / quote(f"{self.name}-{self.split}", safe="")
        self._folders: dict[str | None, Path] = {None: base / f"image-{_digest(dataset.identity())}"}
        for task in self.tasks:
            self._folders[task] = base / f"{quote(task, safe='')}-label-{_digest(dataset.identity(task))}"

    def read(self, index: int, tasks: Iterable[str] | None = None) -> Sample:
        exists = set(self._exists.tasks_of(self.ids[index]))
        names = [task for task in self.wanted(tasks) if task in exists]
        image, *kept = (self._load(index, part) for part in (None, *names))
        missing = [task for task, label in zip(names, kept) if label is None]
        found = {task: label["pixels"] for task, label in zip(names, kept) if label is not None}
        if image is None or missing:
            fresh = self.dataset.read(index, missing)
            if image is None:
                image = {"pixels": fresh.image}
                if fresh.valid_size is not None:
                    image["valid_size"] = torch.tensor(fresh.valid_size)
                    image["valid_at"] = torch.tensor(fresh.valid_at)
                self._keep(index, None, image)
            for task, label in fresh.labels.items():
                self._keep(index, task, {"pixels": label})
            found |= fresh.labels
        labels = {t: found[t] for t in names if t in found}
        valid = {name: tuple(image[name].tolist()) for name in ("valid_size", "valid_at") if name in image}
        return Sample(self.ids[index], image["pixels"], labels, **valid)

    def _path(self, index: int, part: str | None) -> Path:
        return self._folders[part] / f"{index:06d}.npz"

    def _load(self, index: int, part: str | None) -> dict[str, Tensor] | None:
        """Load the cached image (`part` None) or label; None if it is missing or damaged."""
        path = self._path(index, part)
        try:
            # a zip archive: zipfile verifies checksums while reading
            with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                kept = {name: torch.from_numpy(file[name]) for name in file.files}
            if kept["pixels"].ndim != 3:
                raise ValueError(f"pixels of shape {tuple(kept['pixels'].shape)}")
            return kept
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # numpy and zipfile raise many types on broken files
            warnings.warn(f"{path}: damaged cache file ({one_line(error)}), writing it again", stacklevel=2)
            return None

    def _keep(self, index: int, part: str | None, kept: dict[str, Tensor]) -> None:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in kept.items()}
        try:
            write_atomically(self._path(index, part), lambda temporary: np.savez(temporary, **arrays))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.folder}: cannot cache samples here ({error.strerror}), expected a folder with "
                "enough space; set data.cache_dir to another folder, or remove it",
            ) from None


def _digest(identity: list) -> str:
    text = json.dumps([__version__, identity], sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=12).hexdigest()

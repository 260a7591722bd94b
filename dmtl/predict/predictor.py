"""Predict maps for images of any size: one image in memory, or files and folders.

Maps of files are written to a folder; `dmtl.predict.outputs` describes its content.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmtl import __version__
from dmtl.data.images import read_image, to_rgb
from dmtl.engine.engine import Engine
from dmtl.errors import ConfigError, DataError
from dmtl.models import DiffusionMTL, MultiTaskBaseline, from_pretrained
from dmtl.predict.compute import BatchPredictor
from dmtl.predict.inputs import find_inputs
from dmtl.predict.ledger import Ledger, fingerprint
from dmtl.predict.maps import FORMAT, describe_uncertainty
from dmtl.predict.outputs import RESERVED, Outputs, Summary, output_folder
from dmtl.predict.parts import Part
from dmtl.predict.stream import Stream
from dmtl.predict.video import require_av
from dmtl.runtime.devices import pick_device
from dmtl.runtime.distributed import World, barrier, gather
from dmtl.tasks import chosen_tasks


class Predictor:
    """A trained model, ready to predict.

    Args:
        model: a model, or anything that `dmtl.from_pretrained` loads: the folder of a run or model, a
            published file, an id on the Hub. None: the model that comes with dmtl.
        device: anything that `torch.device` accepts, or "auto"; None: the device of the model (a loaded model
            is on the CPU).
        steps: number of denoising steps; None: as trained; "auto": until the maps no longer change.
        eta: amount of noise of "ddim", see `DiffusionMTL.forward`; None: as configured in the model.
        sampler: see `DiffusionMTL.forward`; None: as configured in the model.
        tasks: names of the tasks to predict; None: all.
        seed: seed of the noise. Every image gets the same noise, so its maps do not depend on other images.
        precision: "fp32", "tf32", "bf16", "fp16", or "auto": fp32 on a CPU and bf16 on a GPU.
        samples: number of noise samples to average; with 2 or more, there are also uncertainty maps.
        batch_size: maximum number of images of equal size in a batch; None: 1 on a CPU, up to 8 on a GPU.
        tile: side of the tiles into which large images are split, in pixels; 0: no tiles; None: tiles only if
            memory does not suffice.
        downscale: factor by which images are scaled down for the network; maps keep the size of the image.
            None: chosen by the size of the training images, see `dmtl.Engine`.
        inplace: modify the model instead of copying it; the model cannot be used afterwards.

    Raises:
        ConfigError: the device does not work on this machine, a task is unknown (the message suggests the
            nearest name), or an option has a value that cannot work.
        CheckpointError: the model cannot be loaded.

    Examples:
        >>> predictor = Predictor()
        >>> predictor("street.jpg")["semseg"].shape
        torch.Size([480, 640])
    """

    def __init__(
        self,
        model: DiffusionMTL | MultiTaskBaseline | str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        *,
        steps: int | str | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
        precision: str = "auto",
        samples: int = 1,
        batch_size: int | None = None,
        tile: int | None = None,
        downscale: int | None = None,
        inplace: bool = False,
    ):
        for option, value in (("steps", steps), ("samples", samples), ("batch_size", batch_size)):
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"Predictor: {option} must be at least 1, got {value}")
        if steps == "auto" and (batch_size or 1) > 1:
            raise ConfigError(
                f'Predictor: batch_size must be 1 with steps="auto", because images of a batch would '
                f"influence each other's steps, got {batch_size}"
            )
        if model is None or isinstance(model, (str, os.PathLike)):
            model, inplace = from_pretrained(model), True
        self.tasks = {name: model.tasks[name] for name in chosen_tasks("Predictor", model.tasks, tasks)}
        self.device = pick_device(model.device if device is None else device)
        self.fingerprint = fingerprint(model)
        self.steps, self.chain = steps, {"steps": steps, "eta": eta, "sampler": sampler}
        self.seed, self.samples = seed, samples
        self._tile_side, self._downscale = tile, downscale
        names = list(self.tasks)
        self.engine = Engine(
            model,
            self.device,
            precision=precision,
            steps=steps,
            eta=eta,
            sampler=sampler,
            tasks=names,
            samples=samples,
            tile=tile,
            downscale=downscale,
            inplace=inplace,
        )
        self._batches = BatchPredictor(self.engine, self.device, names, seed, batch_size)

    def __call__(self, image: Tensor | np.ndarray | Image.Image | str | os.PathLike) -> dict[str, Tensor]:
        """Predict one image.

        Args:
            image: path of an image file, Pillow image, uint8 array [H, W, 3] or uint8 tensor [3, H, W] (RGB).

        Returns:
            task -> decoded map at the image's size, on the CPU: [H, W], int64 for class ids and float32 for
            probabilities and numbers; float32 [3, H, W] for unit vectors.

        Raises:
            TypeError: `image` has another type or dtype.
            ValueError: `image` has another shape.
            DataError: the file cannot be read, the image does not fit into memory, or maps are not finite.
        """
        batch = self._batches([_as_tensor(image)])
        batch.wait()
        (maps,) = batch.maps
        if isinstance(maps, DataError):
            raise maps
        maps.check()
        return maps.maps

    def predict_files(
        self,
        paths: Iterable[str | os.PathLike],
        out_dir: str | os.PathLike,
        *,
        pictures: bool = True,
        npy: bool = False,
        every: int = 1,
        frames: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        shard: tuple[int, int] = (1, 1),
        world: World | None = None,
    ) -> Summary:
        """Predict every image and every video among `paths` (files and folders) into `out_dir`.

        Reading, computing and writing overlap. Inputs that cannot be read or do not fit into memory are
        skipped and listed in the summary. For a damaged video, the frames before the damage are kept.

        An input is predicted only if its outputs are missing or older than the input, or if it failed before.
        So a repeated call continues after an interruption, and predicts inputs that are new.

        Args:
            paths: image files, video files, and folders of them.
            out_dir: a new or empty folder, or one that `predict_files` wrote with this model and these
                options.
            pictures: also write coloured pictures and overview sheets.
            npy: also write unit vectors as .npy.
            every: predict every n-th frame of a video.
            frames: maximum number of frames of a video; None: all.
            progress: called after each image or frame with the number of those that this process has
                finished, and the number of all that it predicts.
            shard: (k, n): predict the k-th of n parts of the inputs. The part that finds all others complete
                writes maps.json.
            world: the processes that share the inputs (or the shard) and call this together, from
                `dmtl.runtime.distributed.connect`. The first one waits for the others and returns the summary
                of all. None: only this process.

        Raises:
            OSError: an output cannot be written (no permission, full disk); the message names the path.
            DataError: `out_dir` holds other files, or maps of another model or other options.
            ConfigError: a task has the name of a folder that dmtl writes, `every` or `frames` is below 1, the
                shard does not exist, or all inputs are videos and PyAV is missing.
        """
        self._check_files(every, frames)
        part = Part.of(shard, World() if world is None else world)
        out = output_folder(out_dir)
        listing = find_inputs(paths, out)
        if listing[0] and all(item.is_video for item in listing[0]):
            require_av()
        outputs = Outputs(out, self.tasks, pictures=pictures, npy=npy)
        head = self._head() | {"pictures": pictures, "npy": npy, "every": every, "frames": frames}
        ledger = Ledger(outputs, listing, head, part, self._batches.limit(1, 1))
        if len(part.together) > 1 and len({str(seen) for seen in gather((ledger.digest, head))}) > 1:
            raise DataError(
                f"{out}: the processes have different inputs, models, threads or devices, expected the same "
                "in all; wait until no more files are added, and set OMP_NUM_THREADS alike on all machines"
            )
        todo = ledger.begin()
        if len(part.together) > 1:
            barrier()
            ledger.check_shared()
        start = time.perf_counter()
        try:
            Stream(self._batches, outputs, ledger, progress, every=every, frames=frames).run(todo)
        except BaseException:  # also Ctrl-C
            ledger.interrupt()
            raise
        return ledger.finish(time.perf_counter() - start)

    def _head(self) -> dict[str, Any]:
        """Return everything that the maps depend on.

        Batches, tiles, device and threads affect the last bits.
        """
        head: dict[str, Any] = {
            "format": FORMAT,
            "model": self.fingerprint,
            "version": __version__,
            **self.chain,
        }
        head |= {"seed": self.seed, "samples": self.samples, "precision": self.engine.precision}
        if self.samples > 1:
            head["uncertainty"] = {name: describe_uncertainty(task) for name, task in self.tasks.items()}
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        head |= {"batch_size": self._batches.batch_size, "tile": self._tile_side}
        head |= {"downscale": self._downscale}
        head |= {"device": self.device.type, "threads": threads}
        return head | {"tasks": {name: task.map_format() for name, task in self.tasks.items()}}

    def _check_files(self, every: int, frames: int | None) -> None:
        clash = [name for name in self.tasks if name in RESERVED]
        if clash:
            known = f"{', '.join(RESERVED[:-1])} or {RESERVED[-1]}"
            raise ConfigError(f"predict_files: tasks must not be called {known}, got {clash[0]!r}")
        for option, value in (("every", every), ("frames", frames)):
            if value is not None and value < 1:
                raise ConfigError(f"predict_files: {option} must be at least 1, got {value}")


def _as_tensor(image: Tensor | np.ndarray | Image.Image | str | os.PathLike) -> Tensor:
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    expected = (
        "Predictor: image must be a path, a Pillow image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]"
    )
    if not isinstance(image, (Tensor, np.ndarray)):
        raise TypeError(f"{expected}, got {type(image).__name__}")
    got = f"{expected}, got {image.dtype} {list(image.shape)}"
    if image.dtype not in (torch.uint8, np.uint8):
        raise TypeError(got)
    channels = 0 if isinstance(image, Tensor) else 2
    if image.ndim != 3 or image.shape[channels] != 3 or 0 in image.shape:
        raise ValueError(got)
    return (
        image
        if isinstance(image, Tensor)
        else torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    )

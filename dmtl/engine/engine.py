"""The engine: a trained model in its fastest form for inference, on a CPU or a GPU.

    engine = Engine(model)
    out = engine.maps(image)                     # image [B, 3, H, W], ImageNet-normalised
    out.maps["semseg"], out.maps["depth"]
    engine(image).final["depth"]                 # logits, as model(image) returns them

Everything that depends only on the parameters is computed once (`dmtl.engine.network`). `maps` never
allocates full-size logits. Repeated call signatures are replayed without Python (`dmtl.engine.graphs`): on a
GPU as a CUDA graph, on a CPU, for small images, as a recording (`dmtl.engine.replay`). Large images are split
into tiles if memory does not suffice (`dmtl.engine.tiles`). From several noise samples the engine computes
maps of the model's uncertainty (`dmtl.engine.noise`). In fp32, an engine computes the same function as its
model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import record_function

from dmtl.diffusion import CounterNoise, NoiseSource, Plan, make_sampler
from dmtl.engine.call import Call, capturable, draws_of
from dmtl.engine.graphs import Captured, Compute, Graphs
from dmtl.engine.heads import finite
from dmtl.engine.memory import tile_side
from dmtl.engine.network import LARGE, Network
from dmtl.engine.noise import KeyedNoise, average, keys_of
from dmtl.engine.numerics import PRECISIONS, choose_form
from dmtl.engine.replay import cpu_capture
from dmtl.engine.scale import downscale_for, downscaled
from dmtl.engine.tiles import tiled
from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, Maps, MultiTaskBaseline, Prediction
from dmtl.models.initial import PAD_MULTIPLE, decode, pad_image, upsample
from dmtl.nn.efficientnet import FusedBlock
from dmtl.nn.precision import tf32
from dmtl.ops.registry import choices
from dmtl.runtime import cores, native
from dmtl.runtime.memory import Pool, available_bytes, return_freed
from dmtl.tasks import known_tasks

AUTO_STEPS = 8  # maximum for steps="auto", unless the model was trained with more
GRAPHS = 1 / 8  # share of a GPU's memory for captured graphs
RECORDED = 1 << 20  # elements of the largest batch whose calls a CPU records; more take long in the kernels
SERIAL = 1 << 21  # elements times threads up to which torch's own operators have one thread
RECORDINGS = 128 << 20  # bytes for recordings
OVERLAP = 4  # neighbouring tiles overlap by 1/4 of their side


class Engine:
    """A model ready for fast prediction.

    Args:
        model: a `DiffusionMTL` or a baseline. It is copied and not modified, unless `inplace` is True.
        device: device to compute on; None: that of the model.
        precision: "fp32", "tf32" (GPU), "bf16", "fp16" (GPU), or "auto": fp32 on a CPU and bf16 on a GPU.
            On a CPU, "bf16" applies to the cross blocks only, and only if that was measured to be faster.
        steps: number of denoising steps. None: as trained. "auto": stop as soon as a step changes no task's
            logits by more than `tolerance`, at most after 8 steps or the trained number if that is larger.
        eta: see `DiffusionMTL.forward`; None: as configured in the model.
        sampler: see `DiffusionMTL.forward`; None: as configured in the model.
        tasks: names of the tasks that are predicted by default; None: all.
        samples: number of noise samples to average; with 2 or more, maps have an uncertainty.
        seed: seed of the noise.
        tile: side of the tiles into which larger images are split, in pixels after downscaling, a multiple of
            32. 0: no tiles. None: tiles only if memory does not suffice.
        downscale: factor of at least 1 by which images are scaled down for the network; maps always have the
            size of the image. None: chosen by the size of the training images, if the model stores it
            (`dmtl.engine.scale`).
        tolerance: limit of the relative change (L2 over the batch) for steps="auto".
        inplace: modify the model instead of copying it; the model cannot be used afterwards.

    Raises:
        ConfigError: an option has a value that cannot work; the message names it.
        TypeError: `model` is not a model of this package.
    """

    def __init__(
        self,
        model: DiffusionMTL | MultiTaskBaseline,
        device: str | torch.device | None = None,
        *,
        precision: str = "auto",
        steps: int | str | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        tasks: Iterable[str] | None = None,
        samples: int = 1,
        seed: int = 0,
        tile: int | None = None,
        downscale: int | None = None,
        tolerance: float = 1e-2,
        inplace: bool = False,
    ):
        if not isinstance(model, (DiffusionMTL, MultiTaskBaseline)):
            raise TypeError(f"Engine: model must be a DiffusionMTL or a baseline, got {type(model).__name__}")
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        self.config, self.tasks = model.config, model.tasks
        self.steps, self.samples, self.tile, self.tolerance = steps, samples, tile, tolerance
        self.downscale = downscale
        self.sampler = self.config.sampler_for(sampler, eta)
        make_sampler(*self.sampler)  # raises ConfigError here, not in the first call
        self.chosen = tuple(known_tasks("Engine", self.tasks, tasks))
        self.noise = CounterNoise(seed)
        self._check_options(steps, samples)
        if tile is not None and (tile < 0 or tile % PAD_MULTIPLE):
            raise ConfigError(f"Engine: tile must be 0 or a multiple of {PAD_MULTIPLE}, got {tile}")
        if downscale is not None and downscale < 1:
            raise ConfigError(f"Engine: downscale must be at least 1, got {downscale}")
        if precision != "auto" and precision not in PRECISIONS[self.device.type]:
            known = ", ".join(("auto", *PRECISIONS[self.device.type]))
            raise ConfigError(
                f"Engine: precision must be one of {known} on a {self.device.type}, got {precision!r}"
            )
        self.precision = PRECISIONS[self.device.type][0] if precision == "auto" else precision
        own = (model if inplace else copy.deepcopy(model)).to(self.device).float().eval()
        with torch.inference_mode():
            self.form = choose_form(own, self.device, self.precision)
            self.network = Network(own, self.form)
        self._fused = native.core() is not None and any(
            isinstance(part, FusedBlock) for part in own.modules()
        )
        return_freed()  # the memory of layers that were folded away
        self._pool = Pool()
        self._graphs: Graphs | None = None
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            self._graphs = Graphs(memory=GRAPHS * total)
        elif self.device.type == "cpu":
            self._graphs = Graphs(partial(_recorded, self._pool), memory=RECORDINGS)
        self._last_kind: tuple[torch.Size, int, int] | None = None

    @torch.inference_mode()
    def maps(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        steps: int | str | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        noise: NoiseSource | None = None,
        samples: int | None = None,
    ) -> Maps:
        """Predict decoded maps of a batch.

        Args:
            image: float32 [B, 3, H, W] on the engine's device, ImageNet-normalised, any H and W.
            tasks: names of the tasks to predict; None: those of the engine.
            steps: number of denoising steps, or "auto"; None: that of the engine.
            eta: see `DiffusionMTL.forward`; None: that of the engine.
            sampler: see `DiffusionMTL.forward`; None: that of the engine.
            noise: source of the noise; None: `CounterNoise(seed)`. Other classes of sources only allow one
                noise sample.
            samples: number of noise samples; None: that of the engine.

        Returns:
            The maps, whether they are finite, uncertainties (if samples > 1), and the number of steps (0 for
            a model without a chain).

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: the image has a wrong shape or device.
            ConfigError: another argument has a value that cannot work.
        """
        call = self._call(
            image, tasks, steps, eta, sampler, noise, self.samples if samples is None else samples
        )
        padded = pad_image(downscaled(image, call.downscale))
        side = self._tile("maps", padded, call)
        if not call.wanted:
            return Maps({}, {}, {}, 0)
        with self._computing(padded, call):
            if side is None:
                return Maps(*self._run("maps", padded, call))
            draws, steps = self._all_logits(padded, call, side)
            return Maps(*self._decoded(draws, call), steps)

    @torch.inference_mode()
    def __call__(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        steps: int | str | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        noise: NoiseSource | None = None,
    ) -> Prediction:
        """Return final and initial logits at the image's size, float32, for one noise sample.

        The result is that of `DiffusionMTL.forward` without a trace. `maps` describes the arguments.
        """
        call = replace(self._call(image, tasks, steps, eta, sampler, noise, 1), initial=True)
        if not call.wanted:
            return Prediction({}, {}, {})
        padded = pad_image(downscaled(image, call.downscale))
        with self._computing(padded, call):
            (initial, final), _ = self._all_logits(padded, call, self._tile("logits", padded, call))
        frame = (call.downscale * padded.shape[-2], call.downscale * padded.shape[-1])

        def large(maps: dict[str, Tensor]) -> dict[str, Tensor]:
            return {t: upsample(x.float(), frame, call.size) for t, x in maps.items()}

        return Prediction(large(final), large(initial), {})

    @contextmanager
    def _computing(self, padded: Tensor, call: Call) -> Iterator[None]:
        """In this context, set TF32 as the precision requires and, on a CPU, use the engine's memory pool.

        If kernels compute the encoder, torch's own operators are a small part. Unless there are many threads
        or pixels, they have one thread (`dmtl.runtime.cores`), which costs 3 % on two cores. Then maps
        have the same bits for any number of threads.

        The pool is emptied if the call signature changes. It is also emptied before a large image: idle
        blocks would add to the encoder's peak memory, and the page faults of new ones take only 1 % of the
        time there.
        """
        kind = (padded.shape, len(call.wanted), len(call.noises))
        if kind != self._last_kind or padded.numel() >= LARGE:
            self._pool.release()
        self._last_kind = kind
        small = self._fused and padded.numel() * torch.get_num_threads() <= SERIAL
        with (
            tf32(self.precision == "tf32"),
            self._pool.in_use(),
            cores.for_kernels() if small else nullcontext(),
        ):
            yield

    def _call(
        self,
        image: Tensor,
        tasks: Iterable[str] | None,
        steps: int | str | None,
        eta: float | None,
        sampler: str | None,
        noise: NoiseSource | None,
        samples: int,
    ) -> Call:
        """Check the arguments and fill in the defaults."""
        self._check_image(image)
        steps = self.steps if steps is None else steps
        self._check_options(steps, samples)
        chain, trained = self.network.mtdnet is not None, self.config.steps
        most = max(AUTO_STEPS, trained) if steps == "auto" else trained
        size = (image.shape[-2], image.shape[-1])
        core = native.core() if self.device.type == "cpu" else None
        if core is not None:
            cores.adapt()
        return Call(
            wanted=self.chosen if tasks is None else tuple(known_tasks("Engine", self.tasks, tasks)),
            size=size,
            downscale=self.downscale or downscale_for(self.config.image_size, *size),
            steps=steps if isinstance(steps, int) else most,
            sampler=self.sampler
            if eta is None and sampler is None
            else self.config.sampler_for(sampler, eta),
            tolerance=self.tolerance if steps == "auto" and chain else None,
            noises=draws_of(self.noise if noise is None else noise, samples if chain else 1),
            how=() if core is None else (cores.threads(), core.isa(), choices()),
        )

    def _all_logits(
        self, padded: Tensor, call: Call, side: int | None
    ) -> tuple[list[dict[str, Tensor]], int]:
        """Compute `_logits` of the whole image, in tiles of `side` pixels if it is not None."""
        if side is None:
            return self._run("logits", padded, call)
        overlap = max(side // OVERLAP // PAD_MULTIPLE, 1) * PAD_MULTIPLE
        return tiled(lambda tile: self._run("logits", tile, call), padded, side, overlap)

    def _run(self, what: str, tile: Tensor, call: Call) -> tuple:
        """Call the method `what` for a padded image or tile, by replaying a graph if possible."""
        compute = self._predicted_maps if what == "maps" else self._plain_logits
        if self._graphs is None or not self._repeatable(tile, call):
            return compute(tile, call)
        keys = keys_of(call.noises, call.wanted, tile.shape[0], tile.device)

        def of_inputs(tile: Tensor, *keys: Tensor) -> tuple:
            return compute(tile, replace(call, noises=[KeyedNoise(call.wanted, key) for key in keys]))

        return self._graphs(self._signature(what, tile, call), of_inputs, (tile, *keys))

    def _repeatable(self, tile: Tensor, call: Call) -> bool:
        """Return whether a graph can repeat a call and is worth its memory.

        Averaging noise samples on a CPU is not, because it works on maps of the image's size.
        """
        worth = self.device.type != "cpu" or (tile.numel() <= RECORDED and len(call.noises) == 1)
        return worth and capturable(call)

    @staticmethod
    def _signature(what: str, tile: Tensor, call: Call) -> tuple:
        """Return everything that a computation depends on, except pixels and noise."""
        return what, tuple(tile.shape), replace(call, noises=len(call.noises))

    def _plain_logits(self, padded: Tensor, call: Call) -> tuple[list[dict[str, Tensor]], int]:
        draws, steps = self._logits(padded, call)
        return [dict(draw) for draw in draws], steps

    def _predicted_maps(self, padded: Tensor, call: Call) -> tuple[dict, dict, dict, int]:
        draws, steps = self._logits(padded, call)
        return *self._decoded(draws, call), steps

    def _logits(self, padded: Tensor, call: Call) -> tuple[list[dict[str, Tensor]], int]:
        """Return task -> logits for each noise sample, at the model's output stride, and the number of steps.

        If the call requests them, initial logits, at 1/8, come first in the list.
        """
        network = self.network
        with record_function("dmtl: initial"):
            features, logits, fine = network.initial(padded, call.wanted)
        if network.mtdnet is None:
            return [logits] * (2 if call.initial else 1), 0
        initial = [{task: logits[task] for task in call.wanted}] if call.initial else []
        plan = self._plan(call)
        draws, steps = network.denoised(
            features, logits, call.wanted, plan, call.noises, call.tolerance, fine
        )
        return initial + draws, steps

    def _plan(self, call: Call) -> Plan:
        sampler, eta = call.sampler
        assert self.network.mtdnet is not None
        return self.network.mtdnet.plan(self.device, call.steps, eta, sampler)

    def _decoded(self, draws: list[dict[str, Tensor]], call: Call) -> tuple[dict, dict, dict]:
        """Return decoded maps, whether they are finite, and (for several noise samples) their uncertainty."""
        maps, uncertain = {}, {}
        factor = self.config.output_stride * call.downscale
        with record_function("dmtl: decode"):
            for name in call.wanted:
                task, logits = self.tasks[name], [draw[name] for draw in draws]
                if len(logits) > 1:
                    maps[name], uncertain[name] = average(task, logits, call.size, factor)
                else:
                    maps[name] = decode(task, logits[0], call.size, factor)
            return maps, finite(draws, call.wanted), uncertain

    def _tile(self, what: str, padded: Tensor, call: Call) -> int | None:
        """Return the side of the tiles; None: the whole image at once."""
        if self._graphs is not None and self._signature(what, padded, call) in self._graphs:
            return None  # its graph already holds the memory
        batch, height, width = padded.shape[0], *padded.shape[-2:]
        side = self.tile
        if side is None:
            available = available_bytes(self.device)
            if available is not None and self._graphs is not None and self.device.type != "cpu":
                available -= self._graphs.held  # memory of graphs looks free between two replays
            return tile_side(
                self.config,
                len(call.wanted),
                batch,
                height,
                width,
                available,
                itemsize=self.form.maps.itemsize,
                samples=len(call.noises),
                history=self._plan(call).history if self.network.mtdnet is not None else 0,
                fused=self.form.fused,
            )
        return side if side and max(height, width) > side else None

    @staticmethod
    def _check_options(steps: int | str | None, samples: int) -> None:
        number = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1
        if not (steps is None or steps == "auto" or number):
            raise ConfigError(
                f'Engine: steps must be an integer of at least 1, "auto" or None, got {steps!r}'
            )
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise ConfigError(f"Engine: samples must be an integer of at least 1, got {samples!r}")

    def _check_image(self, image: Tensor) -> None:
        if not isinstance(image, Tensor) or image.dtype != torch.float32:
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"Engine: image must be a float32 tensor, got {got}")
        if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
            raise ValueError(
                f"Engine: image must have shape [B, 3, H, W], none of them 0, got {list(image.shape)}"
            )
        if image.device.type != self.device.type:
            raise ValueError(f"Engine: image must be on {self.device}, got {image.device}")


def _recorded(pool: Pool, compute: Compute, inputs: Sequence[Tensor]) -> Captured | None:
    """Return `cpu_capture`'s recording, made after the engine's pool is emptied: it has its own memory."""
    pool.release()
    return_freed()
    recording = cpu_capture(compute, inputs)
    return_freed()
    return recording

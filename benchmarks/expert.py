"""The network as a good engineer would run it without custom kernels: the second baseline for our speed.

It computes the same function as `published.py`, with channels_last, autocast, inference mode, torch.compile
with folded constants ("freezing": batch norms in convolutions, weights in the library's layout), CUDA graphs
on a GPU, all tasks that share weights in one batch, and F.scaled_dot_product_attention. The noise is one
buffer that torch's generator fills in place; on a CPU, compiled code would generate it at a third of that
rate. It lacks only what is the subject of this package: algebra across layers, and custom operators.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.models import DiffusionMTL
from dmtl.models.initial import pad_image
from dmtl.runtime.measure import seconds

from .plain import fine_map, initial_network, refined

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("max-autotune", "default")


class Expert:
    """The expert's execution of a `DiffusionMTL` (either mechanism, without our options) for images of one
    shape.

    The first mode that compiles is used if its calls are faster than eager ones, as a careful engineer would
    check; `how` records the outcome.

    Args:
        model: the model.
        image: an example [B, 3, H, W] on the model's device; noise buffers and compiled code fit its shape.
        tasks: names of the tasks to predict; None: all.
        precision: "fp32", "tf32" (the caller sets torch's flags), "bf16" or "fp16" (autocast).
        steps: number of denoising steps; None: as trained.
        modes: modes of torch.compile, of which the first that works is used; empty: eager.
    """

    def __init__(
        self,
        model: DiffusionMTL,
        image: Tensor,
        tasks: list[str] | None = None,
        *,
        precision: str = "bf16",
        steps: int | None = None,
        modes: tuple[str, ...] = MODES,
    ):
        if precision not in DTYPES:
            raise ValueError(f"Expert: precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        self.model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
        self.tasks = list(self.model.tasks if tasks is None else tasks)
        self.plan = self.model.mtdnet.plan(image.device, steps)
        self.dtype = DTYPES[precision]
        self.noise = [self._buffers(image) for _ in self.plan.levels]
        self._function: Callable = self._forward
        self.how = "eager, channels_last"
        if modes:
            self._choose(image, modes)

    def maps(self, image: Tensor, noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Predict task -> decoded map, [B, H, W] or [B, 3, H, W].

        `noise` is {task: [noise samples, B, C, h, w]}; None: draw it.
        """
        for draw, buffers in enumerate(self.noise):
            for task, buffer in buffers.items():
                buffer.normal_() if noise is None else buffer.copy_(noise[task][draw])
        return self._run(self._function, image)

    def _run(self, function: Callable, image: Tensor) -> dict[str, Tensor]:
        autocast = torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None)
        with torch.inference_mode(), autocast:
            if image.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            return function(image.contiguous(memory_format=torch.channels_last), self.noise)

    def _buffers(self, image: Tensor) -> dict[str, Tensor]:
        """Return task -> a buffer for one noise sample, in the layout and dtype of its maps."""
        h, w = (side // 8 for side in pad_image(image).shape[-2:])
        of_features, channels = self.model.config.diffusion == "feature", self.model.channels
        result = {}
        for task in self.tasks:
            shape = (image.shape[0], self.model.config.width if of_features else channels[task], h, w)
            buffer = torch.zeros(shape, dtype=self.dtype or image.dtype, device=image.device)
            result[task] = buffer.contiguous(memory_format=torch.channels_last)
            torch._dynamo.mark_static_address(result[task])  # CUDA graphs read it where it is
        return result

    def _choose(self, image: Tensor, modes: tuple[str, ...]) -> None:
        reasons = []
        for mode in modes:
            try:
                self._function = compiled(self._forward, mode)
                self.maps(image)
            except Exception as error:  # a failure of the compiler is a result of the benchmark
                reasons.append(f"{mode} failed: {type(error).__name__}")
                torch.compiler.reset()
                continue
            took, eager = (
                fastest_s(lambda: self._run(f, image), image.device)  # noqa: B023
                for f in (self._function, self._forward)
            )
            what = f"compiled {mode}, frozen"
            if took <= eager:
                self.how = "; ".join([f"{what}, channels_last", *reasons])
                return
            reasons.append(f"{what}: {took / eager:.2f}x eager's time")
            break
        self._function = self._forward
        self.how = "; ".join([self.how, *reasons])

    def _forward(self, image: Tensor, noise: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        net, of_features = self.model.mtdnet, self.model.config.diffusion == "feature"
        padded = pad_image(image)
        features, initial, encoded = initial_network(self.model.initial, padded)
        fine = fine_map(self.model, encoded, padded)
        condition = net.condition.conv(torch.cat(list(initial.values()), dim=1))
        start = {task: (features if of_features else initial)[task] for task in self.tasks}
        tokens = tokens_of(reduced(condition, net.condition.reduction))
        tokens = tokens.repeat(len(self.tasks), 1, 1)
        plan, last = self.plan, len(self.plan.levels) - 1
        x = {
            t: plan.sqrt_abar[last] * s + plan.sqrt_one_minus_abar[last] * noise[0][t]
            for t, s in start.items()
        }
        for i in reversed(range(last + 1)):
            clean = denoised(self.model, tokens, x, plan.levels[i])
            if i > 0:
                eps = noise[last + 1 - i]
                c1, c2, sigma = plan.coef1[i], plan.coef2[i], plan.sigma[i]
                x = {task: c1 * clean[task] + c2 * x[task] + sigma * eps[task] for task in x}
        logits = {t: net.heads[t](m) for t, m in clean.items()} if of_features else clean
        final = {t: refined(self.model, t, fine, clean[t], z) for t, z in logits.items()}
        return {task: self._decoded(task, z, image, padded.shape[-2:]) for task, z in final.items()}

    def _decoded(self, task: str, logits: Tensor, image: Tensor, padded: torch.Size) -> Tensor:
        height, width = image.shape[-2:]
        logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
        return self.model.tasks[task].decode(logits[..., :height, :width])


def denoised(
    model: DiffusionMTL, tokens: Tensor, noisy: dict[str, Tensor], level: float
) -> dict[str, Tensor]:
    """Denoise the signals of all tasks: the shared blocks process their rows, sorted by task, in one
    batch."""
    denoiser = model.mtdnet.denoiser
    time_C = denoiser.time_embedding(torch.full((1,), level, device=tokens.device))
    skip = torch.cat([denoiser.pre_layers[task](x) for task, x in noisy.items()])
    skip = skip + time_C[:, :, None, None]
    small = reduced(skip, denoiser.reduction)
    x, y = tokens, tokens_of(small)
    for block in denoiser.blocks:
        y = y + _mlp(block.mlp_kv, block.norm2_kv(y))
        x = x + _attention(block.attn, block.norm1(x), block.norm_kv(y))
        x = x + _mlp(block.mlp, block.norm2(x))
    grid = x.unflatten(1, small.shape[-2:]).permute(0, 3, 1, 2)
    maps = skip + F.interpolate(grid, skip.shape[-2:], mode="bilinear", align_corners=False)
    parts = maps.split([x.shape[0] for x in noisy.values()])
    return {t: denoiser.trunks[t](m) for t, m in zip(noisy, parts, strict=True)}


def compiled(function: Callable, mode: str) -> Callable:
    """Compile `function` for one shape in inference, without output; the first call folds constants."""
    from torch._inductor import config

    inner = torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
    options = {
        "freezing": True,
        "max_autotune_report_choices_stats": False,
        "autotune_num_choices_displayed": 0,
    }
    first = [True]

    def call(*arguments):
        if not first:
            return inner(*arguments)
        first.clear()
        with config.patch(options), warnings.catch_warnings(action="ignore"):
            return inner(*arguments)

    return call


def fastest_s(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of the shortest of three calls, in seconds."""
    return min(seconds(call, device) for _ in range(3))


def reduced(x: Tensor, reduction: int) -> Tensor:
    return F.interpolate(x, scale_factor=1 / reduction, mode="bilinear", align_corners=False)


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _mlp(mlp, x: Tensor) -> Tensor:
    return mlp.fc2(F.gelu(mlp.fc1(x)))


def _attention(attn, x: Tensor, y: Tensor) -> Tensor:
    q = attn.q(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    k, v = attn.kv(y).unflatten(-1, (2, attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

"""Count the operations and bytes of one prediction from the configuration of its model.

There are two counts. The published one executes the network layer by layer. The folded one merges adjacent
linear layers: the trunks' 1x1 into the 3x3 after it, and the condition's convolution and reduction into one
patch product. It also computes the condition's first query only once for all tasks and steps.

Legend: B images, R = B rows of each requested task, C channels, h x w the 1/8 map, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmtl.models import DiffusionMTL, ModelConfig, MultiTaskBaseline
from dmtl.models.initial import InitialNetwork, padded_side
from dmtl.models.skip import WIDTH
from dmtl.nn.backbone import make_backbone
from dmtl.tasks import task_from_spec

STAGES = ("initial", "condition", "chain", "skip", "decode")
OPERATORS = ("convolutions", "token_mlp", "cross_attention", "everything else")
WINOGRAD = 4.0  # F(4x4, 3x3) needs 36 products for 16 results, the direct algorithm 144


@dataclass(frozen=True)
class Part:
    """The work of one layer on all its rows.

    Attributes:
        stage: part of the network, such as "initial" or "chain".
        operator: operator that computes the layer.
        layer: name of the layer.
        flops: operations of the direct algorithm; a multiply-add counts as two.
        bytes: size of inputs, parameters and results, each counted once.
        winograd: the layer is a 3x3 convolution of stride 1 outside the encoder: the CPU's operator computes
            it by Winograd's algorithm with a quarter of the products.
    """

    stage: str
    operator: str
    layer: str
    flops: float
    bytes: float
    winograd: bool = False


def count(
    config: ModelConfig,
    size: tuple[int, int],
    batch: int = 1,
    *,
    steps: int | None = None,
    tasks: Sequence[str] | None = None,
    published: bool = False,
    itemsize: int = 4,
) -> list[Part]:
    """Count every layer of one prediction, including decoding.

    Args:
        config: configuration of the model.
        size: (height, width) of the images in pixels.
        batch: number of images.
        steps: number of denoising steps; None: as trained.
        tasks: names of the tasks to predict; None: all.
        published: count the published execution, layer by layer; False: count the folded one.
        itemsize: bytes of a number in maps, tokens and parameters.
    """
    height, width = map(padded_side, size)
    frame = (height, width)
    channels = {task.name: task.channels for task in map(task_from_spec, config.tasks)}
    wanted = list(channels if tasks is None else tasks)
    if config.diffusion == "none":  # without a condition, the maps of other tasks are not needed
        channels = {task: channels[task] for task in wanted}
    parts = list(_initial(config, channels, frame, batch, itemsize))
    if config.diffusion != "none":
        h, w = frame[0] // 8, frame[1] // 8
        steps = config.steps if steps is None else steps
        chain = _Chain(config, channels, wanted, batch, h, w, published, itemsize)
        parts += chain.condition()
        parts += [part for step in range(steps) for part in chain.step(first=step == 0)]
        parts += chain.heads()
    if config.output_stride == 4:
        parts += _skip(config, channels, wanted, frame, batch, itemsize)
    parts += _decode(config, channels, wanted, size, frame, batch, itemsize)
    return parts


def flops(parts: Iterable[Part], winograd: bool = False) -> float:
    """Return the sum of operations; with `winograd`, layers that can use that algorithm count a quarter."""
    return sum(part.flops / (WINOGRAD if winograd and part.winograd else 1) for part in parts)


def parameters(model: DiffusionMTL | MultiTaskBaseline) -> dict[str, dict[str, int]]:
    """Count parameters: part of the model -> {"trained": number, "frozen": number}."""
    parts = {"encoder": ["initial.backbone"], "initial decoders": ["initial"]}
    if isinstance(model, DiffusionMTL):
        parts |= {
            "condition": ["mtdnet.condition"],
            "cross blocks": ["mtdnet.denoiser.blocks", "mtdnet.denoiser.time_embedding"],
            "denoising decoders": ["mtdnet"],
        }
    if model.skip is not None:
        parts["skip decoder"] = ["skip"]
    counted = {part: {"trained": 0, "frozen": 0} for part in parts}
    for name, parameter in model.named_parameters():
        part = next(p for p, starts in parts.items() if any(name.startswith(s + ".") for s in starts))
        counted[part]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counted


def _initial(
    config: ModelConfig, channels: dict[str, int], frame: tuple[int, int], batch: int, itemsize: int
) -> Iterator[Part]:
    """Yield the layers of the initial network: build it without storage, run it, and record shapes by
    hooks."""
    found: list[Part] = []
    with torch.device("meta"):
        network = InitialNetwork(config, channels).eval()
        image = torch.empty(batch, 3, *frame)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(_seen(found, name, itemsize))
    with torch.no_grad():
        network(image)
    yield from found


def _seen(found: list[Part], name: str, itemsize: int) -> Callable:
    def hook(module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        [x], weight = inputs, module.weight
        products = output.numel() * weight[0].numel()  # each result is a sum over one filter
        square = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        winograd = square and not name.startswith("backbone")
        operator = "convolutions" if isinstance(module, nn.Conv2d) else "everything else"
        moved = itemsize * (x.numel() + weight.numel() + output.numel())
        found.append(Part("initial", operator, name, 2 * products, moved, winograd))

    return hook


@dataclass(frozen=True)
class _Chain:
    config: ModelConfig
    channels: dict[str, int]
    wanted: list[str]
    batch: int
    h: int
    w: int
    published: bool
    itemsize: int

    @property
    def tokens(self) -> int:
        """Return N for one image."""
        return self.h * self.w // self.config.token_reduction**2

    @property
    def rows(self) -> int:
        return self.batch * len(self.wanted)

    def condition(self) -> Iterator[Part]:
        C, total = self.config.width, sum(self.channels.values())
        if self.published:
            yield self._conv("condition", "condition.conv", total, C, 3, self.batch)
            return
        taps = 9 if self.config.token_reduction == 1 else 16  # 3x3 around one pixel, 4x4 around 2x2 pixels
        N = self.batch * self.tokens
        moved = self.batch * total * self.h * self.w + taps * total * C + 2 * N * C + C * C
        work = 2 * N * C * (taps * total + C)
        yield Part("condition", "everything else", "condition_tokens", work, self.itemsize * moved)

    def step(self, first: bool) -> Iterator[Part]:
        """Count one pass of the denoiser over all requested tasks, including the noising before it."""
        config, C = self.config, self.config.width
        for task in self.wanted:
            signal = C if config.diffusion == "feature" else self.channels[task]
            yield self._moved(f"noise.{task}", (2 if first else 3) * self.batch * signal * self.h * self.w)
            yield self._conv("chain", f"pre_layers.{task}", signal, C, 3, self.batch)
            if self.published:
                yield self._conv("chain", f"trunks.{task}.0", C, C, 1, self.batch)
            for place, out in ((1, C), (3, C), (5, signal)):
                yield self._conv("chain", f"trunks.{task}.{place}", C, out, 3, self.batch)
        maps, tokens = self.rows * C * self.h * self.w, self.rows * self.tokens * C
        yield self._moved("noisy_tokens", maps / self.config.token_reduction**2 + tokens)
        for number in range(config.blocks):
            yield from self._block(number)
        yield self._moved("upsample_add", tokens + 2 * maps)

    def heads(self) -> Iterator[Part]:
        """Count the heads, which compute logits from denoised features."""
        if self.config.diffusion == "feature":
            for task in self.wanted:
                C, out = self.config.width, self.channels[task]
                yield self._conv("chain", f"heads.{task}", C, out, 1, self.batch)

    def _block(self, number: int) -> Iterator[Part]:
        C, N, hidden = self.config.width, self.tokens, self.config.mlp_ratio * self.config.width
        tokens = self.rows * N
        for name in ("mlp_kv", "mlp"):
            moved = self.itemsize * (2 * tokens * C + 2 * C * hidden)
            yield Part("chain", "token_mlp", f"blocks.{number}.{name}", 4 * tokens * C * hidden, moved)
        with_query = self.published or number > 0
        weights = (4 if with_query else 3) * C * C
        work = 2 * tokens * weights + 4 * tokens * N * C
        moved = self.itemsize * (3 * tokens * C + weights)
        yield Part("chain", "cross_attention", f"blocks.{number}.attn", work, moved)

    def _conv(self, stage: str, layer: str, inside: int, out: int, side: int, rows: int) -> Part:
        return _convolution(stage, layer, inside, out, side, rows * self.h * self.w, self.itemsize)

    def _moved(self, layer: str, numbers: float) -> Part:
        return Part("chain", "everything else", layer, 0.0, self.itemsize * numbers)


def _convolution(
    stage: str, layer: str, inside: int, out: int, side: int, pixels: int, itemsize: int
) -> Part:
    """Count a convolution of side x side taps with `pixels` results of `out` channels."""
    weights = inside * out * side * side
    moved = itemsize * (pixels * (inside + out) + weights)
    return Part(stage, "convolutions", layer, 2 * pixels * weights, moved, winograd=side == 3)


def _skip(
    config: ModelConfig,
    channels: dict[str, int],
    wanted: list[str],
    frame: tuple[int, int],
    batch: int,
    itemsize: int,
) -> Iterator[Part]:
    """Count the skip decoder."""
    fine = batch * frame[0] * frame[1] // 16

    def conv(layer: str, inside: int, out: int, side: int, pixels: int) -> Part:
        return _convolution("skip", layer, inside, out, side, pixels, itemsize)

    with torch.device("meta"):
        first = int(make_backbone(config.backbone, config.backbone_width).channels[0])  # type: ignore[index]
    yield conv("skip", first, WIDTH, 1, fine)
    for task in wanted:
        signal = channels[task] if config.diffusion == "prediction" else config.width
        yield conv(f"reduce.{task}", signal, WIDTH, 1, fine // 4)
        yield conv(f"convs.{task}", WIDTH, WIDTH, 3, fine)
        yield conv(f"heads.{task}", WIDTH, channels[task], 1, fine)


def _decode(
    config: ModelConfig,
    channels: dict[str, int],
    wanted: list[str],
    size: tuple[int, int],
    frame: tuple[int, int],
    batch: int,
    itemsize: int,
) -> Iterator[Part]:
    """Count the decoding, which reads logits and writes maps once."""
    pixels, small = batch * size[0] * size[1], batch * frame[0] * frame[1] // config.output_stride**2
    for task in map(task_from_spec, config.tasks):
        if task.name in wanted:
            written = task.map_dtype.itemsize * task.label_channels
            moved = itemsize * small * channels[task.name] + written * pixels
            yield Part("decode", "everything else", f"decode.{task.name}", 0.0, moved)

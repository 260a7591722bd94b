"""A model in its form for inference: everything that depends only on the parameters is computed once.

Batch norms are folded into the convolutions before them, the trunks' 1x1 into the 3x3 after it (exact at the
border), the condition's convolution and reduction into one patch product, each step's time embedding into the
biases before it. Only the requested tasks are denoised; the cross blocks process the tokens of all of them in
one batch.

Legend: B images, C channels of a map at 1/8 resolution, C_T logit channels of a task.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dmtl.diffusion import NoiseSource, Pairs, Plan
from dmtl.engine.heads import Heads
from dmtl.engine.numerics import Form
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.models.config import ModelConfig
from dmtl.models.denoiser import Denoiser, Layers
from dmtl.models.initial import join_maps
from dmtl.models.mtdnet import Denoised, MTDNet, Run
from dmtl.nn.cross_block import CrossBlock
from dmtl.nn.efficientnet import fuse_blocks_
from dmtl.nn.folding import fold_batch_norms_
from dmtl.nn.grouped_conv import GroupedConv
from dmtl.nn.resnet import BasicBlock
from dmtl.runtime.memory import return_freed

LARGE = 3 << 17  # elements of images whose encoding allocates, and frees, tens of megabytes


class Network:
    """The inference form of a model. Modifies the model: its batch norms are folded in place, and layers that
    have another form are dropped."""

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, form: Form):
        self.form, self.tasks, self.config = form, model.tasks, model.config
        initial = fold_batch_norms_(model.initial).requires_grad_(False)
        backbone = initial.backbone.to(form.maps)
        # torch's stubs do not know this call.
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if form.fused:
            fuse_blocks_(self.backbone)
        self.embed = self._ready(GroupedConv.of([initial.embed]))
        self.decoders = {task: self._decoder(initial.decoders[task]) for task in self.tasks}
        for block in self.backbone.modules():
            if isinstance(block, BasicBlock):
                block.merge_biases_()
        self.heads = initial.heads  # float32, as the condition: rounding logits costs accuracy most
        self._joined: dict[tuple[str, ...], Heads] = {}
        del initial.decoders, initial.embed
        self.mtdnet = model.mtdnet.eval().requires_grad_(False) if isinstance(model, DiffusionMTL) else None
        if self.mtdnet is not None:
            self._prepare(self.mtdnet)
        self.skip = model.skip
        if self.skip is not None:
            self.skip.requires_grad_(False).to(form.maps)
            self.skip_convs = {task: self._conv(conv) for task, conv in self.skip.convs.items()}

    def _prepare(self, net: MTDNet) -> None:
        denoiser, form = net.denoiser, self.form
        self.layers = {task: self._task_layers(denoiser, task) for task in self.tasks}
        del denoiser.trunks, denoiser.pre_layers
        self.condition, self.folded = net.condition, net.condition.folded()
        first = denoiser.blocks[0]  # its norm and query are computed with the condition, in float32
        assert isinstance(first, CrossBlock)
        self.first = first if form.tokens == torch.float32 else copy.deepcopy(first)
        denoiser.blocks.to(form.tokens)
        net.heads.to(form.maps)
        self._merged: dict[tuple[str, ...], Layers] = {}
        self._last: dict[tuple[str, ...], Heads] = {}

    def _task_layers(self, denoiser: Denoiser, task: str) -> Layers:
        layers = denoiser.layers([task], fold=True)
        return replace(
            layers,
            pre=[self._ready(group) for group in layers.pre],
            trunks=[[self._ready(group) for group in trunk] for trunk in layers.trunks],
            last=[self._ready(group) for group in layers.last],
        )

    def _ready(self, group: GroupedConv) -> GroupedConv:
        """Convert to the maps' dtype and, on a GPU, to the layout needed with channels-last maps."""
        on_gpu = group.weights[0].device.type == "cuda"
        layout = torch.channels_last if on_gpu else torch.preserve_format
        group = group.detached().to(self.form.maps, layout)
        return group.pack() if self.form.pack else group

    def _conv(self, layer: nn.Module) -> GroupedConv:
        assert isinstance(layer, nn.Conv2d)
        return self._ready(GroupedConv.of([layer]))

    def _decoder(self, decoder: nn.Module) -> list[tuple[GroupedConv, GroupedConv]]:
        blocks = [block for block in decoder.children() if isinstance(block, BasicBlock)]
        pairs = [(GroupedConv.of([block.conv1]), GroupedConv.of([block.conv2])) for block in blocks]
        return [(self._ready(first), self._ready(second)) for first, second in pairs]

    def initial(
        self, image: Tensor, wanted: Sequence[str]
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor | None]:
        """Return features of the requested tasks, initial logits [B, C_T, h, w], and what the skip decoder
        needs of the encoder, for a padded image.

        Features are one tensor for each task or one packed tensor [R, C, h, w]. Logits are those of all
        tasks; in a model without MTDNet, the final ones of the requested tasks.
        """
        image = image.to(self.form.maps, memory_format=torch.channels_last)
        maps = self.backbone(image)
        fine = None if self.skip is None else self.skip.encode(maps[0], image)
        joined = join_maps(maps, image)
        del maps
        if image.device.type == "cpu" and image.numel() >= LARGE:
            return_freed()  # the encoder's blocks have other sizes than all later ones
        shared = self.embed(joined, (image.shape[0],), relu=False)
        del joined
        tasks = list(self.tasks) if self.mtdnet is not None else list(wanted)
        decoded = self._apart if self.form.apart else self._packed
        features, logits = decoded(shared, tasks, wanted)
        if self.mtdnet is None:
            pairs = Pairs.of(dict.fromkeys(wanted), image.shape[0])
            logits = self._refined(fine, Denoised(pairs, features, None), logits)
        return features, logits, fine

    def _refined(self, fine: Tensor | None, state: Denoised, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return final logits at the model's output stride, from those at 1/8 and their signals."""
        if self.skip is None or fine is None:
            return logits
        return self.skip(fine, state.by_task(), logits, dict.fromkeys(logits), self.skip_convs)

    def _apart(
        self, shared: Tensor, tasks: Sequence[str], wanted: Sequence[str]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        features, logits = {}, {}
        for task in tasks:
            feature = _decoded(shared, self.decoders[task], (shared.shape[0],))
            logits[task] = self.heads[task](feature.float())
            if task in wanted:
                features[task] = feature
        return [features[task] for task in wanted], logits

    def _packed(
        self, shared: Tensor, tasks: Sequence[str], wanted: Sequence[str]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        order = [*wanted, *(task for task in tasks if task not in wanted)]
        pairs = Pairs.of(dict.fromkeys(order), shared.shape[0])
        decoders = [self.decoders[task] for task in order]
        blocks = [
            (GroupedConv.join([first for first, _ in each]), GroupedConv.join([second for _, second in each]))
            for each in zip(*decoders, strict=True)
        ]
        packed = _decoded(pairs.repeat(shared), blocks, pairs.counts)
        logits = _joint(self._joined, self.heads, order)(packed)
        return [packed[: len(wanted) * shared.shape[0]]], {task: logits[task] for task in tasks}

    def denoised(
        self,
        features: list[Tensor],
        initial: dict[str, Tensor],
        wanted: Sequence[str],
        plan: Plan,
        noises: Sequence[NoiseSource],
        tolerance: float | None = None,
        fine: Tensor | None = None,
    ) -> tuple[list[dict[str, Tensor]], int]:
        """Return final logits of the requested tasks for each noise source, and the most steps one took.

        Args:
            features: of the requested tasks, from `initial`; the list is emptied.
            tolerance: stop as soon as a step changes no task's logits by more, relative in L2; None: never.
            fine: from `initial`.
        """
        net = self.mtdnet
        assert net is not None
        with record_function("dmtl: condition"):
            seen = net.condition_input(initial)
            tokens, query = self.condition.tokens(seen, self.folded, self.first)
            pairs = Pairs.of(dict.fromkeys(wanted), tokens.shape[0])
            assert query is not None
            tokens, query = (self._for_each_task(x, len(wanted)) for x in (tokens, query))
        of_features = self.config.diffusion == "feature"
        predictions = [initial[task] for task in wanted]  # anchors in float32, signals in the maps' dtype
        anchors = dict(zip(wanted, predictions, strict=True)) if self.config.residual else None
        layers = self._layers(net.denoiser, tuple(wanted), plan)
        signals = list(features) if of_features else [x.to(self.form.maps) for x in predictions]
        features.clear()
        draws, most = [], 0
        with record_function("dmtl: chain"):
            for number, noise in enumerate(noises, 1):
                start = list(signals)
                if number == len(noises):
                    signals.clear()  # the last chain may free them
                run = Run(pairs, tokens, query, layers, plan, noise, anchors)
                state, logits, steps = self._walk(net, start, run, tolerance)
                draws.append(self._refined(fine, state, logits))
                del state
                most = max(most, steps)
        return draws, most

    def _for_each_task(self, x_BNC: Tensor, tasks: int) -> Tensor:
        """Repeat tokens for the rows of all tasks, in the dtype of the cross blocks; one launch."""
        repeated = x_BNC.expand(tasks, *x_BNC.shape)
        return repeated.to(self.form.tokens, memory_format=torch.contiguous_format).flatten(0, 1)

    def _walk(
        self, net: MTDNet, start: list[Tensor], run: Run, tolerance: float | None
    ) -> tuple[Denoised, dict[str, Tensor], int]:
        """Run the chain; return its last state, final logits at 1/8, and the steps taken."""
        if tolerance is None:
            [state] = net.chain(start, run, every=False)
            return state, self._logits(net, state), len(run.plan.levels)
        now: dict[str, Tensor] = {}
        steps = 0
        for state in net.chain(start, run, every=True):
            steps += 1
            before, now = now, self._logits(net, state)
            if before and _change(now, before) <= tolerance:
                break
        return state, now, steps

    def _logits(self, net: MTDNet, state: Denoised) -> dict[str, Tensor]:
        """Compute final logits, of packed features in one product."""
        if self.form.apart or self.config.diffusion != "feature":
            return net.logits(state)
        [packed], anchors = state.signals, state.anchors
        logits = _joint(self._last, net.heads, state.pairs.tasks)(packed)
        return logits if anchors is None else {task: anchors[task] + x for task, x in logits.items()}

    def _layers(self, denoiser: Denoiser, wanted: tuple[str, ...], plan: Plan) -> Layers:
        """Return the layers of these tasks with the embeddings of the plan's steps in their biases."""
        if wanted not in self._merged:
            self._merged[wanted] = _merged([self.layers[t] for t in wanted], self.form.apart, self.config)
        layers = self._merged[wanted]
        for level in plan.levels:
            if level not in layers.timed:
                layers.timed[level] = denoiser.timed(layers, level)
        return layers


def _decoded(x: Tensor, blocks: list[tuple[GroupedConv, GroupedConv]], counts: Sequence[int]) -> Tensor:
    """Apply residual blocks with folded batch norms."""
    for first, second in blocks:
        x = second(first(x, counts, relu=True), counts, relu=True, residual=x)
    return x


def _joint(known: dict[tuple[str, ...], Heads], heads: nn.ModuleDict, tasks: Sequence[str]) -> Heads:
    """Return the joined heads of these tasks, made once."""
    if (key := tuple(tasks)) not in known:
        known[key] = Heads({task: heads[task] for task in key})  # type: ignore[misc]
    return known[key]


def _merged(single: list[Layers], apart: bool, config: ModelConfig) -> Layers:
    """Merge the layers of several tasks: side by side, or joined into groups."""
    pre, last = ([group for layers in single for group in getattr(layers, f)] for f in ("pre", "last"))
    trunks = [trunk for layers in single for trunk in layers.trunks]
    if not apart:
        trunks = [[GroupedConv.join(groups) for groups in zip(*trunks, strict=True)]]
        pre = [GroupedConv.join(pre)] if config.diffusion == "feature" else pre
    return Layers(pre, None, trunks, last, single[0].blocks)


def _change(now: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Return the largest relative change of a task's logits, in L2 over the batch."""
    changes = [(now[t].float() - before[t].float()).norm() / now[t].float().norm() for t in now]
    return float(torch.stack(changes).max())

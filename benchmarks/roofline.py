"""Measure where the engine spends its time, and how close each part is to the limits of the machine.

A stage is a range that the engine names for torch's profiler; its operators are the calls inside. On a GPU, a
captured graph has no ranges. There, stages are measured by profiling the same call outside a graph (kernels
only), and the whole by the replayed call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch.profiler import ProfilerActivity, profile

from dmtl.diffusion import CounterNoise
from dmtl.models import work
from dmtl.runtime.measure import seconds

from . import clock
from .cases import Case

RANGE = "dmtl: "
_CONVOLVE = ("aten::conv2d", "aten::convolution", "aten::mkldnn_convolution", "aten::cudnn_convolution")
_NAMED = dict.fromkeys(_CONVOLVE, "library convolutions") | {
    f"dmtl::{name}": f"dmtl::{name}" for name in ("conv3x3", "token_mlp", "cross_attention")
}
_TIMED = {
    "convolutions": ("dmtl::conv3x3", "library convolutions"),
    "token_mlp": ("dmtl::token_mlp",),
    "cross_attention": ("dmtl::cross_attention",),
}
_COUNTED = ("token_mlp", "cross_attention")  # operators that compute in the tokens' dtype
_PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class _Uncaptured(CounterNoise):
    """The same noise as another class, because the engine only replays graphs for `CounterNoise` itself."""


@dataclass(frozen=True)
class Ceilings:
    """The limits of the machine.

    Attributes:
        compute: operations per second by operator, because operators may use different dtypes.
        copy: bytes per second of a copy.
    """

    compute: Mapping[str, float]
    copy: float

    def floor_s(self, parts: Iterable[work.Part], winograd: bool) -> float:
        """Return the minimum time of the parts in seconds: for each, that of operations or bytes if it is
        longer."""
        return sum(
            max(work.flops([part], winograd) / self.compute[part.operator], part.bytes / self.copy)
            for part in parts
        )


def roofline(case: Case, precision: str, calls: int = 5) -> list[dict]:
    """Return rows of stages ("operator": "all"), of the operators in each, and of the whole ("stage": "all"):
    the fastest of some calls, for comparison with a floor.

    ms; share of the whole; floor_ms by the algorithm used and direct_floor_ms by direct convolutions (equal
    except with Winograd's algorithm), both at the rates that the library reaches on this machine; flops and
    bytes counted; fraction = floor_ms / ms. Rows "of_which" have only times: the counts cannot separate them.
    The row of the whole also has published_floor_ms, for the published execution's operations.
    """
    from dmtl.engine.engine import Engine

    device = torch.device(case.device)
    options = dict(steps=case.steps, tasks=case.tasks)
    engine = Engine(case.build(), device, precision=precision, inplace=True, downscale=1, **options)
    image = case.image()
    for _ in range(3):
        engine.maps(image)
    whole_s = min(seconds(lambda: engine.maps(image), device) for _ in range(calls))
    times = min((_profiled(engine, image, device) for _ in range(calls)), key=_in_stages)
    ceilings = _ceilings(engine.form, precision, device)
    itemsize = engine.form.maps.itemsize
    counted = work.count(engine.config, case.size, case.batch, itemsize=itemsize, **options)
    published = work.flops(work.count(engine.config, case.size, case.batch, published=True, **options))
    peak = ceilings.compute["convolutions"]
    rows = list(table(times, whole_s, counted, ceilings))
    rows[-1] |= {"published_floor_ms": 1e3 * published / peak, "published_flops": published}
    rows[-1] |= {"peak_flops": peak, "copy_bytes": ceilings.copy}
    rows[-1] |= {"maps": _PRECISION[engine.form.maps], "tokens": _PRECISION[engine.form.tokens]}
    facts = {"part": "roofline", "precision": precision} | case.described()
    return [facts | row for row in rows]


def _ceilings(form, precision: str, device: torch.device) -> Ceilings:
    rates = {}
    for operator in work.OPERATORS:
        dtype = form.tokens if operator in _COUNTED else form.maps
        name = "tf32" if precision == "tf32" else _PRECISION[dtype]
        rates[operator] = clock.compute_rate(name, device)
    return Ceilings(rates, clock.copy_rate(device))


def _profiled(engine, image: torch.Tensor, device: torch.device) -> dict[tuple[str, str], float]:
    """Return (stage, operator) -> seconds.

    Operators are "all", those of `_NAMED`, and "winograd" for the part of dmtl::conv3x3 that torch does not
    compute.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities) as profiler:
        engine.maps(image, noise=_Uncaptured(0))
    return read(profiler.events(), gpu)


def _in_stages(times: Mapping[tuple[str, str], float]) -> float:
    """Return the sum of the seconds in all stages."""
    return sum(taken for (_, operator), taken in times.items() if operator == "all")


def read(events: Iterable, gpu: bool) -> dict[tuple[str, str], float]:
    """Sum up events for `_profiled`. On a GPU, the time of a call is that of the kernels it launched."""
    found: dict[tuple[str, str], float] = {}

    def add(stage: str, operator: str, event) -> None:
        taken = event.device_time_total if gpu else event.cpu_time_total
        found[stage, operator] = found.get((stage, operator), 0.0) + 1e-6 * taken

    for event in events:
        if not event.name.startswith(RANGE) or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        stage = event.name.removeprefix(RANGE)
        add(stage, "all", event)
        for call in _outermost(event.cpu_children):
            add(stage, _NAMED[call.name], call)
            if _NAMED[call.name] == "dmtl::conv3x3" and not gpu and not any(_library(call)):
                add(stage, "winograd", call)
    return found


def _outermost(events: Iterable) -> Iterator:
    """Yield the calls that the engine names, without calls nested in them."""
    for event in events:
        if event.name in _NAMED:
            yield event
        else:
            yield from _outermost(event.cpu_children)


def _library(event) -> Iterator[bool]:
    """Yield whether nested calls are convolutions of torch."""
    for child in event.cpu_children:
        yield child.name in _CONVOLVE
        yield from _library(child)


def table(
    times: Mapping[tuple[str, str], float], whole_s: float, counted: Iterable[work.Part], ceilings: Ceilings
) -> Iterator[dict]:
    """Yield the rows of `roofline` from measured times and counts."""
    counted = [replace(p, winograd=p.winograd and (p.stage, "winograd") in times) for p in counted]
    for stage in work.STAGES:
        parts = [part for part in counted if part.stage == stage]
        if (stage, "all") in times:
            yield _row(stage, "all", times[stage, "all"], whole_s) | _floors(
                parts, times[stage, "all"], ceilings
            )
            yield from _operators(stage, parts, times, whole_s, ceilings)
    between = whole_s - _in_stages(times)
    if between > 0:  # host time, and on a GPU time between kernels
        yield _row("between", "all", between, whole_s) | _floors([], between, ceilings)
    yield _row("all", "all", whole_s, whole_s) | _floors(counted, whole_s, ceilings)


def _operators(stage, parts, times, whole_s, ceilings) -> Iterator[dict]:
    """Yield rows of the operators in a stage; the remainder is "everything else"."""
    left = times[stage, "all"]
    for operator in work.OPERATORS:
        some = [part for part in parts if part.operator == operator]
        names = _TIMED.get(operator, ())
        if operator == "everything else":
            taken = left
        elif some:
            taken = sum(times.get((stage, name), 0.0) for name in names)
        else:
            continue
        left -= taken
        yield _row(stage, operator, taken, whole_s) | _floors(some, taken, ceilings)
        if operator == "convolutions":
            for name in (name for name in names if (stage, name) in times):
                yield _row(stage, name, times[stage, name], whole_s) | {"of_which": True}


def _row(stage: str, operator: str, taken_s: float, whole_s: float) -> dict:
    return {"stage": stage, "operator": operator, "ms": 1e3 * taken_s, "share": taken_s / whole_s}


def _floors(parts: list[work.Part], taken_s: float, ceilings: Ceilings) -> dict:
    floor, direct = (ceilings.floor_s(parts, winograd) for winograd in (True, False))
    found = {"floor_ms": 1e3 * floor, "direct_floor_ms": 1e3 * direct}
    found |= {"fraction": floor / taken_s if taken_s > 0 else None, "flops": work.flops(parts)}
    return found | {"bytes": sum(part.bytes for part in parts)}

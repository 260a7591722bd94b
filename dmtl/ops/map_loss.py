"""Compute a task's loss from its logits at 1/8 or 1/4 resolution.

The logits are upsampled bilinearly and cropped, and the losses of the pixels are averaged. This is the end of
training DiffusionMTL; `decode_map` is the end of its inference.

Legend: n rows, C channels, h x w the map, f = factor, K label channels, H x W the label's
frame.

    z = bilinear(logits, f) cropped to H x W (align_corners=False);  y the label
    valid = every channel of y finite and not `ignore`, and what the kind asks of it
    loss[n] = mean over the row's valid pixels of (0 if there is none)
      cross_entropy  log sum_c exp z_c - z_y       y in [0, C) (fractions are cut off)
      logistic       w+ softplus(-m) where y > 1/2, otherwise w- softplus(m);
                     m = z_0 (C = 1) or z_1 - z_0 (C = 2);  w+ = positive_weight, w- = negative_weight,
                     `balanced`: times the row's share of negative and of positive pixels
      unit           sum_c |u_c - y_c|,  u = z / max(|z|, 1e-4);  y not zero      (C = K = 3)
      absolute       |z - y|, or |z - log y| (`log`);  `positive`: y > 0          (C = 1)

Gradients, with U the matrices of the interpolation:

    g = grad[n] / (number of valid pixels) d(loss of the pixel)/dz, exactly 0 at pixels that are not valid
    d_logits = U_h^T g U_w

The backward computes z once more: nothing of the frame's size is kept but the label.

Numerics: everything in float32 (float64 in the reference, for float64 logits), sums in one fixed order;
d_logits is rounded once to the logits' dtype. A logit that is not finite counts as NaN, so that a row is NaN
if a valid pixel is interpolated from it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import SHORTEST, unit, wide, wide_dtype
from .autograd import recorded
from .grid import interpolation
from .registry import Operator, OpSpec, add

FACTORS = (8, 4)
KINDS: dict[str, tuple[tuple[int, ...] | None, int]] = {
    "cross_entropy": (None, 1), "logistic": ((1, 2), 1), "unit": ((3,), 3), "absolute": ((1,), 1),
}  # fmt: skip
"""Kind -> numbers of logit channels that it takes (None: any), label channels. In the order of LossKind in
map_loss.h."""

_OPTIONS = "str kind, float ignore, float positive_weight, float negative_weight, "
_OPTIONS += "bool balanced, bool log, bool positive, int factor"
_SCHEMA = f"(Tensor logits, Tensor label, {_OPTIONS}) -> (Tensor loss, Tensor counts)"
_BACKWARD_SCHEMA = f"(Tensor grad, Tensor logits, Tensor label, Tensor counts, {_OPTIONS}) -> Tensor"


class Options(NamedTuple):
    """Arguments of the operators after the tensors."""

    kind: str
    ignore: float
    positive_weight: float
    negative_weight: float
    balanced: bool
    log: bool
    positive: bool
    factor: int


def empty_losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate losses [n], in the arithmetic dtype, and counts [n, 2] int32 of the valid pixels and of those
    above one half."""
    rows = logits.shape[0]
    loss = logits.new_empty(rows, dtype=wide_dtype(logits.dtype))
    return loss, logits.new_empty((rows, 2), dtype=torch.int32)


def _upsampled(logits: Tensor, label: Tensor, factor: int) -> Tensor:
    """Return z in the arithmetic dtype."""
    height, width = label.shape[2:]
    logits = wide(logits)
    if logits.numel() == 0:
        return logits.new_empty((*logits.shape[:2], height, width))
    logits = torch.where(logits.isfinite(), logits, math.nan)
    return F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)[
        ..., :height, :width
    ]


def _labelled(label: Tensor, channels: int, dtype: torch.dtype, o: Options) -> tuple[Tensor, Tensor]:
    """Return y in `dtype`, 1 where it is not valid, and where it is valid, bool [n, 1, H, W]."""
    valid = (label.isfinite() & (label != o.ignore)).all(1, keepdim=True)
    if o.kind == "cross_entropy":
        valid = valid & (label >= 0) & (label < channels)
    elif o.kind == "unit":
        valid = valid & (label != 0).any(1, keepdim=True)
    elif o.positive:
        valid = valid & (label > 0)
    y = torch.where(valid, label, 1).to(dtype)
    return (y.log() if o.log else y), valid


def _weights(counts: Tensor, dtype: torch.dtype, o: Options) -> tuple[Tensor | float, Tensor | float]:
    """Return w+ and w-; balanced ones are [n, 1, 1, 1]."""
    if not o.balanced:
        return o.positive_weight, o.negative_weight
    share = (counts[:, 1] / counts[:, 0].clamp(min=1)).to(dtype).reshape(-1, 1, 1, 1)
    return o.positive_weight * (1 - share), o.negative_weight * share


def _margin(z: Tensor) -> Tensor:
    return z if z.shape[1] == 1 else z[:, 1:] - z[:, :1]


def _reference(logits: Tensor, label: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    o = Options(*options)
    z = _upsampled(logits, label, o.factor)
    y, valid = _labelled(label, z.shape[1], z.dtype, o)
    z = torch.where(valid, z, 0.0)
    above = valid & (y[:, :1] > 0.5) if o.kind == "logistic" else torch.zeros_like(valid)
    loss, counts = empty_losses(logits)
    counts.copy_(torch.stack([valid.sum((1, 2, 3)), above.sum((1, 2, 3))], 1))
    if o.kind == "cross_entropy":
        pixel = z.logsumexp(1, keepdim=True) - z.gather(1, y.long())
    elif o.kind == "logistic":
        w_plus, w_minus = _weights(counts, z.dtype, o)
        pixel = torch.where(above, w_plus * F.softplus(-_margin(z)), w_minus * F.softplus(_margin(z)))
    elif o.kind == "unit":
        pixel = (unit(z)[0] - y).abs().sum(1, keepdim=True)
    else:
        pixel = (z - y).abs()
    total = torch.where(valid, pixel, 0.0).sum((1, 2, 3))
    return loss.copy_(total / counts[:, 0].clamp(min=1)), counts


def _reference_backward(grad: Tensor, logits: Tensor, label: Tensor, counts: Tensor, *options: Any) -> Tensor:
    o = Options(*options)
    z = _upsampled(logits, label, o.factor)
    y, valid = _labelled(label, z.shape[1], z.dtype, o)
    z = torch.where(valid, z, 0.0)
    if o.kind == "cross_entropy":
        g = z.softmax(1) - (torch.arange(z.shape[1], device=z.device)[:, None, None] == y.long()).to(z.dtype)
    elif o.kind == "logistic":
        w_plus, w_minus = _weights(counts, z.dtype, o)
        m = _margin(z)
        g = torch.where(y > 0.5, -w_plus * (-m).sigmoid(), w_minus * m.sigmoid())
        g = g if z.shape[1] == 1 else torch.cat([-g, g], 1)
    elif o.kind == "unit":
        u, scale = unit(z)
        sign = (u - y).sgn()
        radial = torch.where(
            z.square().sum(1, keepdim=True) >= SHORTEST**2, (u * sign).sum(1, keepdim=True), 0.0
        )
        g = scale * (sign - u * radial)
    else:
        g = (z - y).sgn()
    per_pixel = (grad / counts[:, 0].clamp(min=1)).reshape(-1, 1, 1, 1)
    g = torch.where(valid, per_pixel * g, 0.0)
    along_y, along_x = (
        interpolation(o.factor * size, o.factor, g.dtype, g.device)[:cropped]
        for size, cropped in zip(logits.shape[2:], label.shape[2:], strict=True)
    )
    return torch.empty_like(logits).copy_(torch.einsum("ncyx,yi,xj->ncij", g, along_y, along_x))


def map_loss(
    logits: Tensor,
    label: Tensor,
    *,
    kind: str,
    ignore: float,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    balanced: bool = False,
    log: bool = False,
    positive: bool = False,
    factor: int = 8,
) -> Tensor:
    """Compute each row's loss from logits at 1/factor of the label's resolution, without ones of its size.

    Args:
        logits: [n, C, h, w] float32, bfloat16, float16 (or float64), any strides.
        label: [n, K, H, W], any real dtype, H <= factor h and W <= factor w: the upsampled logits are
            cropped at the right and at the bottom.
        kind: "cross_entropy" (K = 1), "logistic" (C = 1 or 2, K = 1), "unit" (C = K = 3) or "absolute"
            (C = K = 1).
        ignore: label value without meaning; labels that are not finite have none either.
        positive_weight: of "logistic": factor on the loss of positive pixels.
        negative_weight: of "logistic": factor on the loss of negative pixels.
        balanced: of "logistic": more factors, the row's shares of negative and of positive pixels.
        log: of "absolute": the loss is that of logarithms; labels of 0 or less have no meaning.
        positive: of "absolute": labels of 0 or less have no meaning.
        factor: label pixels to each logit in both directions, 8 or 4.

    Returns:
        [n] float32 (float64 for float64 logits). Differentiable once, in the logits.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape, value or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    options = Options(kind, ignore, positive_weight, negative_weight, balanced, log, positive, factor)
    _check(logits, label, options)
    options = options._replace(ignore=float(ignore), positive=positive or log)
    options = options._replace(positive_weight=float(positive_weight), negative_weight=float(negative_weight))
    return _call(logits, label.detach(), *options)[0]


def _check(logits: Tensor, label: Tensor, o: Options) -> None:
    op = "map_loss"
    checks.data(op, "logits", logits)
    if logits.dim() != 4 or 0 in logits.shape[1:]:
        checks.fail(op, "logits", "of shape [n, C, h, w] with C, h, w >= 1", list(logits.shape))
    checks.tensor(op, "label", label)
    if label.is_complex():
        checks.fail(op, "label", "real", checks.dtype_name(label.dtype), TypeError)
    if o.kind not in KINDS:
        checks.fail(op, "kind", f"one of {', '.join(KINDS)}", o.kind)
    checks.integer(op, "factor", o.factor)
    if o.factor not in FACTORS:
        checks.fail(op, "factor", "8 or 4", o.factor)
    channels, label_channels = KINDS[o.kind]
    if channels is not None and logits.shape[1] not in channels:
        wanted = f"of {' or '.join(map(str, channels))} channels for kind {o.kind}"
        checks.fail(op, "logits", wanted, logits.shape[1])
    n, most = logits.shape[0], (o.factor * logits.shape[2], o.factor * logits.shape[3])
    fits = label.dim() == 4 and label.shape[0] == n and label.shape[1] == label_channels
    if not fits or not (1 <= label.shape[2] <= most[0] and 1 <= label.shape[3] <= most[1]):
        contract = f"of shape [{n}, {label_channels}, H, W] with 1 <= H <= {most[0]}, 1 <= W <= {most[1]}"
        checks.fail(op, "label", contract, list(label.shape))
    checks.on_device(op, "label", label, logits.device)
    for name in ("ignore", "positive_weight", "negative_weight"):
        value = getattr(o, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            checks.fail(op, name, "a number", type(value).__name__, TypeError)
        if not math.isfinite(value) or (name != "ignore" and value < 0):
            checks.fail(op, name, "finite" if name == "ignore" else "finite and at least 0", value)
    for name, kind in (("balanced", "logistic"), ("log", "absolute"), ("positive", "absolute")):
        value = getattr(o, name)
        if not isinstance(value, bool):
            checks.fail(op, name, "a bool", type(value).__name__, TypeError)
        if value and o.kind != kind:
            checks.fail(op, name, f"False for kind {o.kind}", value)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks.

    Every kind and option, cropped frames, layouts, labels of both stored dtypes, ignored pixels and rows.
    """
    generator = torch.Generator().manual_seed(len(size))

    def case(
        kind: str, n: int, c: int, h: int, w: int, frame: tuple[int, int] | None = None, **options: Any
    ) -> dict:
        logits = (2 * torch.randn((n, c, h, w), generator=generator)).to(device, dtype)
        factor = options.get("factor", 8)
        shape = (n, KINDS[kind][1], *(frame or (factor * h, factor * w)))
        if kind == "cross_entropy":
            label = torch.randint(0, c, shape, generator=generator, dtype=torch.uint8)
        elif kind == "logistic":
            label = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
        else:
            label = torch.randn(shape, generator=generator)
            label = F.normalize(label, dim=1) if kind == "unit" else 3 * label
        unknown = torch.rand((n, 1, *shape[2:]), generator=generator) < 0.2
        label = label.masked_fill(unknown, 255).to(device)
        return dict(logits=logits, label=label, kind=kind, ignore=255.0) | options

    if size == "large":
        return [case("cross_entropy", 6, 21, 64, 64)]
    if size == "tiny":
        nothing = case("unit", 1, 3, 1, 1)
        return [
            case("cross_entropy", 1, 2, 1, 1), case("absolute", 0, 1, 2, 1),
            case("logistic", 1, 1, 1, 2, (1, 1)),
            nothing | dict(label=torch.full_like(nothing["label"], 255)),
        ]  # fmt: skip
    cases = [
        case("cross_entropy", 2, 13, 3, 5, (21, 37)),
        case("logistic", 2, 1, 2, 3, (14, 24), positive_weight=0.95, negative_weight=0.05),
        case("logistic", 2, 2, 1, 9, balanced=True), case("unit", 2, 3, 3, 4, (22, 27)),
        case("absolute", 2, 1, 2, 3, (16, 23), positive=True), case("absolute", 1, 1, 2, 1, log=True),
        case("cross_entropy", 4, 21, 2, 6, (14, 19)), case("cross_entropy", 1, 40, 1, 2),
        case("cross_entropy", 2, 3, 5, 4, (18, 13), factor=4), case("unit", 1, 3, 2, 5, factor=4),
    ]  # fmt: skip
    cases[0]["logits"] = cases[0]["logits"].contiguous(memory_format=torch.channels_last)
    cases[0]["label"][1] = 255
    cases[3]["logits"] = cases[3]["logits"].contiguous(memory_format=torch.channels_last)
    cases[6] |= dict(logits=cases[6]["logits"][::2, :, :, ::2], label=cases[6]["label"].float()[::2])
    return cases


SPEC = add(
    OpSpec(
        name="map_loss",
        forward=Operator("map_loss", _SCHEMA, _reference),
        backward=Operator("map_loss_backward", _BACKWARD_SCHEMA, _reference_backward),
        function=map_loss,
        differentiable=("logits",),
        samples=_samples,
    )
)
_call = recorded(SPEC)

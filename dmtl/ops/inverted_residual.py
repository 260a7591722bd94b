"""Apply an inverted residual for inference: expansion, depthwise convolution and projection of a map.

Sandler et al., "MobileNetV2", CVPR 2018, arXiv 1801.04381, with batch norms folded into the convolutions.

Legend: B images, C channels, H x W the map, E expanded channels, k the filter's side (3 or 5), s the stride
(1 or 2), p the padding on the left and top, N output channels; h = ceil(H / s), w = ceil(W / s).

    e[b, :, y, x] = act(expand x[b, :, y, x] + expand_bias)          E channels; without expansion: x
    f[b, c, i, j] = act(sum over u, v < k of taps[c, 0, u, v] e[b, c, s i + u - p, s j + v - p]
                        + taps_bias[c])
    out[b, :, i, j] = project f[b, :, i, j] + project_bias (+ x[b, :, i, j])
    act(z) = min(max(z, 0), high)

e is zero outside the map. Padding on the right and bottom is whatever the last filter position needs
(`dmtl.ops.depthwise_conv`).

Numerics: float32, bfloat16 and float16 in and out, arithmetic in float32, one rounding at the end; float64 in
the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .arithmetic import wide_dtype
from .depthwise_conv import out_shape, pads
from .grid import empty_map
from .registry import Operator, OpSpec, add, packed
from .samples import draws

_SCHEMA = (
    "(Tensor x, Tensor? expand, Tensor? expand_bias, Tensor taps, Tensor taps_bias, Tensor project, "
    "Tensor project_bias, Tensor[] packed, int stride, int padding, bool residual, float high) -> Tensor"
)

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""


def _reference(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    packed: Sequence[Tensor],
    stride: int,
    padding: int,
    residual: bool,
    high: float,
) -> Tensor:
    B, _, h, w = out_shape(x, stride)
    out = empty_map(x, (B, project.shape[0], h, w))
    if out.numel() == 0:
        return out
    wide = wide_dtype(x.dtype)
    y = x.to(wide)
    if expand is not None and expand_bias is not None:
        y = F.conv2d(y, expand.to(wide)[:, :, None, None], expand_bias.to(wide)).clamp(0, high)
    y = F.pad(y, pads(x, taps.shape[-1], stride, padding))
    y = F.conv2d(y, taps.to(wide), taps_bias.to(wide), stride=stride, groups=len(taps)).clamp(0, high)
    y = F.conv2d(y, project.to(wide)[:, :, None, None], project_bias.to(wide))
    return out.copy_(y + x.to(wide) if residual else y)


def inverted_residual(
    x: Tensor,
    expand: Layer | None,
    depthwise: Layer,
    project: Layer,
    *,
    stride: int = 1,
    padding: int | None = None,
    residual: bool = False,
    high: float = math.inf,
    packed: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute an inverted residual without storing its expanded maps.

    Args:
        x: [B, C, H, W] float32, bfloat16, float16 (or float64), any strides.
        expand: weight [E, C] and bias [E] of x's dtype; None: E is C, and nothing is expanded.
        depthwise: weight [E, 1, k, k], k 3 or 5, and bias [E].
        project: weight [N, E] and bias [N].
        stride: 1 or 2.
        padding: zeros on the left and top, below k; default k // 2.
        residual: add x, if stride is 1 and N is C.
        high: upper bound of the activations: 6 for ReLU6, infinity for ReLU.
        packed: what `pack_inverted_residual` returned for the same weights.

    Returns:
        [B, N, ceil(H / stride), ceil(W / stride)], channels_last. Not differentiable.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape, stride, padding, bound or device.
        NotImplementedError: the requested backend cannot serve the call.
    """
    op = "inverted_residual"
    checks.data(op, "x", x)
    if x.dim() != 4:
        checks.fail(op, "x", "of shape [B, C, H, W]", list(x.shape))
    C, E, k = x.shape[1], len(depthwise[1]), depthwise[0].shape[-1]
    if k not in (3, 5):
        checks.fail(op, "depthwise", "a weight of side 3 or 5", k)
    _check_layer(op, "depthwise", depthwise, x, (E, 1, k, k))
    if expand is not None:
        _check_layer(op, "expand", expand, x, (E, C))
    elif E != C:
        checks.fail(op, "depthwise", f"of {C} channels without an expansion", E)
    N = len(project[1])
    _check_layer(op, "project", project, x, (N, E))
    if stride not in (1, 2):
        checks.fail(op, "stride", "1 or 2", stride)
    padding = k // 2 if padding is None else padding
    if not 0 <= padding < k:
        checks.fail(op, "padding", f"from 0 to {k - 1}", padding)
    if residual and (stride != 1 or N != C):
        checks.fail(op, "residual", f"False at stride {stride} from {C} to {N} channels", residual)
    if not high > 0:
        checks.fail(op, "high", "positive", high)
    layers = [None if t is None else t.detach() for t in (*(expand or (None, None)), *depthwise, *project)]
    arguments = (list(packed or []), stride, padding, residual, high)
    return torch.ops.dmtl.inverted_residual(x.detach(), *layers, *arguments)


def pack_inverted_residual(expand: Layer | None, depthwise: Layer, project: Layer) -> list[Tensor]:
    """Return the weights as their backend reads them, to be computed once for many calls."""
    return [packed(SPEC, weight) for weight in (*(expand or ()), *depthwise, *project)]


def _check_layer(op: str, argument: str, layer: Layer, x: Tensor, shape: tuple[int, ...]) -> None:
    for name, tensor, wanted in zip(("weight", "bias"), layer, (shape, shape[:1]), strict=True):
        what = f"{argument}'s {name}"
        checks.same_dtype(op, what, checks.tensor(op, what, tensor), x, "x")
        if tuple(tensor.shape) != wanted:
            checks.fail(op, what, f"of shape {list(wanted)}", list(tensor.shape))
        checks.on_device(op, what, tensor, x.device)


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks."""
    # B, C, H, W, E (0: no expansion), N, k, stride, padding, residual
    shapes: dict[str, list[tuple]] = {
        "tiny": [(1, 1, 1, 1, 0, 1, 3, 1, None, True), (0, 3, 4, 4, 6, 2, 3, 1, None, False)],
        "odd": [
            (2, 17, 7, 5, 0, 9, 3, 1, None, False),
            (3, 9, 6, 8, 50, 20, 3, 2, 0, False),
            (2, 20, 5, 9, 33, 20, 5, 1, None, True),
            (1, 8, 9, 7, 48, 40, 5, 2, 1, False),
        ],
        "large": [(2, 16, 128, 160, 96, 24, 3, 2, 0, False), (3, 24, 64, 80, 144, 24, 5, 1, None, True)],
    }
    cases = []
    for index, (B, C, H, W, E, N, k, stride, padding, residual) in enumerate(shapes[size]):
        draw = draws(index, dtype, device)
        x = draw(B, C, H, W)
        wide = E or C
        cases.append(
            dict(
                x=x if index % 3 == 1 else x.contiguous(memory_format=torch.channels_last),
                expand=(draw(E, C, scale=C**-0.5), draw(E)) if E else None,
                depthwise=(draw(wide, 1, k, k, scale=1 / k), draw(wide)),
                project=(draw(N, wide, scale=wide**-0.5), draw(N)),
                stride=stride,
                padding=padding,
                residual=residual,
                high=(6.0, math.inf, 1.0)[index % 3],
            )
        )
    return cases


SPEC = add(
    OpSpec(
        name="inverted_residual",
        forward=Operator("inverted_residual", _SCHEMA, _reference),
        backward=None,
        function=inverted_residual,
        differentiable=(),
        samples=_samples,
    )
)

"""Compute 3x3 convolution + bias + residual + ReLU, grouped by task (denoiser and decoders).

Legend: R rows ((sample, task) pairs, sorted by task), counts[t] rows of task t (sum R, zeros allowed), C
channels in, K channels out, h x w pixels; x is [R, C, h, w], and for every task t weights[t] is [K, C, 3, 3],
biases[t] is [K], tap_biases[t] is [K, 3, 3]; residual is [R, K, h, w], zeros if there is none.

    y[r, k, i, j] = residual[r, k, i, j] + biases[k] + sum over (a, b) with (i + a - 1, j + b - 1) inside of
                    tap_biases[k, a, b] + sum_c weights[k, c, a, b] x[r, c, i + a - 1, j + b - 1]
    out = max(y, 0) if relu else y, with the weights of the row's task; zero padding of 1

A tap bias is what a constant added to the unpadded input adds through a tap: with it a 1x1 convolution in
front folds into the 3x3 one exactly, borders included (`fold_1x1`).

Gradients, with g = grad where out > 0 (everywhere without relu):

    d x = g convolved with the weights, flipped, in and out exchanged
    d weights = correlation of g and x
    d biases[k] = sum of g[:, k]
    d tap_biases[k, a, b] = sum of g[:, k] over the pixels whose tap (a, b) is inside
    d residual = g

Numerics: float32, bfloat16, float16, one dtype for all, products summed in float32 (as the library does);
float64 in the reference. Maps in and out are stored channels-last; other strides are copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, registry
from .arithmetic import wide_dtype
from .autograd import recorded
from .grid import empty_map
from .registry import Operator, OpSpec, add
from .samples import draws

_SCHEMA = (
    "(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] tap_biases, Tensor[] packed, SymInt[] counts, "
    "bool relu, Tensor? residual) -> (Tensor out)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor[] weights, Tensor? out, SymInt[] counts, bool relu, bool need_x, "
    "bool need_weights, bool need_biases, bool need_tap_biases, bool need_residual) "
    "-> (Tensor, Tensor[], Tensor[], Tensor[], Tensor)"
)


def _tasks(counts: Sequence[int]) -> list[tuple[int, slice]]:
    """Yield (task, its rows) for every task that has rows."""
    ends = [sum(counts[: task + 1]) for task in range(len(counts))]
    return [(task, slice(ends[task] - n, ends[task])) for task, n in enumerate(counts) if n]


def _inside(size: int, like: Tensor) -> Tensor:
    """Return [3, size]: 1 where tap a of pixel i, pixel i + a - 1, is inside the image."""
    target = torch.arange(size, device=like.device) + torch.arange(-1, 2, device=like.device).unsqueeze(1)
    return ((target >= 0) & (target < size)).to(like.dtype)


def _reference(x, weights, biases, tap_biases, packed, counts, relu, residual) -> Tensor:
    h, w = x.shape[2:]
    parts = []
    for task, rows in _tasks(counts):
        y = F.conv2d(x[rows], weights[task], biases[task] if biases else None, padding=1)
        if tap_biases:
            taps = tap_biases[task]
            y = y + torch.einsum("kab,ai,bj->kij", taps, _inside(h, taps), _inside(w, taps))
        if residual is not None:
            y = y + residual[rows]
        parts.append(torch.relu(y) if relu else y)
    out = _fake(x, weights, biases, tap_biases, packed, counts, relu, residual)
    return torch.cat(parts, out=out) if parts else out


def _reference_backward(
    grad, x, weights, out, counts, relu, need_x, need_weights, need_biases, need_taps, need_residual
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    d_x = empty_map(x) if need_x else x.new_empty(0)
    d_weights = [torch.zeros_like(weight) for weight in weights] if need_weights else []
    d_biases = [weight.new_zeros(weight.shape[0]) for weight in weights] if need_biases else []
    d_taps = [weight.new_zeros(weight.shape[0], 3, 3) for weight in weights] if need_taps else []
    g = torch.ops.aten.threshold_backward(grad, out, 0) if relu else grad
    for task, rows in _tasks(counts):
        if need_x or need_weights:
            mask = [need_x, need_weights, False]
            d_rows, d_weight, _ = torch.ops.aten.convolution_backward(
                g[rows], x[rows], weights[task], None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )
            if need_x:
                d_x[rows] = d_rows
            if need_weights:
                d_weights[task].copy_(d_weight)
        if need_biases or need_taps:
            taps = _tap_sums(g[rows].sum(0, dtype=wide_dtype(x.dtype)))
            if need_biases:
                d_biases[task].copy_(taps[:, 1, 1])  # every pixel has its middle tap inside
            if need_taps:
                d_taps[task].copy_(taps)
    return d_x, d_weights, d_biases, d_taps, residual_gradient(g, grad, need_residual)


def residual_gradient(g: Tensor, grad: Tensor, need: bool) -> Tensor:
    """Return g channels-last, as a result that shares no memory with the argument grad."""
    if not need:
        return grad.new_empty(0)
    g = g.contiguous(memory_format=torch.channels_last)
    return g.clone() if g.data_ptr() == grad.data_ptr() else g


def _tap_sums(total: Tensor) -> Tensor:
    """Return sums [K, 3, 3] of [K, h, w] over the pixels whose tap (a, b) is inside the image.

    A tap of the first row of weights misses the image in its first row of pixels, and so on round the border.
    """
    rows = total.sum(1)  # [K, w]
    rows = torch.stack([rows - total[:, 0], rows, rows - total[:, -1]], dim=1)
    return torch.stack([rows[..., 1:].sum(-1), rows.sum(-1), rows[..., :-1].sum(-1)], dim=2)


def _fake(x, weights, biases, tap_biases, packed, counts, relu, residual) -> Tensor:
    return empty_map(x, (x.shape[0], weights[0].shape[0], *x.shape[2:]))


def _fake_backward(
    grad, x, weights, out, counts, relu, need_x, need_weights, need_biases, need_taps, need_residual
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    return (
        empty_map(x) if need_x else x.new_empty(0),
        [torch.empty_like(weight) for weight in weights] if need_weights else [],
        [weight.new_empty(weight.shape[0]) for weight in weights] if need_biases else [],
        [weight.new_empty(weight.shape[0], 3, 3) for weight in weights] if need_taps else [],
        empty_map(grad) if need_residual else grad.new_empty(0),
    )


def _kind(x, weights, biases, tap_biases, packed, counts, relu, residual) -> tuple:
    """Return what a call's speed depends on.

    Rows are rounded up to a power of two, so that ragged batches have few kinds.
    """
    tasks, extras = sum(count > 0 for count in counts), (bool(tap_biases), residual is not None)
    return (*x.shape[1:], weights[0].shape[0], tasks, x.shape[0].bit_length(), *extras)


def _kind_backward(grad, x, weights, out, counts, relu, *needs) -> tuple:
    return (*_kind(x, weights, [], [], [], counts, relu, None), *needs)


def conv3x3(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    counts: Sequence[int],
    *,
    relu: bool = False,
    tap_biases: Sequence[Tensor] | None = None,
    packed: Sequence[Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve every row with its task's weights, 3x3 and zero padding 1; add bias and residual; apply ReLU.

    Args:
        x: [R, C, h, w] float32, bfloat16, float16 (or float64), any strides, rows sorted by task. All other
            tensors but `packed` are of its dtype and device.
        weights: T tensors [K, C, 3, 3].
        biases: T of [K], or None.
        counts: rows of each of the T tasks, ints, sum R.
        relu: whether to apply ReLU.
        tap_biases: T of [K, 3, 3], or None (see `fold_1x1`).
        packed: T results of `pack_conv3x3` on these weights, or None: then a backend that transforms weights
            does it in every call.
        residual: [R, K, h, w], any strides, or None.

    Returns:
        [R, K, h, w], channels-last. Differentiable once, in x, weights, biases, tap_biases and residual.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong shape, device or count.
        NotImplementedError: the requested backend cannot serve the call.
    """
    counts = _check(x, weights, biases, counts, tap_biases, packed, residual)
    lists = (list(weights), list(biases or []), list(tap_biases or []), list(packed or []))
    return _call(x, *lists, counts, bool(relu), residual)


def _check(x, weights, biases, counts, tap_biases, packed, residual) -> list[int]:
    op = "conv3x3"
    checks.data(op, "x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        checks.fail(op, "x", "of shape [R, C, h, w] with C, h, w > 0", list(x.shape))
    for name, values in (("weights", weights), ("counts", counts)):
        if not isinstance(values, (list, tuple)):
            checks.fail(op, name, "a list", type(values).__name__, TypeError)
    if not weights:
        checks.fail(op, "weights", "of at least one task", "an empty list")
    tasks, first = len(weights), checks.tensor(op, "weights[0]", weights[0])
    if first.dim() != 4 or first.shape[0] == 0:
        checks.fail(op, "weights[0]", f"of shape [K, {x.shape[1]}, 3, 3]", list(first.shape))
    K = first.shape[0]
    for name, values, shape in (
        ("weights", weights, (K, x.shape[1], 3, 3)),
        ("biases", biases, (K,)),
        ("tap_biases", tap_biases, (K, 3, 3)),
        ("packed", packed, None),
    ):
        _check_list(op, name, values, tasks, shape, x)
    for count in counts:
        if not isinstance(count, (int, torch.SymInt)) or isinstance(count, bool):
            checks.fail(op, "counts", "a list of ints", type(count).__name__, TypeError)
    if len(counts) != tasks or any(count < 0 for count in counts) or sum(counts) != x.shape[0]:
        checks.fail(op, "counts", f"{tasks} numbers of rows with sum {x.shape[0]}", list(counts))
    if residual is not None:
        checks.tensor(op, "residual", residual)
        checks.on_device(op, "residual", residual, x.device)
        checks.same_dtype(op, "residual", residual, x, "x")
        if residual.shape != (shape := (x.shape[0], K, *x.shape[2:])):
            checks.fail(op, "residual", f"of shape {list(shape)}", list(residual.shape))
    return list(counts)


def _check_list(op: str, name: str, values, tasks: int, shape: tuple[int, ...] | None, x: Tensor) -> None:
    """Check a list of one tensor for each task, of this shape and x's dtype and device, or None.

    Without a shape, any tensors pass.
    """
    if values is None:
        return
    if not isinstance(values, (list, tuple)):
        checks.fail(op, name, "a list", type(values).__name__, TypeError)
    if len(values) != tasks:
        checks.fail(op, name, f"of {tasks} tasks", len(values))
    for task, value in enumerate(values):
        argument = f"{name}[{task}]"
        checks.tensor(op, argument, value)
        checks.on_device(op, argument, value, x.device)
        if shape is None:
            continue
        checks.same_dtype(op, argument, value, x, "x")
        if value.shape != shape:
            checks.fail(op, argument, f"of shape {list(shape)}", list(value.shape))


def _samples(size: str, dtype: torch.dtype, device: str) -> list[dict]:
    """Return arguments for tests and benchmarks.

    With and without bias, tap biases, ReLU and residual; absent tasks; no rows.
    """
    draw = draws(len(size), dtype, device)

    def case(counts, C, K, h, w, *, relu=False, biases=True, taps=False) -> dict:
        x = draw(sum(counts), C, h, w).contiguous(memory_format=torch.channels_last)
        return dict(
            x=x,
            weights=[draw(K, C, 3, 3, scale=(9 * C) ** -0.5) for _ in counts],
            biases=[draw(K) for _ in counts] if biases else None,
            counts=list(counts),
            relu=relu,
            tap_biases=[draw(K, 3, 3, scale=0.3) for _ in counts] if taps else None,
        )

    if size == "large":
        return [case((1, 1, 1, 1, 1), 512, 512, 64, 64, relu=True, taps=True)]
    if size == "tiny":
        return [
            case((1,), 8, 8, 1, 1, taps=True),
            case((0, 1), 8, 8, 2, 3, relu=True),
            case((0, 0), 8, 8, 2, 2, relu=True, taps=True),
        ]
    sliced = case((3, 2), 16, 8, 7, 5, biases=False)
    sliced["x"] = draw(5, 32, 7, 10)[:, ::2, :, ::2]
    dense = case((2,), 8, 40, 6, 9, biases=False, taps=True)
    dense["x"] = dense["x"].contiguous()
    added, plain = case((1, 3), 16, 24, 5, 6, relu=True), case((2,), 8, 16, 4, 9)
    added["residual"] = draw(4, 24, 5, 6).contiguous(memory_format=torch.channels_last)
    plain["residual"] = draw(2, 32, 4, 9)[:, ::2]
    return [case((2, 0, 3), 24, 16, 9, 13, relu=True, taps=True), sliced, dense, added, plain]


SPEC = add(
    OpSpec(
        name="conv3x3",
        forward=Operator("conv3x3", _SCHEMA, _reference, fake=_fake, kind=_kind),
        backward=Operator(
            "conv3x3_backward",
            _BACKWARD_SCHEMA,
            _reference_backward,
            fake=_fake_backward,
            kind=_kind_backward,
        ),
        function=conv3x3,
        differentiable=("x", "weights", "biases", "tap_biases", "residual"),
        samples=_samples,
        # Winograd's transforms cancel: about 1.5e-6 of the result's norm at any size, where the library's
        # sums have 1e-7 for few channels and 1.2e-6 for 512.
        tolerance={torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3},
    )
)
_call = recorded(SPEC, keep=lambda values: values if values["relu"] else values | {"out": None})


def pack_conv3x3(weight: Tensor) -> Tensor:
    """Return the weight [K, C, 3, 3] as the backend that would serve `conv3x3` now wants it.

    The format is private to that backend; other backends ignore it and use the weight itself. Without
    gradient; pack again when the weight changes.
    """
    return registry.packed(SPEC, weight.detach())


def fold_1x1(
    weight3: Tensor, bias3: Tensor | None, weight1: Tensor, bias1: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Fold conv3x3(conv1x1(x)) into one conv3x3.

    The padding of the 3x3 convolution is zeros, which bias1 does not reach: hence a bias per tap.

    Args:
        weight3: [K, M, 3, 3].
        bias3: [K] or None.
        weight1: [M, C, 1, 1] or [M, C].
        bias1: [M] or None.

    Returns:
        (weight, bias, tap_bias), differentiable; tap_bias is None without bias1.
    """
    weight = torch.einsum("kmab,mc->kcab", weight3, weight1.flatten(1))
    tap_bias = None if bias1 is None else torch.einsum("kmab,m->kab", weight3, bias1)
    return weight, bias3, tap_bias

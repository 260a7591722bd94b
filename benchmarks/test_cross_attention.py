"""cross_attention on the rows of all tasks, forward only and with gradients, vs. the published block's
layers in plain torch: with F.scaled_dot_product_attention (eager, compiled; on a GPU each of its backends
by itself) and with plain products."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmtl.ops.cross_attention import SPEC

from .harness import DEVICE, DTYPES, SIZES, Size, Work, contenders

HEADS = 4
BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
OTHERS = ["plain-products", *(BACKENDS if DEVICE == "cuda" else ())]


def arguments(size: Size, dtype: torch.dtype, tracked: bool) -> dict:
    C = size.channels

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_(tracked)

    return dict(
        x=draw(size.rows, size.tokens, C),
        y=draw(size.rows, size.tokens, C),
        norm_x_weight=draw(C),
        norm_x_bias=draw(C),
        norm_y_weight=draw(C),
        norm_y_bias=draw(C),
        q_weight=draw(C, C, scale=C**-0.5),
        kv_weight=draw(2 * C, C, scale=C**-0.5),
        proj_weight=draw(C, C, scale=C**-0.5),
        proj_bias=draw(C),
        heads=HEADS,
    )


def plain_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def block(
    x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias, q_weight, kv_weight, proj_weight, proj_bias,
    heads, core,
):  # fmt: skip
    width = x.shape[-1:]
    q = F.linear(F.layer_norm(x, width, norm_x_weight, norm_x_bias), q_weight)
    kv = F.linear(F.layer_norm(y, width, norm_y_weight, norm_y_bias), kv_weight)
    k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    a = core(q.unflatten(-1, (heads, -1)).transpose(1, 2), k, v)
    return x + F.linear(a.transpose(1, 2).flatten(2), proj_weight, proj_bias)


def one_backend(q, k, v, backend: SDPBackend):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def composition(contender: str):
    if contender == "plain-products":
        return functools.partial(block, core=plain_products)
    if contender in BACKENDS:
        return functools.partial(block, core=functools.partial(one_backend, backend=BACKENDS[contender]))
    return functools.partial(block, core=F.scaled_dot_product_attention)


def run(bench, benchmark, size, dtype, contender, backward: bool) -> None:
    shape = SIZES[size]
    if contender in BACKENDS and DTYPES[dtype] == torch.float32 and contender != "sdpa-efficient":
        pytest.skip("no float32 kernel")
    tokens, C = shape.rows * shape.tokens, shape.channels
    work = Work(flops=2 * tokens * C * (4 * C + 2 * shape.tokens) * (3 if backward else 1))
    call = arguments(shape, DTYPES[dtype], backward)
    name = "eager" if contender in OTHERS else contender
    bench(SPEC, name, call, composition(contender), work, backward=backward)
    benchmark.extra_info["contender"] = contender


@pytest.mark.parametrize("contender", contenders(SPEC, *OTHERS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_cross_attention(bench, benchmark, size, dtype, contender):
    run(bench, benchmark, size, dtype, contender, backward=False)


@pytest.mark.parametrize("contender", contenders(SPEC, *OTHERS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["tiny", "published-1", "training-ragged"])
def test_cross_attention_with_gradients(bench, benchmark, size, dtype, contender):
    run(bench, benchmark, size, dtype, contender, backward=True)

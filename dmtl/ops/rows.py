"""What the two noising ops share: per-row coefficients, the noise of a call, outputs in the layout of an
input, test inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of the arithmetic: float32, or float64 for float64 data."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_row(table_S: Tensor, t_B: Tensor, like: Tensor) -> Tensor:
    """table[t] as [B, 1, ...], ready to multiply `like` in its arithmetic dtype."""
    return table_S[t_B].to(wide_dtype(like.dtype)).reshape(-1, *([1] * (like.dim() - 1)))


def drawn_noise(like: Tensor, noise: Tensor | None, key_B3: Tensor | None, step: int) -> Tensor | None:
    """The call's noise in the arithmetic dtype: as given, or drawn from the key; None when there is
    neither."""
    if noise is not None:
        return noise.to(wide_dtype(like.dtype))
    if key_B3 is not None:
        return philox.normal(key_B3, tuple(like.shape[1:]), step).to(wide_dtype(like.dtype))
    return None


def stored_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` rounded to `like`'s dtype, in a fresh tensor with the strides that empty_like gives."""
    return torch.empty_like(like).copy_(value)


def scaled(grad: Tensor, t_B: Tensor, table_S: Tensor, needed: bool) -> Tensor:
    """table[t] * grad, or an empty tensor where nobody needs it."""
    if not needed:
        return grad.new_empty(0)
    return stored_like(per_row(table_S, t_B, grad) * grad.to(wide_dtype(grad.dtype)), grad)


def sample_rows(size: str, dtype: torch.dtype, device: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x, t_B, key_B3) for tests and benchmarks, with t_B in [0, 7): dense, channels-last, sliced and empty
    inputs."""
    generator = torch.Generator().manual_seed(len(size))

    def rows(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        t_B = torch.randint(0, 7, shape[:1], generator=generator).to(device)
        key_B3 = torch.randint(0, 2**31, (shape[0], 3), generator=generator).to(device)
        return x, t_B, key_B3

    if size == "large":
        return [rows(8, 512, 64, 64)]
    if size == "tiny":
        return [rows(1, 1), rows(0, 3, 2, 2), rows(2, 0, 4), rows(3)]
    x, t_B, key_B3 = rows(3, 5, 7, 11)
    y, t2_B, key2_B3 = rows(4, 19, 6, 10)
    return [
        (x, t_B, key_B3),
        (x.to(memory_format=torch.channels_last), t_B, key_B3),
        (y.to(memory_format=torch.channels_last), t2_B, key2_B3),
        (y[::2, :, 1:, ::3], t2_B[::2], key2_B3[::2]),
        (y.transpose(1, 3), t2_B, key2_B3),
        rows(2, 257, 13),
    ]

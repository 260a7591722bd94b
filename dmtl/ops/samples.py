"""Make sample arguments of operators for tests and benchmarks (`OpSpec.samples`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .grid import channels_last


def draws(seed: int, dtype: torch.dtype, device: str) -> Callable[..., Tensor]:
    """Return `draw(*shape, scale=1.0)`, which gives fresh normals, the same ones on every device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    return draw


def sample_rows(size: str, dtype: torch.dtype, device: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return triples (x, t_B, key_B3), with t_B in [0, 7): dense, channels-last, sliced and empty
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


def sample_maps(size: str, dtype: torch.dtype, device: str) -> list[tuple[Tensor, int]]:
    """Return pairs (x, reduction): dense, channels-last, sliced, permuted and empty maps."""
    draw = draws(len(size), dtype, device)
    if size == "large":
        return [(channels_last(draw(5, 512, 64, 64)), 4)]
    if size == "tiny":
        return [
            (draw(1, 8, 4, 4), 4),
            (draw(0, 8, 4, 8), 4),
            (draw(2, 8, 0, 4), 2),
            (draw(1, 8, 1, 1), 1),
        ]
    return [
        (channels_last(draw(3, 24, 12, 20)), 4),
        (draw(2, 40, 8, 4), 4),
        (channels_last(draw(2, 8, 6, 10)), 2),
        (channels_last(draw(2, 16, 5, 7)), 1),
        (channels_last(draw(5, 24, 9, 16))[1::2, 8:, 1:, ::2], 4),
        (draw(12, 8, 16, 3).transpose(0, 3), 4),
        (channels_last(draw(1, 520, 4, 8)), 4),
    ]

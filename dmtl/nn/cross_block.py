"""The denoiser's cross block: condition tokens ask, noisy tokens answer (DiffusionMTL, arXiv 2403.15389).

Shapes: B rows, N tokens of the condition, M tokens of the noisy map, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention from x [B, N, C] to y [B, M, C], projections without bias but for the last."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, y_BMC: Tensor) -> Tensor:
        q = self.q(x_BNC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(y_BMC).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(_attention(q, k, v).transpose(1, 2).flatten(2))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, N, d].

    On a CPU torch's fused attention has a backward that takes milliseconds however few tokens there are
    (4.9 ms at 8 x 4 x 36 x 24, a fifth of a small model's training step), so few tokens go through plain
    products there.
    """
    if q.device.type == "cpu" and q.requires_grad and q.shape[-2] * k.shape[-2] <= 128 * 128:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))) over the last dimension."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CrossBlock(nn.Module):
    """y += mlp_kv(norm y); x += attention(norm x, norm y); x += mlp(norm x). The noisy stream is updated
    before it is read."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.norm2_kv = nn.LayerNorm(width)
        self.attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.mlp_kv = Mlp(width, mlp_ratio * width)

    def forward(self, x_BNC: Tensor, y_BMC: Tensor) -> tuple[Tensor, Tensor]:
        y_BMC = y_BMC + self.mlp_kv(self.norm2_kv(y_BMC))
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC), self.norm_kv(y_BMC))
        return x_BNC + self.mlp(self.norm2(x_BNC)), y_BMC

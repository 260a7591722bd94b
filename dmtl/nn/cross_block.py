"""The denoiser's cross block: condition tokens query noisy tokens (DiffusionMTL, arXiv 2403.15389).

Shapes: R rows, N tokens of the condition, M tokens of the noisy map, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from dmtl import ops
from dmtl.nn.precision import cast, cast_all


class CrossAttention(nn.Module):
    """Parameters of multi-head attention from x to y. Only the last projection has a bias.

    The channels of the heads are next to each other. In `kv`, the rows of the keys' weights come before those
    of the values.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    """Parameters of the MLP fc2(GELU(fc1(x)))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)


class CrossBlock(nn.Module):
    """A block of cross attention from the condition's tokens x to the noisy tokens y.

        y += mlp_kv(norm y);  x += attention(norm x, norm y);  x += mlp(norm x)

    So the noisy tokens are updated before they are read.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.norm2_kv = nn.LayerNorm(width)
        self.attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.mlp_kv = Mlp(width, mlp_ratio * width)

    def forward(self, x_RNC: Tensor, y_RMC: Tensor, query_RNC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the updated x and y.

        `query_RNC` is attn.q(norm1(x)) if the caller has already computed it.
        """
        y_RMC = _token_mlp(y_RMC, self.norm2_kv, self.mlp_kv)
        norm, norm_kv, attn = self.norm1, self.norm_kv, self.attn
        layers: list[Tensor] = [norm.weight, norm.bias, norm_kv.weight, norm_kv.bias]
        layers += [attn.q.weight, attn.kv.weight, attn.proj.weight, attn.proj.bias]
        x_RNC = ops.cross_attention(
            cast(x_RNC), y_RMC, *cast_all(layers), heads=attn.heads, eps=norm.eps, query=cast(query_RNC)
        )
        return _token_mlp(x_RNC, self.norm2, self.mlp), y_RMC


def _token_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> Tensor:
    layers = (norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    return ops.token_mlp(cast(x), *cast_all(layers), eps=norm.eps)

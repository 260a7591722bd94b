"""Cross block and time embedding against formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmtl.nn.cross_block import CrossAttention, CrossBlock
from dmtl.nn.embeddings import TimeEmbedding, sinusoidal_embedding


def attention(layer: CrossAttention, x, y):
    """Head by head, row by row."""
    width = x.shape[-1]
    size = width // layer.heads
    keys, values = layer.kv.weight[:width], layer.kv.weight[width:]
    heads = []
    for h in range(layer.heads):
        rows = slice(h * size, (h + 1) * size)
        q, k, v = x @ layer.q.weight[rows].T, y @ keys[rows].T, y @ values[rows].T
        heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_block_updates_the_noisy_stream_before_reading_it(heads):
    block = CrossBlock(16, heads)
    for name, p in block.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p)

    def norm(layer, x):
        return F.layer_norm(x, (16,), layer.weight, layer.bias)

    def mlp(layer, x):
        return layer.fc2(F.gelu(layer.fc1(x)))

    x, y = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    y_new = y + mlp(block.mlp_kv, norm(block.norm2_kv, y))
    x_new = x + attention(block.attn, norm(block.norm1, x), norm(block.norm_kv, y_new))
    x_new = x_new + mlp(block.mlp, norm(block.norm2, x_new))
    out_x, out_y = block(x, y)
    torch.testing.assert_close(out_x, x_new)
    torch.testing.assert_close(out_y, y_new)
    assert block.mlp.fc1.out_features == 64
    query = block.attn.q(norm(block.norm1, x))
    torch.testing.assert_close(block(x, y, query)[0], x_new)


def test_sinusoids():
    out = sinusoidal_embedding(torch.tensor([0.0, 1.0, 2.5]), 8)
    expected = [
        [math.cos(t * 10_000 ** (-i / 4)) for i in range(4)]
        + [math.sin(t * 10_000 ** (-i / 4)) for i in range(4)]
        for t in (0.0, 1.0, 2.5)
    ]
    torch.testing.assert_close(out, torch.tensor(expected))
    assert sinusoidal_embedding(torch.tensor([3]), 6).dtype == torch.float32


def test_time_embedding_tells_steps_apart():
    embed = TimeEmbedding(12)
    out = embed(torch.tensor([0, 1, 1]))
    assert out.shape == (3, 12)
    assert torch.equal(out[1], out[2]) and not torch.allclose(out[0], out[1])

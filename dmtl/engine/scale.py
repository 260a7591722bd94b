"""Scale large images down before the network sees them.

A network that was trained on images resized to 128x160 does not know objects that are twenty times as large.
Therefore larger images are averaged over squares of k x k pixels first, and logits are upsampled by a factor
that is k times as large. k is a whole number, so that maps stay aligned with the pixels of the image.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def downscale_for(trained: tuple[int, int] | None, height: int, width: int) -> int:
    """Return the largest k for which the scaled image has at least as many pixels as a training image.

    Args:
        trained: (height, width) of the training images; None: return 1.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    if trained is None:
        return 1
    return max(1, math.isqrt(height * width // (trained[0] * trained[1])))


def downscaled(image: Tensor, k: int) -> Tensor:
    """Average squares of k x k pixels: [B, 3, H, W] -> [B, 3, ceil(H/k), ceil(W/k)].

    Squares that reach beyond the image average only the part inside.
    """
    return image if k == 1 else F.avg_pool2d(image, k, ceil_mode=True, count_include_pad=False)

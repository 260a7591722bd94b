"""The scale at which the network sees an image.

A network that learned from images resized to 128x160 does not know objects that are twenty times as large.
Images with more pixels are therefore averaged over squares of k x k pixels before they enter, and logits are
upsampled by 8 k instead of 8. k is a whole number, so that maps stay aligned with the image's pixels.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def downscale_for(trained: tuple[int, int] | None, height: int, width: int) -> int:
    """Return the largest k that leaves an image of height x width at least the pixels of a training image.

    Args:
        trained: height and width of the training images; None: 1 is returned.
    """
    if trained is None:
        return 1
    return max(1, math.isqrt(height * width // (trained[0] * trained[1])))


def downscaled(image: Tensor, k: int) -> Tensor:
    """Average squares of k x k pixels: [B, 3, H, W] -> [B, 3, ceil(H/k), ceil(W/k)].

    Squares that reach beyond the image average the part inside.
    """
    return image if k == 1 else F.avg_pool2d(image, k, ceil_mode=True, count_include_pad=False)

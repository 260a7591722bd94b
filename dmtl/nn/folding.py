"""Fold batch norms into the convolutions before them, for inference.

    weight * (conv(x) - mean) / sqrt(var + eps) + bias   is a convolution with a bias.

Nothing here depends on an architecture. A run on a small image shows which norm reads which convolution's
output, and a second run verifies that the folded network is the same function.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from dmtl.nn.precision import tf32

_SIDE = 64  # pixels of the image that shows the data flow
_TOLERANCE = 100  # tolerated difference of a folded network in roundings, relative, in L2

Modules = dict[nn.Module, nn.Module]
M = TypeVar("M", bound=nn.Module)


def fold_batch_norms_(module: M) -> M:
    """Fold every batch norm that reads one convolution's output into that convolution, in place.

    A norm with an activation (timm's `BatchNormAct2d`) is replaced by the activation. A fold that would
    change the function, e.g. because something else reads the convolution's output too, is undone.

    Args:
        module: any network of an image [B, 3, H, W] whose sides are multiples of 32. Norms use their running
            statistics.

    Returns:
        `module`, in eval mode.
    """
    module.eval()
    some = next(module.parameters(), None)
    if some is None:
        return module
    image = torch.randn(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    image = image.to(some.device, some.dtype)
    with torch.no_grad(), tf32(False), torch.autocast(some.device.type, enabled=False):
        pairs, expected = _pairs(module, image)
        folds = [fold for conv, norm in pairs if (fold := _fold(conv, norm))]
        if not _keep(module, image, expected, {old: new for fold in folds for old, new in fold.items()}):
            for fold in folds:
                _keep(module, image, expected, fold)
    return module


def _pairs(module: nn.Module, image: Tensor) -> tuple[list[tuple[nn.Conv2d, _BatchNorm]], list[Tensor]]:
    """Run the network; return pairs of a convolution and the norm after it, and the outputs."""
    calls: dict[nn.Module, int] = {}
    writers: dict[int, nn.Conv2d] = {}
    readers: dict[nn.Conv2d, list[_BatchNorm]] = {}
    alive = []  # ids are unique only while tensors live

    def called(part: nn.Module, inputs: tuple) -> None:
        calls[part] = calls.get(part, 0) + 1
        if isinstance(part, _BatchNorm) and len(inputs) == 1 and id(inputs[0]) in writers:
            readers.setdefault(writers[id(inputs[0])], []).append(part)

    def wrote(part: nn.Module, inputs: tuple, output: Tensor) -> None:
        assert isinstance(part, nn.Conv2d)
        writers[id(output)] = part
        alive.append(output)

    handles = []
    for part in module.modules():
        conv = isinstance(part, nn.Conv2d)
        if conv or (isinstance(part, _BatchNorm) and not _hooked(part)):
            handles.append(part.register_forward_pre_hook(called))
        if conv:
            handles.append(part.register_forward_hook(wrote))
    try:
        outputs = tree_leaves(module(image))
    finally:
        for handle in handles:
            handle.remove()
    single = [(conv, norms[0]) for conv, norms in readers.items() if len(norms) == 1 and calls[conv] == 1]
    return [(conv, norm) for conv, norm in single if calls[norm] == 1], outputs


def _hooked(module: nn.Module) -> bool:
    """Return whether this module has hooks and therefore must stay."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> Modules:
    """Return replacements; empty if the norm has no statistics, or if the weight is itself computed."""
    if norm.running_mean is None or is_parametrized(conv):
        return {}
    rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return {conv: fuse_conv_bn_eval(conv, norm), norm: nn.Sequential(*rest) if rest else nn.Identity()}


def _keep(module: nn.Module, image: Tensor, expected: list[Tensor], changes: Modules) -> bool:
    """Make these changes; undo them and return False if the outputs are not the expected ones."""
    _replace(module, changes)
    try:
        outputs = tree_leaves(module(image))
    except Exception:  # some part reads attributes of a replaced module
        outputs = []
    if len(outputs) == len(expected) and all(map(_equal, outputs, expected)):
        return True
    _replace(module, {new: old for old, new in changes.items()})
    return False


def _equal(actual: Tensor, expected: Tensor) -> bool:
    bound = _TOLERANCE * torch.finfo(expected.dtype).eps * float(expected.norm())
    error = float((actual - expected).norm())
    return actual.shape == expected.shape and math.isfinite(error) and error <= bound


def _replace(module: nn.Module, changes: Modules) -> None:
    """Replace modules wherever they occur."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in changes:
                setattr(parent, name, changes[child].train(child.training))

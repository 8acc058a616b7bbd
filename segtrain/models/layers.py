"""Building blocks that several networks share, and the questions asked of any network's layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from segtrain.types import Fraction


def resize_logits(logits: Tensor, size: Iterable[int], align_corners: bool = False) -> Tensor:
    """Logits (B, C, h, w) resized bilinearly to `size` = (H, W); the same tensor where the sizes agree.

    The only place where logits are resized, so that training, evaluation and export agree on the pixel grid.
    """
    height, width = size
    if logits.shape[-2:] == (height, width):
        return logits
    if logits.device.type == "cpu":
        # Planes, whatever the layout: losses and comparisons of classes are faster on them, and the same bits come out
        # whether one class is resized or all.
        logits = logits.contiguous()
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=align_corners)


def mirror_window(image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """A window of the plane that `image` (B, C, H, W) and its mirror images tile: (start, length) along each axis.

    Mirrored at the outermost pixels, which are not doubled, as often as it takes: a window may lie anywhere and
    have any size, around an image of one pixel too. Reflection padding reaches no further than one image, and
    has no deterministic backward pass on CUDA; indices have both.
    """
    for axis, (start, length) in ((-2, rows), (-1, columns)):
        period = max(1, 2 * image.shape[axis] - 2)
        offset = torch.arange(start, start + length, device=image.device).remainder(period)
        image = image.index_select(axis, torch.minimum(offset, period - offset))
    return image


class ConvBNReLU(nn.Sequential):
    """A convolution that keeps the size (at stride 1), batch normalization, ReLU: children 0, 1, 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            # No bias: the normalization right after would subtract it again.
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SeparableConvBNReLU(nn.Sequential):
    """A 3x3 depthwise then a 1x1 pointwise convolution, each with normalization and ReLU.

    DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611, section 3.2) puts it in place of every 3x3 convolution of
    its head.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                in_channels,
                3,
                padding=dilation,
                dilation=dilation,
                groups=in_channels,
                bias=False,
            ),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class FCNHead(nn.Sequential):
    """3x3 to a quarter of the channels, dropout, 1x1 to the classes: torchvision's FCN and auxiliary head."""

    def __init__(self, in_channels: int, num_classes: int, dropout: Fraction = 0.1) -> None:
        width = in_channels // 4
        super().__init__(*ConvBNReLU(in_channels, width), nn.Dropout(dropout), nn.Conv2d(width, num_classes, 1))


class GlobalMeanPool(nn.Module):
    """(B, C, H, W) -> (B, C, 1, 1).

    A plain mean, as PyTorch does not promise `AdaptiveAvgPool2d` a deterministic backward pass on CUDA.
    """

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3), keepdim=True)


def needs_two_samples(model: nn.Module) -> bool:
    """Whether a training batch of one must fail: a batch normalization sees one value per channel and sample.

    That is a `Sequential` (such as ASPP's image pooling, ours or torchvision's) in which a pool to 1x1 is
    followed by a batch normalization. Only the structure counts; a caller that freezes the normalization need
    not ask.
    """
    chains = (module for module in model.modules() if isinstance(module, nn.Sequential))
    return any(_normalizes_after_pool(list(chain)) for chain in chains)


def _normalizes_after_pool(chain: list[nn.Module]) -> bool:
    first = next((i for i, module in enumerate(chain) if _pools_to_one(module)), len(chain))
    return any(isinstance(inner, _BatchNorm) for module in chain[first:] for inner in module.modules())


def _pools_to_one(module: nn.Module) -> bool:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1), [1, 1])
    return isinstance(module, GlobalMeanPool)


def freeze_batchnorm(model: nn.Module) -> int:
    """Fixes every batch normalization: fixed running statistics, no gradient for scale and shift.

    `model.train()` undoes the first half, so call this after it. Returns how many layers were frozen.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    return len(layers)

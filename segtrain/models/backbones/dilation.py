"""Trading stride for dilation, so that a classification network keeps a finer grid with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

OutputStride = Literal[8, 16, 32]
"""Input pixels per pixel of the deepest feature; a smaller one costs more time and memory."""


class Subsample(nn.Module):
    """Every `stride`-th row and column: the shortcut of a strided unit that has no projection. No parameters."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, image: Tensor) -> Tensor:
        return image[..., :: self.stride, :: self.stride]


def limit_stride(blocks: Iterable[nn.Module], *, stride: int, output_stride: int, dilate_strided: bool = False) -> None:
    """Rewrites the convolutions of `blocks` in place so that their output has at most `output_stride`.

    A stride beyond the limit becomes 1 and every later kernel is spread by the rate lost. The result, read at
    every rate-th pixel, is exactly what the strided network computes (the "a trous" algorithm; Chen et al.
    2017, arXiv 1606.00915, section 3.1). The strided kernel itself keeps the rate before it, as in
    torchvision's ResNets.

    Args:
        blocks: in order of execution; each block's convolutions are registered in that order too.
        stride: stride of the first block's input.
        output_stride: stride that the last block's output shall have, where it is larger now.
        dilate_strided: spread the once strided kernel by the new rate too, as torchvision's MobileNetV3 and
            the authors' DeepLab do.
    """
    rate = 1
    for block in blocks:
        convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        strided = any(conv.stride[0] > 1 for conv in convs)
        if strided and stride < output_stride:
            stride *= 2
            continue
        before, rate = rate, rate * 2 if strided else rate
        for conv in convs:
            keeps_rate = conv.stride[0] > 1 and not dilate_strided
            conv.stride = (1, 1)
            spread(conv, before if keeps_rate else rate)
        for shortcut in (module for module in block.modules() if isinstance(module, Subsample)):
            shortcut.stride = 1


def spread(conv: nn.Conv2d, rate: int) -> None:
    """Sets the dilation, and the padding that keeps the size; a 1x1 kernel has nothing to spread."""
    kernel = conv.kernel_size[0]
    if kernel > 1:
        conv.dilation = (rate, rate)
        conv.padding = (rate * (kernel // 2), rate * (kernel // 2))

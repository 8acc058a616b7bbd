"""One network on several sizes of an image, and the largest of its scores (Chen et al. 2017, arXiv 1606.00915)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.models.layers import resize_logits


def rescale(image: Tensor, scale: float, align_corners: bool = False) -> Tensor:
    """The image (B, C, H, W) at `scale` times its size, bilinearly, at least one pixel.

    With `align_corners`, the distance of the first to the last pixel is scaled and a side of 321 becomes 161 at
    0.5, as in the authors' Caffe networks; without, the side is scaled and rounded down, to 160.
    """
    if align_corners:
        size = [math.floor((side - 1) * scale + 0.5) + 1 for side in image.shape[-2:]]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=True)
    if min(image.shape[-2:]) * scale >= 1:
        return F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
    size = [max(1, int(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def largest(scores: Iterable[Tensor], align_corners: bool = False) -> Tensor:
    """Logits of several sizes -> the largest at each pixel and class, at the size of the first (section 4.1.2)."""
    first, *others = scores
    resized = (resize_logits(other, first.shape[-2:], align_corners) for other in others)
    return reduce(torch.maximum, resized, first)

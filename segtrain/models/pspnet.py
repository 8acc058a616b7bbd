"""PSPNet (Zhao et al. 2017, arXiv 1612.01105)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Len
from torch import Tensor, nn

from segtrain.models.backboned import BackboneModel
from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.resnet import ResNetName, ResNetVariant, Stem
from segtrain.models.layers import ConvBNReLU, GlobalMeanPool, resize_logits
from segtrain.types import Fraction, NumClasses, PositiveInt

HEAD_CHANNELS = 512
BINS = [1, 2, 3, 6]
"""Cells per side at each level of the paper's pyramid."""


class BinPool(nn.Module):
    """(B, C, H, W) -> (B, C, bins, bins): each cell is the mean of rows floor(i H / bins) to ceil((i + 1) H / bins).

    The same as `nn.AdaptiveAvgPool2d`, cells that share pixels included, but by matrix products: that one has
    no deterministic backward pass on CUDA.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, image: Tensor) -> Tensor:
        # The last axis first, which turns it into the first of the two for the second round.
        for _ in range(2):
            image = self._pool_last_axis(image).transpose(-1, -2)
        return image

    def _pool_last_axis(self, image: Tensor) -> Tensor:
        length = image.shape[-1]
        cell = torch.arange(self.bins, device=image.device)[None]
        start, end = cell * length // self.bins, ((cell + 1) * length + self.bins - 1) // self.bins
        position = torch.arange(length, device=image.device)[:, None]
        # Ones and zeros are exact in any precision; dividing afterwards keeps the mean of a constant exact.
        inside = (position >= start) & (position < end)
        return image @ inside.to(image.dtype) / (end - start)


class PyramidPooling(nn.Module):
    """The pyramid pooling module (section 3.2): (B, C, h, w) -> (B, C + len(bins) * (C // len(bins)), h, w).

    The features themselves, then for each level their means over bins x bins cells, projected to an even
    share of the channels and resized to h x w.

    Args:
        in_channels: C, 2048 for ResNet-50 and deeper.
        bins: cells per side of each level.
        align_corners: how the cells are resized.
    """

    def __init__(self, in_channels: int, bins: list[int], *, align_corners: bool) -> None:
        super().__init__()
        width = in_channels // len(bins)
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(GlobalMeanPool() if count == 1 else BinPool(count), *ConvBNReLU(in_channels, width, 1))
            for count in bins
        )
        self.out_channels = in_channels + width * len(bins)

    def forward(self, image: Tensor) -> Tensor:
        size = image.shape[-2:]
        levels = [resize_logits(level(image), size, self.align_corners) for level in self.features]
        return torch.cat([image, *levels], dim=1)


class PSPNet(BackboneModel):
    """A dilated ResNet and pyramid pooling (section 3.2, figure 3), with the auxiliary loss of section 3.3.

    As the authors' code in Caffe and PyTorch has it: a stem of three 3x3 convolutions, every unit of `layer3`
    at rate 2 and of `layer4` at rate 4, means over 1x1, 2x2, 3x3 and 6x6 cells with 512 channels each behind
    the features' 2048, a 3x3 convolution to 512 channels, dropout of whole channels, a 1x1 convolution. An
    image of 473x473, the paper's crop, gives logits of 60x60; the crops of the paper have 8k + 1 pixels, any
    other size works too. 46,716,373 parameters on ResNet-50 with 21 classes, 49,081,578 with the auxiliary
    head. Ports often have torchvision's 7x7 stem or dilation, or a narrower pyramid.

    The backbone's keys are those of the authors' ImageNet networks (conv1, bn1, ... bn3, layer1 to layer4), whose files
    load by `model.weights=PATH`. Their whole PSPNets number the stem anew (layer0) and name the heads `cls` and
    `aux`: such a file is refused.

    Args:
        num_classes: channels of the output.
        backbone: resnet50, resnet101 and resnet152 in the paper.
        output_stride: of the pyramid and the logits, 8 in the paper.
        in_channels: channels of the image.
        aux: add the auxiliary head on `layer3`; its loss has the weight 0.4 in the paper.
        stem: "deep" as the authors', or "conv7", torchvision's, for which there are ImageNet weights.
        bins: cells per side at each level of the pyramid, each level with an even share of the channels.
        dropout: chance of a channel to be dropped before the last layer, of both heads.
        align_corners: how pyramid and logits are resized; true in the authors' code.
    """

    class_layers = ("classifier.4", "aux_classifier.4")

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: ResNetName = "resnet50",
        output_stride: OutputStride = 8,
        in_channels: PositiveInt = 3,
        aux: bool = True,
        stem: Stem = "deep",
        bins: Annotated[list[PositiveInt], Len(1)] = BINS,
        dropout: Fraction = 0.1,
        align_corners: bool = True,
    ) -> None:
        variant = ResNetVariant(stem=stem, dilation="authors")
        super().__init__(
            backbone=build_backbone(backbone, output_stride, in_channels, resnet=variant),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        self.ppm = PyramidPooling(self.backbone.out_channels[-1], bins, align_corners=align_corners)
        self.classifier = nn.Sequential(
            *ConvBNReLU(self.ppm.out_channels, HEAD_CHANNELS),
            nn.Dropout2d(dropout),
            nn.Conv2d(HEAD_CHANNELS, num_classes, 1),
        )
        if self.aux_classifier is not None:
            self.aux_classifier[3] = nn.Dropout2d(dropout)

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.ppm(features[-1]))
        return logits

"""DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.mobilenet import LowLevel
from segtrain.models.backbones.resnet import ResNetName
from segtrain.models.layers import ConvBNReLU, GlobalMeanPool, SeparableConvBNReLU, resize_logits
from segtrain.models.segmentation import BackboneModel
from segtrain.types import Fraction, NumClasses, PositiveInt

HEAD_CHANNELS = 256
"""Width of the pyramid's branches and of the decoder, in both papers and in torchvision."""


class ImagePool(nn.Sequential):
    """The mean over the image, projected and put back on every pixel (arXiv 1706.05587, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(GlobalMeanPool(), *ConvBNReLU(in_channels, out_channels, 1))

    def forward(self, image: Tensor) -> Tensor:
        # Resizing a single pixel repeats it, up to rounding: done as torchvision does, for its very logits.
        return resize_logits(super().forward(image), image.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv 1706.05587, section 3.3): (B, C, h, w) -> (B, 256, h, w).

    A 1x1 convolution, one 3x3 convolution per rate and the image pool side by side, then joined by a 1x1
    convolution. Child names and order are torchvision's.
    """

    def __init__(self, in_channels: int, rates: list[int], *, dropout: Fraction, separable: bool = False) -> None:
        super().__init__()
        atrous = SeparableConvBNReLU if separable else ConvBNReLU
        self.convs = nn.ModuleList(
            [
                ConvBNReLU(in_channels, HEAD_CHANNELS, 1),
                *(atrous(in_channels, HEAD_CHANNELS, dilation=rate) for rate in rates),
                ImagePool(in_channels, HEAD_CHANNELS),
            ]
        )
        joined = HEAD_CHANNELS * len(self.convs)
        self.project = nn.Sequential(*ConvBNReLU(joined, HEAD_CHANNELS, 1), nn.Dropout(dropout))

    def forward(self, image: Tensor) -> Tensor:
        branches = [conv(image) for conv in self.convs]
        pyramid: Tensor = self.project(torch.cat(branches, dim=1))
        return pyramid


def paper_rates(output_stride: int) -> list[int]:
    """6, 12, 18 at output stride 16, doubled at 8: the same reach (arXiv 1706.05587, section 3.3)."""
    return [rate * 16 // output_stride for rate in (6, 12, 18)]


class DeepLabV3(BackboneModel):
    """A dilated backbone and atrous spatial pyramid pooling; by default as torchvision builds it on ResNets.

    torchvision differs from the paper: rates 12, 24, 36 at any stride, a 3x3 convolution after the pyramid,
    dropout 0.5 in it, no multi-grid, an auxiliary head. With them it takes torchvision's state_dict key for
    key and gives its logits. The paper's network has `multi_grid=[1, 2, 4], output_stride=16,
    head_conv=False, dropout=0.1, aux=False`.

    Args:
        num_classes: channels of the output.
        backbone: torchvision has weights for resnet50, resnet101 and mobilenet_v3_large.
        output_stride: None is torchvision's: 8 for ResNets, 16 for MobileNets.
        in_channels: channels of the image.
        aux: add the auxiliary head (`layer3` of ResNets, the 40-channel feature of MobileNetV3).
        atrous_rates: dilations of the pyramid's 3x3 convolutions; None: 6, 12, 18 at output stride 16,
            doubled at 8. An empty list leaves only the 1x1 convolution and the image pool.
        multi_grid: for ResNets, factors on the dilation of `layer4`'s units, [1, 2, 4] in the paper; None:
            torchvision's dilation scheme, which differs from the authors' even at [1, 1, 1].
        head_conv: put a 3x3 convolution between the pyramid and the last layer.
        dropout: at the end of the pyramid.
        align_corners: how logits are resized; false in torchvision, true in the authors' code.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: ResNetName | Literal["mobilenet_v2", "mobilenet_v3_large"] = "resnet50",
        output_stride: OutputStride | None = None,
        in_channels: PositiveInt = 3,
        aux: bool = True,
        atrous_rates: list[PositiveInt] | None = None,
        multi_grid: list[PositiveInt] | None = None,
        head_conv: bool = True,
        dropout: Fraction = 0.5,
        align_corners: bool = False,
    ) -> None:
        stride = output_stride or (16 if backbone.startswith("mobilenet") else 8)
        super().__init__(
            backbone=build_backbone(backbone, stride, in_channels, multi_grid=multi_grid),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        rates = paper_rates(stride) if atrous_rates is None else atrous_rates
        self.classifier = nn.Sequential(
            ASPP(self.backbone.out_channels[-1], rates, dropout=dropout),
            *(ConvBNReLU(HEAD_CHANNELS, HEAD_CHANNELS) if head_conv else ()),
            nn.Conv2d(HEAD_CHANNELS, num_classes, 1),
        )
        self.class_layers = (f"classifier.{len(self.classifier) - 1}", "aux_classifier.4")
        self.torchvision_form = f"deeplabv3_{backbone}" if head_conv and multi_grid is None else None


class DeepLabV3Plus(BackboneModel):
    """DeepLabV3's pyramid with a decoder that refines it by features at stride 4. Logits at stride 4.

    The decoder (arXiv 1802.02611, section 4.1) has the two 3x3 convolutions of 256 channels of the original;
    several ports have one. Low-level features are `layer1`'s output for ResNets.

    Args:
        num_classes: channels of the output.
        backbone: any ResNet, or mobilenet_v2 (whose final 1280-channel layer is what the pyramid reads).
        output_stride: stride of the pyramid: 16 to train, 8 for the paper's best scores.
        in_channels: channels of the image.
        aux: add an auxiliary head on the second deepest feature; not in the paper.
        atrous_rates: dilations of the pyramid's 3x3 convolutions; None: 6, 12, 18 at output stride 16,
            doubled at 8.
        multi_grid: for ResNets, factors on the dilation of `layer4`'s units; None: torchvision's
            dilation scheme, which differs from the authors' even at [1, 1, 1].
        low_level: for mobilenet_v2: "block" (24 channels) or the paper's "expansion" (144 channels).
        separable: depthwise separable 3x3 convolutions in pyramid and decoder, as the paper has with
            Xception.
        dropout: at the end of the pyramid.
        align_corners: how pyramid and logits are resized; true in the authors' code.
    """

    class_layers = ("classifier", "aux_classifier.4")

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: ResNetName | Literal["mobilenet_v2"] = "resnet50",
        output_stride: OutputStride = 16,
        in_channels: PositiveInt = 3,
        aux: bool = False,
        atrous_rates: list[PositiveInt] | None = None,
        multi_grid: list[PositiveInt] | None = None,
        low_level: LowLevel = "block",
        separable: bool = False,
        dropout: Fraction = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(
            backbone=build_backbone(backbone, output_stride, in_channels, low_level=low_level, multi_grid=multi_grid),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        shallow, deep = self.backbone.out_channels[0], self.backbone.out_channels[-1]
        rates = paper_rates(output_stride) if atrous_rates is None else atrous_rates
        block = SeparableConvBNReLU if separable else ConvBNReLU
        self.aspp = ASPP(deep, rates, dropout=dropout, separable=separable)
        # Few channels, so that the pyramid's richer features are not outweighed (arXiv 1802.02611, table 1).
        self.low_level = ConvBNReLU(shallow, 48, 1)
        self.decoder = nn.Sequential(block(HEAD_CHANNELS + 48, HEAD_CHANNELS), block(HEAD_CHANNELS, HEAD_CHANNELS))
        self.classifier = nn.Conv2d(HEAD_CHANNELS, num_classes, 1)

    def decode(self, features: list[Tensor]) -> Tensor:
        pyramid = self.aspp(features[-1])
        detail = self.low_level(features[0])
        pyramid = resize_logits(pyramid, detail.shape[-2:], self.align_corners)
        logits: Tensor = self.classifier(self.decoder(torch.cat([pyramid, detail], dim=1)))
        return logits

"""DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from segtrain.errors import ConfigError, listed
from segtrain.models.backboned import BackboneModel
from segtrain.models.backbones.build import BackboneName, LowLevel, build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.mobilenet import LastChannels
from segtrain.models.backbones.resnet import (
    BOTTLENECKED,
    ResNetVariant,
    StridePosition,
    initialize,
    spread_unit,
)
from segtrain.models.layers import ConvBNReLU, GlobalMeanPool, SeparableConvBNReLU, resize_logits
from segtrain.types import Fraction, NumClasses, PositiveInt

HEAD_CHANNELS = 256
"""Width of the pyramid's branches and of the decoder, in both papers and in torchvision."""


class ImagePool(nn.Sequential):
    """The mean over the image, projected and put back on every pixel (arXiv 1706.05587, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, align_corners: bool = False) -> None:
        super().__init__(GlobalMeanPool(), *ConvBNReLU(in_channels, out_channels, 1))
        self.align_corners = align_corners

    def forward(self, image: Tensor) -> Tensor:
        # Resizing a single pixel repeats it, up to rounding: done as torchvision does, for its very logits.
        return resize_logits(super().forward(image), image.shape[-2:], self.align_corners)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv 1706.05587, section 3.3): (B, C, h, w) -> (B, 256, h, w).

    A 1x1 convolution, one 3x3 convolution per rate and the image pool side by side, then joined by a 1x1
    convolution. Child names and order are torchvision's.
    """

    def __init__(
        self,
        in_channels: int,
        rates: list[int],
        *,
        dropout: Fraction,
        separable: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        atrous = SeparableConvBNReLU if separable else ConvBNReLU
        self.convs = nn.ModuleList(
            [
                ConvBNReLU(in_channels, HEAD_CHANNELS, 1),
                *(atrous(in_channels, HEAD_CHANNELS, dilation=rate) for rate in rates),
                ImagePool(in_channels, HEAD_CHANNELS, align_corners),
            ]
        )
        joined = HEAD_CHANNELS * len(self.convs)
        self.project = nn.Sequential(*ConvBNReLU(joined, HEAD_CHANNELS, 1), nn.Dropout(dropout))

    def forward(self, image: Tensor) -> Tensor:
        branches = [conv(image) for conv in self.convs]
        pyramid: Tensor = self.project(torch.cat(branches, dim=1))
        return pyramid


class Cascade(nn.Sequential):
    """`block5` to `block7`, copies of a ResNet's last block in a row (arXiv 1706.05587, section 3.2, figure 3b).

    Where the blocks' strides are taken away, each has twice the rate of the one before: at output stride 16
    the last block of the ResNet has 2, these have 4, 8 and 16, times `multi_grid` for their three units.

    Args:
        channels: of input and output.
        multi_grid: one factor for each unit of a block.
        rate: of the ResNet's last block.
    """

    def __init__(self, channels: int, multi_grid: list[int], rate: int) -> None:
        super().__init__()
        for number in (5, 6, 7):
            rate *= 2
            units = [Bottleneck(channels, channels // Bottleneck.expansion) for _ in multi_grid]
            for unit, factor in zip(units, multi_grid, strict=True):
                spread_unit(unit, rate * factor)
            self.add_module(f"block{number}", nn.Sequential(*units))
        self.apply(initialize)


def paper_rates(output_stride: int) -> list[int]:
    """6, 12, 18 at output stride 16, doubled at 8: the same reach (arXiv 1706.05587, section 3.3)."""
    return [rate * 16 // output_stride for rate in (6, 12, 18)]


class DeepLabV3(BackboneModel):
    """A dilated backbone and atrous spatial pyramid pooling; by default as torchvision builds it on ResNets.

    torchvision differs from the paper: rates 12, 24, 36 at any stride, a 3x3 convolution after the pyramid,
    dropout 0.5 in it, no multi-grid, an auxiliary head. With them it takes torchvision's state_dict key for
    key and gives its logits. The paper's network has `multi_grid=[1, 2, 4], output_stride=16,
    head_conv=False, dropout=0.1, aux=False`: 39,048,533 parameters on ResNet-50 with 21 classes, and logits
    of 33x33 for an image of 513x513. Trained at output stride 16, it is scored best at 8: the same weights,
    with `layer3` at rate 2, `layer4` at 4 times the multi-grid and the pyramid's rates doubled (section 3.3).

    `head="cascade"` is the paper's other network, "going deeper" (section 3.2, figure 3b): three more blocks
    like `layer4` and a 1x1 convolution, without a pyramid. The strides that figure 3a has in them, up to 256,
    are all lost to dilation at the output strides here.

    Args:
        num_classes: channels of the output.
        backbone: torchvision has weights for resnet50, resnet101 and mobilenet_v3_large.
        output_stride: None is torchvision's: 8 for ResNets, 16 for MobileNets; 16 for the others.
        in_channels: channels of the image.
        aux: add the auxiliary head (`layer3` of ResNets, the 40-channel feature of MobileNetV3).
        head: "aspp", the pyramid, or "cascade", for ResNets of bottlenecks.
        atrous_rates: dilations of the pyramid's 3x3 convolutions; None: 6, 12, 18 at output stride 16,
            doubled at 8. An empty list leaves only the 1x1 convolution and the image pool.
        multi_grid: for ResNets, factors on the dilation of `layer4`'s units, and of the cascade's: [1, 2, 4]
            in the paper, [1, 2, 1] in its cascade. None: torchvision's dilation scheme, which differs from
            the authors' even at [1, 1, 1]; in the cascade [1, 2, 1].
        stride_position: for ResNets, "first" or "last" unit of a block; last in the authors' code, first in
            torchvision, whose ImageNet weights load in both cases but were trained with first.
        last_channels: for mobilenet_v2: 320 leaves out its 1x1 convolution to 1280 channels. With `atrous_rates=[]`
            and `head_conv=False` that is the network the authors released (2,113,557 parameters, 21 classes).
        head_conv: put a 3x3 convolution between the pyramid and the last layer.
        dropout: at the end of the pyramid or the cascade; the authors' cascade has none.
        align_corners: how the image pool and the logits are resized; false in torchvision, true in the
            authors' code.

    Raises:
        ConfigError: a cascade on a backbone that has no bottlenecks, or with a key that only the pyramid has.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: BackboneName = "resnet50",
        output_stride: OutputStride | None = None,
        in_channels: PositiveInt = 3,
        aux: bool = True,
        head: Literal["aspp", "cascade"] = "aspp",
        atrous_rates: list[PositiveInt] | None = None,
        multi_grid: list[PositiveInt] | None = None,
        stride_position: StridePosition = "first",
        last_channels: LastChannels = 1280,
        head_conv: bool = True,
        dropout: Fraction = 0.5,
        align_corners: bool = False,
    ) -> None:
        stride = output_stride or (8 if backbone.startswith("resnet") else 16)
        if head == "cascade":
            _check_cascade(backbone, atrous_rates, head_conv)
            multi_grid = [1, 2, 1] if multi_grid is None else multi_grid
        variant = ResNetVariant(multi_grid=multi_grid, stride_position=stride_position)
        super().__init__(
            backbone=build_backbone(backbone, stride, in_channels, last_channels=last_channels, resnet=variant),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        channels = self.backbone.out_channels[-1]
        if head == "cascade":
            layers = [Cascade(channels, multi_grid or [], 32 // stride), nn.Dropout(dropout)]
        else:
            rates = paper_rates(stride) if atrous_rates is None else atrous_rates
            layers = [ASPP(channels, rates, dropout=dropout, align_corners=align_corners)]
            channels = HEAD_CHANNELS
        if head_conv:
            layers += ConvBNReLU(channels, channels)  # its three layers one by one, as torchvision numbers them
        self.classifier = nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))
        if not head_conv:  # the paper's network: its scores start small (the authors' code)
            _truncated_normal(self.classifier[-1], 0.01)
        self.class_layers = (f"classifier.{len(layers)}", "aux_classifier.4")
        torchvision_form = head_conv and not variant.by_authors
        self.torchvision_form = f"deeplabv3_{backbone}" if torchvision_form else None


def _check_cascade(backbone: str, atrous_rates: list[int] | None, head_conv: bool) -> None:
    wrong = (
        (f"backbone={backbone}", backbone not in BOTTLENECKED, "backbone=resnet50"),
        (f"atrous_rates={atrous_rates}", atrous_rates is not None, "atrous_rates=null"),
        ("head_conv=true", head_conv, "head_conv=false"),
    )
    for key, is_wrong, fix in wrong:
        if is_wrong:
            raise ConfigError(
                f"{key} has no meaning in a cascade",
                where=f"model.head=cascade model.{key}",
                expected=f"a ResNet of bottlenecks ({listed(BOTTLENECKED)}), model.atrous_rates=null, "
                "model.head_conv=false",
                fix=f"model.{fix}; model=deeplabv3_cascade has it all; or model.head=aspp",
            )


class DeepLabV3Plus(BackboneModel):
    """DeepLabV3's pyramid with a decoder that refines it by features at stride 4. Logits at stride 4.

    Figure 2 of arXiv 1802.02611: the pyramid's 256 channels are resized to the grid of early features, which a 1x1
    convolution has brought to 48 channels; two 3x3 convolutions of 256 channels and a 1x1 follow (section 4.1; several
    ports have one 3x3). An image of 513x513 gives a pyramid of 33x33 and logits of 129x129. With 21 classes:
    40,352,181 parameters on ResNet-50, 59,344,309 on ResNet-101, 41,055,413 on Xception-65 with separable
    convolutions, the paper's best. Layers of the head start as in the authors' code (truncated normals).

    Args:
        num_classes: channels of the output.
        backbone: xception65 and resnet101 are the paper's.
        output_stride: stride of the pyramid: 16 to train, 8 for the paper's best scores.
        in_channels: channels of the image.
        aux: add an auxiliary head on the second deepest feature; not in the paper.
        atrous_rates: dilations of the pyramid's 3x3 convolutions; None: 6, 12, 18 at output stride 16,
            doubled at 8.
        multi_grid: for ResNets, factors on the dilation of `layer4`'s units; None: torchvision's
            dilation scheme, which differs from the authors' even at [1, 1, 1].
        stride_position: for ResNets, "first" or "last" unit of a block; last in the authors' code.
        low_level: what the decoder reads: "block", the stage's output at stride 4 (24 channels of mobilenet_v2,
            `layer1` of ResNets, as most ports), or where the authors tap: "expansion" for mobilenet_v2 (144
            channels), "unit" for ResNets of bottlenecks (256 channels, before the sum of `layer1`'s second unit).
            xception65 always gives the authors' 256 channels.
        separable: depthwise separable 3x3 convolutions in pyramid and decoder; None: with xception65, as in the
            paper.
        dropout: at the end of the pyramid.
        align_corners: how pyramid and logits are resized; true in the authors' code.
    """

    class_layers = ("classifier", "aux_classifier.4")

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: BackboneName = "resnet50",
        output_stride: OutputStride = 16,
        in_channels: PositiveInt = 3,
        aux: bool = False,
        atrous_rates: list[PositiveInt] | None = None,
        multi_grid: list[PositiveInt] | None = None,
        stride_position: StridePosition = "first",
        low_level: LowLevel = "block",
        separable: bool | None = None,
        dropout: Fraction = 0.1,
        align_corners: bool = False,
    ) -> None:
        variant = ResNetVariant(multi_grid=multi_grid, stride_position=stride_position)
        super().__init__(
            backbone=build_backbone(backbone, output_stride, in_channels, low_level=low_level, resnet=variant),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        shallow, deep = self.backbone.out_channels[0], self.backbone.out_channels[-1]
        rates = paper_rates(output_stride) if atrous_rates is None else atrous_rates
        separable = backbone == "xception65" if separable is None else separable
        block = SeparableConvBNReLU if separable else ConvBNReLU
        self.aspp = ASPP(deep, rates, dropout=dropout, separable=separable, align_corners=align_corners)
        # Few channels, so that the pyramid's richer features are not outweighed (arXiv 1802.02611, table 1).
        self.low_level = ConvBNReLU(shallow, 48, 1)
        self.decoder = nn.Sequential(block(HEAD_CHANNELS + 48, HEAD_CHANNELS), block(HEAD_CHANNELS, HEAD_CHANNELS))
        self.classifier = nn.Conv2d(HEAD_CHANNELS, num_classes, 1)
        self._start_as_authors()

    def _start_as_authors(self) -> None:
        """Their deviations: 0.01 for the logits, in separable convolutions 0.33 (depthwise) and 0.06 (pointwise)."""
        _truncated_normal(self.classifier, 0.01)
        nn.init.zeros_(cast(Tensor, self.classifier.bias))
        for layer in (*self.aspp.modules(), *self.decoder.modules()):
            if isinstance(layer, SeparableConvBNReLU):
                _truncated_normal(layer[0], 0.33)
                _truncated_normal(layer[3], 0.06)

    def decode(self, features: list[Tensor]) -> Tensor:
        pyramid = self.aspp(features[-1])
        detail = self.low_level(features[0])
        pyramid = resize_logits(pyramid, detail.shape[-2:], self.align_corners)
        logits: Tensor = self.classifier(self.decoder(torch.cat([pyramid, detail], dim=1)))
        return logits


def _truncated_normal(layer: nn.Module, deviation: float) -> None:
    """TensorFlow's truncated normal: nothing beyond two deviations."""
    nn.init.trunc_normal_(cast(Tensor, layer.weight), std=deviation, a=-2 * deviation, b=2 * deviation)

"""Lite R-ASPP, the fast head for MobileNetV3 (Howard et al. 2019, arXiv 1905.02244, section 6.4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from segtrain.models.backboned import BackboneModel
from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.layers import ConvBNReLU, GlobalMeanPool, resize_logits
from segtrain.types import NumClasses, PositiveInt


class LRASPPHead(nn.Module):
    """Deep features gated by their global mean; their logits and those of shallow features are added."""

    def __init__(self, low_channels: int, high_channels: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.cbr = ConvBNReLU(high_channels, channels, 1)
        self.scale = nn.Sequential(GlobalMeanPool(), nn.Conv2d(high_channels, channels, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor, align_corners: bool = False) -> Tensor:
        gated = self.cbr(high) * self.scale(high)
        gated = resize_logits(gated, low.shape[-2:], align_corners)
        logits: Tensor = self.low_classifier(low) + self.high_classifier(gated)
        return logits


class LRASPP(BackboneModel):
    """MobileNetV3-Large with a Lite R-ASPP head, as torchvision's `lraspp_mobilenet_v3_large`; stride 8.

    Takes torchvision's state_dict key for key and gives its logits.

    Args:
        num_classes: channels of the output.
        backbone: mobilenet_v3_large.
        output_stride: 16 in torchvision.
        in_channels: channels of the image.
        head_channels: width of the gated branch; 128 in the paper.
        align_corners: how features and logits are resized; false in torchvision.
    """

    class_layers = ("classifier.low_classifier", "classifier.high_classifier")

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: Literal["mobilenet_v3_large"] = "mobilenet_v3_large",
        output_stride: OutputStride = 16,
        in_channels: PositiveInt = 3,
        head_channels: PositiveInt = 128,
        align_corners: bool = False,
    ) -> None:
        super().__init__(
            backbone=build_backbone(backbone, output_stride, in_channels),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=False,
            align_corners=align_corners,
        )
        _, low, _, high = self.backbone.out_channels
        self.classifier = LRASPPHead(low, high, num_classes, head_channels)
        self.torchvision_form = f"lraspp_{backbone}"

    def decode(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(features[1], features[-1], self.align_corners)
        return logits

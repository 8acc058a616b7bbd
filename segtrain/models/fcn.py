"""Fully convolutional networks (Long et al. 2015, arXiv 1411.4038)."""

from __future__ import annotations

from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.resnet import ResNetName
from segtrain.models.layers import FCNHead
from segtrain.models.segmentation import BackboneModel
from segtrain.types import Fraction, NumClasses, PositiveInt


class FCNTorchvision(BackboneModel):
    """A dilated ResNet with a small convolutional head: torchvision's `fcn_resnet50` and `fcn_resnet101`.

    Not the network of the paper, which is a VGG-16 with skip connections. Takes torchvision's state_dict key for
    key and gives its logits; unlike torchvision's, it leaves the auxiliary ones out in evaluation mode.

    Args:
        num_classes: channels of the output.
        backbone: torchvision has weights for resnet50 and resnet101.
        output_stride: 8 in torchvision.
        in_channels: channels of the image.
        aux: add the auxiliary head on `layer3`.
        dropout: before the last layer of the main head.
        align_corners: how logits are resized; false in torchvision.
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
        dropout: Fraction = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(
            backbone=build_backbone(backbone, output_stride, in_channels),
            num_classes=num_classes,
            in_channels=in_channels,
            aux=aux,
            align_corners=align_corners,
        )
        self.classifier = FCNHead(self.backbone.out_channels[-1], num_classes, dropout)
        self.torchvision_form = f"fcn_{backbone}"

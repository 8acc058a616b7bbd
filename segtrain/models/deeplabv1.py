"""DeepLab with a large field of view (Chen et al. 2014, arXiv 1412.7062): the first of the DeepLabs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.models.backbones.vgg import VGG16, convolutionalize
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import Fraction, NumClasses, PositiveInt


class LargeFOV(nn.Module):
    """VGG-16 at stride 8 and its fully connected layers as `fc6`, a spread 3x3 convolution, and `fc7`, a 1x1."""

    def __init__(self, in_channels: int, fc_channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.features = VGG16(output_stride=8, in_channels=in_channels, pool_kernel=3, ceil_mode=True)
        # Caffe's mean divides by nine at the border too, where padding takes part.
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=True)
        self.fc6 = nn.Conv2d(512, fc_channels, 3, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.pool(self.features(image)[-1])
        for layer in (self.fc6, self.fc7):
            hidden = self.dropout(F.relu(layer(hidden)))
        return hidden


class DeepLabV1(SegmentationModel):
    """DeepLab-LargeFOV (section 3): VGG-16 whose last layers see far by dilation. Logits at stride 8.

    As in the authors' Caffe network, all poolings are 3x3, padded by 1; the fourth and fifth have stride 1, and the
    last three convolutions dilation 2. A 3x3 mean, then `fc6` (3x3, dilation 12, 1024 channels), `fc7` (1x1, 1024) and
    the last layer, `fc8` in Caffe and `classifier` here. An image of 321x321 gives 41x41 logits, 65x81 gives 9x11;
    sizes of 8k + 1 give k + 1, and are the ones that bilinear resizing brings back without a shift. With 21 classes it
    has 20,505,429 parameters. The paper's dense CRF is a step after the network.

    `backbone` is all but the last layer, because the authors' recipe trains only that one ten times as fast.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the image.
        fc_channels: width of fc6 and fc7; 1024 in the paper, every fourth of VGG-16's 4096.
        dilation: of fc6, in pixels of stride 8.
        dropout: after fc6 and after fc7.
        align_corners: how logits are resized; true in the authors' code.
    """

    imagenet_name = "vgg16"
    """torchvision's classification network whose weights `from_classifier` takes."""
    output_stride = 8

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: PositiveInt = 3,
        fc_channels: PositiveInt = 1024,
        dilation: PositiveInt = 12,
        dropout: Fraction = 0.5,
        align_corners: bool = True,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, align_corners=align_corners)
        self.fc_channels = fc_channels
        self.backbone = LargeFOV(in_channels, fc_channels, dilation, dropout)
        self.classifier = nn.Conv2d(fc_channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.classifier.bias))

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's vgg16 state_dict -> the backbone's keys.

        fc6 takes every third row and column of VGG-16's 7x7 kernel (taps 0, 3 and 6) and, at 1024 channels, every
        fourth channel, as do both sides of fc7: the subsampling of section 3.1. The last layer is dropped.

        Raises:
            ConfigError: 4096 is no multiple of `fc_channels`.
            CheckpointError: a layer has not VGG-16's shape.
        """
        return convolutionalize(
            state, features="backbone.features.", head="backbone.", channels=self.fc_channels, spacing=3
        )

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.classifier(self.backbone(image))}

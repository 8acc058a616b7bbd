"""MobileNetV2 and V3 as torchvision builds them, without their classification heads."""

from __future__ import annotations

from typing import Literal, cast

import torchvision
from torch import Tensor, nn

from segtrain.models.backbones.dilation import OutputStride, limit_stride

LastChannels = Literal[320, 1280]


class MobileNetV2(nn.Sequential):
    """Sandler et al. 2018, arXiv 1801.04381: torchvision's `features`, children 0 to 18.

    Image (B, C, H, W) -> four features with 24, 32, 96 and 1280 channels: the last block before each stride,
    and the final 1x1 convolution. 2,223,872 parameters; 1,811,712 without that convolution.

    Args:
        output_stride: stride of the last feature.
        in_channels: channels of the image.
        low_level: what stands for the first feature: "block" is child 3's output (24 channels, linear);
            "expansion" is its depthwise convolution's output (144 channels), where DeepLabV3+ was published
            to tap.
        last_channels: 320 leaves out child 18, the 1x1 convolution to 1280 channels: then the last bottleneck's
            output is the last feature, as in the authors' DeepLabV3.
    """

    name = "mobilenet_v2"
    aux_feature = 2
    """Position of the feature that an auxiliary head reads: the 96-channel one."""

    def __init__(
        self,
        *,
        output_stride: OutputStride = 32,
        in_channels: int = 3,
        low_level: Literal["block", "expansion"] = "block",
        last_channels: LastChannels = 1280,
    ) -> None:
        layers = torchvision.models.mobilenet_v2(weights=None).features
        super().__init__(*(layers if last_channels == 1280 else layers[:18]))
        self.taps = (3, 6, 13, len(self) - 1)
        self.left_out = () if last_channels == 1280 else ("18.",)
        self.low_level = low_level
        self.out_channels = [24 if low_level == "block" else 144, 32, 96, last_channels]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        _accept_channels(self, in_channels)
        limit_stride(list(self)[1:], stride=2, output_stride=output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        for index, block in enumerate(self):
            if index == self.taps[0] and self.low_level == "expansion":
                expand, depthwise, project, norm = cast(nn.Sequential, block.conv)
                hidden = depthwise(expand(image))
                image = image + norm(project(hidden))
                features.append(hidden)
                continue
            image = block(image)
            if index in self.taps:
                features.append(image)
        return features


class MobileNetV3Large(nn.Sequential):
    """Howard et al. 2019, arXiv 1905.02244: torchvision's `features`, children 0 to 16.

    Image (B, C, H, W) -> four features with 24, 40, 80 and 960 channels. They are read where torchvision's
    DeepLabV3 and LR-ASPP read them: at the first block of each stride, and at the final 1x1 convolution.
    """

    name = "mobilenet_v3_large"
    taps = (2, 4, 7, 16)
    aux_feature = 1
    """Position of the feature that an auxiliary head reads: the 40-channel one, as in torchvision."""

    def __init__(self, *, output_stride: OutputStride = 32, in_channels: int = 3) -> None:
        super().__init__(*torchvision.models.mobilenet_v3_large(weights=None).features)
        self.out_channels = [24, 40, 80, 960]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        _accept_channels(self, in_channels)
        limit_stride(list(self)[1:], stride=2, output_stride=output_stride, dilate_strided=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        for index, block in enumerate(self):
            image = block(image)
            if index in self.taps:
                features.append(image)
        return features


def _accept_channels(features: nn.Sequential, in_channels: int) -> None:
    """Replaces the first convolution where the image has not three channels; torchvision's initialization."""
    stem = cast(nn.Sequential, features[0])
    conv = cast(nn.Conv2d, stem[0])
    if in_channels == conv.in_channels:
        return
    stem[0] = nn.Conv2d(in_channels, conv.out_channels, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(cast(Tensor, stem[0].weight), mode="fan_out")

"""ResNet (He et al. 2015, arXiv 1512.03385) as torchvision builds it, without its classification head."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torchvision.models import resnet

from segtrain.errors import ConfigError
from segtrain.models.backbones.dilation import OutputStride, limit_stride, spread

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
RESNETS: tuple[str, ...] = get_args(ResNetName)

BLOCKS: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}


class ResNet(resnet.ResNet):
    """Image (B, C, H, W) -> outputs of `layer1` to `layer4`. Key names and dilation scheme are torchvision's.

    Dilation works for the two-convolution blocks of ResNet-18 and -34 too, where torchvision has none.

    Args:
        name: a key of `BLOCKS`.
        output_stride: stride of `layer4`.
        in_channels: channels of the image.
        multi_grid: the authors' dilation scheme of DeepLab in place of torchvision's: every unit that lost
            its stride is spread too, and `layer4`'s units by these factors more ([1, 2, 4] in DeepLabV3's
            paper). The weights are the same, the features are not.

    Raises:
        ConfigError: `multi_grid` has not one factor for each unit of `layer4`.
    """

    aux_feature = 2
    """Position of the feature that an auxiliary head reads: `layer3`."""

    def __init__(
        self,
        name: str,
        *,
        output_stride: OutputStride = 32,
        in_channels: int = 3,
        multi_grid: list[int] | None = None,
    ) -> None:
        block, counts = BLOCKS[name]
        super().__init__(block, counts)
        del self.avgpool, self.fc
        self.name = name
        self.out_channels = [width * block.expansion for width in (64, 128, 256, 512)]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        units = [unit for stage in stages for unit in stage]
        limit_stride(units, stride=4, output_stride=output_stride, dilate_strided=multi_grid is not None)
        if multi_grid is not None:
            self._apply_grid(multi_grid, 32 // output_stride)

    def _apply_grid(self, multi_grid: list[int], rate: int) -> None:
        if len(multi_grid) != len(self.layer4):
            raise ConfigError(
                f"{len(multi_grid)} factors in multi_grid, {len(self.layer4)} units in layer4 of {self.name}",
                where=f"model.multi_grid={multi_grid}",
                expected="one factor per unit, or null for torchvision's dilation",
            )
        for unit, factor in zip(self.layer4, multi_grid, strict=True):
            for conv in (module for module in unit.modules() if isinstance(module, nn.Conv2d)):
                spread(conv, rate * factor)

    def forward(self, image: Tensor) -> list[Tensor]:
        image = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            image = stage(image)
            features.append(image)
        return features

"""ResNet (He et al. 2015, arXiv 1512.03385) as torchvision builds it, and in the variants of the segmentation papers.

Without its classification head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from torch import Tensor, nn
from torchvision.models import resnet

from segtrain.errors import ConfigError, listed
from segtrain.models.backbones.dilation import OutputStride, Subsample, limit_stride, spread

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
RESNETS: tuple[str, ...] = get_args(ResNetName)

Unit: TypeAlias = resnet.BasicBlock | resnet.Bottleneck
BLOCKS: dict[str, tuple[type[Unit], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}
BOTTLENECKED = tuple(name for name, (unit, _) in BLOCKS.items() if unit is resnet.Bottleneck)

Stem = Literal["conv7", "deep"]
StridePosition = Literal["first", "last"]


@dataclass(frozen=True)
class ResNetVariant:
    """Where a ResNet differs from torchvision's. But for the stem, the weights are the same; the features are not.

    Attributes:
        stem: "conv7": one 7x7 convolution; "deep": three 3x3 of 64, 64 and 128 channels, the first with the
            stride, as in PSPNet's code (keys `conv1, bn1, ... conv3, bn3`). torchvision has no weights for it.
        dilation: which units are spread where a stride is taken away. "torchvision": the unit that lost it
            keeps the rate before; at output stride 8, `layer3` has 1, 2, 2, ... and `layer4` 2, 4, 4.
            "authors": that unit too, so 2, 2, 2, ... and 4, 4, 4, as the Caffe code of PSPNet and DeepLab.
        multi_grid: factors on the rate of `layer4`'s units, [1, 2, 4] in DeepLabV3; implies "authors".
        stride_in: convolution of a bottleneck that has the stride: "3x3", or "1x1" as He et al. released them
            and DeepLab v2 uses them.
        ceil_pool: the stem's pooling rounds odd sizes up, as Caffe does.
        stride_position: the stride is in the "first" unit of `layer2` to `layer4`, or in the "last" of
            `layer1` to `layer3`, as in the TensorFlow code of DeepLabV3; the latter implies "authors".
    """

    stem: Stem = "conv7"
    dilation: Literal["torchvision", "authors"] = "torchvision"
    multi_grid: list[int] | None = None
    stride_in: Literal["3x3", "1x1"] = "3x3"
    ceil_pool: bool = False
    stride_position: StridePosition = "first"

    @property
    def by_authors(self) -> bool:
        """Whether dilation follows the authors of DeepLab and PSPNet."""
        return self.dilation == "authors" or self.multi_grid is not None or self.stride_position == "last"

    @property
    def scheme(self) -> str:
        """What fixes strides and dilation, such as `authors, multi-grid 1-2-4, stride last`."""
        parts = ["authors" if self.by_authors else "torchvision"]
        if self.multi_grid is not None:
            parts.append("multi-grid " + "-".join(map(str, self.multi_grid)))
        if self.stride_in != "3x3":
            parts.append(f"stride in {self.stride_in}")
        if self.stride_position != "first":
            parts.append(f"stride {self.stride_position}")
        return ", ".join(parts)


TORCHVISION = ResNetVariant()


class ResNet(resnet.ResNet):
    """Image (B, C, H, W) -> four features, from `layer1` to `layer4`. Key names are torchvision's.

    A feature is what the layer puts out. Where the stride is in the last unit, that of `layer1` to `layer3`
    is what this unit reads, so that the strides are 4, 8, 16 and 32 in both cases, as far as `output_stride`
    allows. Dilation works for the two-convolution blocks of ResNet-18 and -34 too, where torchvision has none.

    Args:
        name: a key of `BLOCKS`.
        output_stride: stride of `layer4`.
        in_channels: channels of the image.
        low_level: what stands for the first feature: "block", as above, or "unit", what the second unit of
            `layer1` adds to its input, where DeepLabV3+ taps in the authors' code; for bottlenecks only.
        variant: where the network differs from torchvision's.

    Raises:
        ConfigError: `multi_grid` has not one factor for each unit of `layer4`, or a stride in the 1x1
            convolution for units that have none.
    """

    aux_feature = 2
    """Position of the feature that an auxiliary head reads: `layer3`."""

    def __init__(
        self,
        name: str,
        *,
        output_stride: OutputStride = 32,
        in_channels: int = 3,
        low_level: Literal["block", "unit"] = "block",
        variant: ResNetVariant = TORCHVISION,
    ) -> None:
        block, counts = BLOCKS[name]
        super().__init__(block, counts)
        del self.avgpool, self.fc
        _refuse_misfits(name, variant)
        # torchvision has no weights for the deep stem, so that one has not the name of those it has.
        self.name = name if variant.stem == "conv7" else f"{name}_deep_stem"
        self.low_level = low_level
        self.variant = variant
        self.scheme = variant.scheme
        self.out_channels = [width * block.expansion for width in (64, 128, 256, 512)]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self._build_stem(in_channels, block, counts[0])
        self._place_strides()
        units = [unit for stage in self.stages() for unit in stage]
        # A last unit keeps its rate: the authors spread what comes after it, and that is the whole next layer.
        dilate_strided = variant.by_authors and variant.stride_position == "first"
        limit_stride(units, stride=4, output_stride=output_stride, dilate_strided=dilate_strided)
        for unit, factor in zip(self.layer4, variant.multi_grid or (), strict=False):
            spread_unit(unit, 32 // output_stride * factor)

    def stages(self) -> tuple[nn.Sequential, ...]:
        return (self.layer1, self.layer2, self.layer3, self.layer4)

    def _build_stem(self, in_channels: int, block: type[Unit], units: int) -> None:
        self.maxpool.ceil_mode = self.variant.ceil_pool
        if self.variant.stem == "deep":
            self.conv1 = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=False)
            self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
            self.conv3, self.bn3 = nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
            self.inplanes = 128
            self.layer1 = self._make_layer(block, 64, units)
            for module in (self.conv1, self.conv2, self.conv3, self.layer1):
                module.apply(initialize)
        elif in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            initialize(self.conv1)

    def _place_strides(self) -> None:
        stages = self.stages()
        strided = [stage[0] for stage in stages[1:]]
        if self.variant.stride_position == "last":
            for unit in strided:
                _set_stride(unit, 1, self.variant)
            strided = [stage[-1] for stage in stages[:-1]]
        for unit in strided:
            _set_stride(unit, 2, self.variant)

    def _stem(self, image: Tensor) -> Tensor:
        image = self.relu(self.bn1(self.conv1(image)))
        if self.variant.stem == "deep":
            image = self.relu(self.bn2(self.conv2(image)))
            image = self.relu(self.bn3(self.conv3(image)))
        pooled: Tensor = self.maxpool(image)
        return pooled

    def forward(self, image: Tensor) -> list[Tensor]:
        image = self._stem(image)
        features = []
        for stage in self.stages():
            if stage is self.layer1 and self.low_level == "unit":
                first, second, third = stage
                image = first(image)
                feature = residual(second, image)
                image = third(second.relu(image + feature))
            elif stage is not self.layer4 and self.variant.stride_position == "last":
                *units, last = stage
                for unit in units:
                    image = unit(image)
                feature, image = image, last(image)
            else:
                feature = image = stage(image)
            features.append(feature)
        return features


def residual(unit: Any, image: Tensor) -> Tensor:
    """What a bottleneck adds to its input: after the last normalization, before the sum and its ReLU."""
    image = unit.relu(unit.bn1(unit.conv1(image)))
    image = unit.relu(unit.bn2(unit.conv2(image)))
    branch: Tensor = unit.bn3(unit.conv3(image))
    return branch


def spread_unit(unit: nn.Module, rate: int) -> None:
    """Dilates the 3x3 convolutions of a unit."""
    for conv in (module for module in unit.modules() if isinstance(module, nn.Conv2d)):
        spread(conv, rate)


def initialize(module: nn.Module) -> None:
    """A convolution as torchvision's ResNets start it; nothing for other modules."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _set_stride(unit: nn.Module, stride: int, variant: ResNetVariant) -> None:
    """Gives a unit its stride, in the convolution that shall have it and in the shortcut."""
    unit = cast(Unit, unit)
    in_conv1 = isinstance(unit, resnet.BasicBlock) or variant.stride_in == "1x1"
    unit.conv1.stride = (stride, stride) if in_conv1 else (1, 1)
    unit.conv2.stride = (1, 1) if in_conv1 else (stride, stride)
    unit.stride = stride
    if unit.downsample is not None:
        unit.downsample[0].stride = (stride, stride)
    elif stride > 1:
        unit.downsample = Subsample(stride)


def _refuse_misfits(name: str, variant: ResNetVariant) -> None:
    units = BLOCKS[name][1][-1]
    if variant.multi_grid is not None and len(variant.multi_grid) != units:
        raise ConfigError(
            f"{len(variant.multi_grid)} factors in multi_grid, {units} units in layer4 of {name}",
            where=f"model.multi_grid={variant.multi_grid}",
            expected="one factor per unit, or null for torchvision's dilation",
            fix="model.multi_grid=null",
        )
    if variant.stride_in == "1x1" and name not in BOTTLENECKED:
        raise ConfigError(
            f"the units of {name} have no 1x1 convolution for the stride",
            where=f"model.backbone={name}",
            expected=f"a ResNet of bottlenecks: {listed(BOTTLENECKED)}",
            fix="model.backbone=resnet50",
        )

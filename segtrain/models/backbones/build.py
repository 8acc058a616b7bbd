"""From a backbone's name to the network."""

from __future__ import annotations

from segtrain.errors import ConfigError, closest, listed
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.mobilenet import LowLevel, MobileNetV2, MobileNetV3Large
from segtrain.models.backbones.resnet import RESNETS, ResNet

Backbone = ResNet | MobileNetV2 | MobileNetV3Large
"""An image (B, C, H, W) in, a list of features out, shallow to deep.

`out_channels` and `strides` have one entry per feature, `aux_feature` is the position of the one for an
auxiliary head, `name` is torchvision's name of the classification network whose weights fit.
"""

BACKBONES = (*RESNETS, MobileNetV2.name, MobileNetV3Large.name)


def build_backbone(
    name: str,
    output_stride: OutputStride = 32,
    in_channels: int = 3,
    *,
    low_level: LowLevel = "block",
    multi_grid: list[int] | None = None,
) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of `BACKBONES`.
        output_stride: stride of the deepest feature, kept small by dilation.
        in_channels: channels of the image.
        low_level: "expansion" makes MobileNetV2's first feature the 144-channel one.
        multi_grid: for ResNets, the dilation of `layer4`'s units in the authors' scheme; None: torchvision's
            scheme.

    Raises:
        ConfigError: no such backbone, or one for which `low_level` or `multi_grid` has no meaning.
    """
    if name not in BACKBONES:
        near = closest(name, BACKBONES)
        raise ConfigError(
            f"there is no backbone '{name}'",
            where=f"model.backbone={name}",
            expected=f"one of {listed(BACKBONES)}",
            fix=f"did you mean model.backbone={near}?" if near else None,
        )
    if name in RESNETS:
        _refuse(name, "low_level", low_level, "block")
        return ResNet(name, output_stride=output_stride, in_channels=in_channels, multi_grid=multi_grid)
    _refuse(name, "multi_grid", multi_grid, None)
    if name == MobileNetV2.name:
        return MobileNetV2(output_stride=output_stride, in_channels=in_channels, low_level=low_level)
    _refuse(name, "low_level", low_level, "block")
    return MobileNetV3Large(output_stride=output_stride, in_channels=in_channels)


def _refuse(backbone: str, key: str, value: object, neutral: object) -> None:
    """An argument that a backbone cannot follow must not be dropped in silence."""
    if value != neutral:
        raise ConfigError(
            f"{key} has no meaning for the backbone {backbone}",
            where=f"model.{key}={value}",
            expected=f"model.{key}={'null' if neutral is None else neutral}",
        )

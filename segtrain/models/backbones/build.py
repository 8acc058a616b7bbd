"""From a backbone's name to the network."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal, get_args

from segtrain.errors import ConfigError, closest, listed
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.mobilenet import LastChannels, MobileNetV2, MobileNetV3Large
from segtrain.models.backbones.resnet import RESNETS, TORCHVISION, ResNet, ResNetName, ResNetVariant
from segtrain.models.backbones.timm_features import PREFIX, TimmFeatures, TimmName
from segtrain.models.backbones.vgg import VGG16, VGGName
from segtrain.models.backbones.xception import Xception65

Backbone = ResNet | MobileNetV2 | MobileNetV3Large | VGG16 | Xception65 | TimmFeatures
"""An image (B, C, H, W) in, a list of features out, shallow to deep.

`out_channels` and `strides` have one entry per feature, `aux_feature` is the position of the one for an
auxiliary head, `name` is torchvision's name of the classification network whose weights fit.
"""

BackboneName = Literal[ResNetName, "mobilenet_v2", "mobilenet_v3_large", "xception65", VGGName] | TimmName
"""What a network that takes any backbone says in its signature."""
BACKBONES = (*RESNETS, MobileNetV2.name, MobileNetV3Large.name, Xception65.name, "vgg16", "vgg16_bn")
"""All but those of timm."""

LowLevel = Literal["block", "unit", "expansion"]
"""Where the first feature is taken: at a stage's output, or inside a unit of ResNets or of MobileNetV2."""
TAPS = {"mobilenet_v2": "expansion", "resnet50": "unit", "resnet101": "unit", "resnet152": "unit"}
"""The inner place of those that have one."""


def build_backbone(
    name: str,
    output_stride: OutputStride = 32,
    in_channels: int = 3,
    *,
    low_level: LowLevel = "block",
    last_channels: LastChannels = 1280,
    resnet: ResNetVariant = TORCHVISION,
) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of `BACKBONES`, or `timm/NAME` for one of the timm library.
        output_stride: stride of the deepest feature, kept small by dilation.
        in_channels: channels of the image.
        low_level: "unit" makes the first feature of a ResNet of bottlenecks what the second unit of `layer1`
            adds to its input; "expansion" makes MobileNetV2's the 144-channel one.
        last_channels: 320 leaves out MobileNetV2's final 1x1 convolution.
        resnet: where a ResNet differs from torchvision's.

    Raises:
        ConfigError: no such backbone, or one for which `low_level`, `last_channels` or a part of `resnet` has no
            meaning.
    """
    if name not in BACKBONES and not name.startswith(PREFIX):
        near = closest(name, BACKBONES)
        raise ConfigError(
            f"there is no backbone '{name}'",
            where=f"model.backbone={name}",
            expected=f"one of {listed(BACKBONES, len(BACKBONES))}, or timm/NAME",
            fix=f"did you mean model.backbone={near}?" if near else None,
        )
    if name not in RESNETS:
        for part in fields(resnet):
            _refuse(name, part.name, getattr(resnet, part.name), part.default)
    if name != MobileNetV2.name:
        _refuse(name, "last_channels", last_channels, 1280)
    if low_level != TAPS.get(name):
        _refuse(name, "low_level", low_level, "block")
    if name in RESNETS:
        tap: Literal["block", "unit"] = "unit" if low_level == "unit" else "block"
        return ResNet(name, output_stride=output_stride, in_channels=in_channels, low_level=tap, variant=resnet)
    if name == MobileNetV2.name:
        return MobileNetV2(
            output_stride=output_stride,
            in_channels=in_channels,
            low_level="expansion" if low_level == "expansion" else "block",
            last_channels=last_channels,
        )
    if name in get_args(VGGName):
        # Sizes are rounded up as in the other backbones, so that the smallest image has features too.
        batch_norm = name == "vgg16_bn"
        return VGG16(batch_norm=batch_norm, output_stride=output_stride, in_channels=in_channels, ceil_mode=True)
    if name.startswith(PREFIX):
        return TimmFeatures(name, output_stride=output_stride, in_channels=in_channels)
    plain = Xception65 if name == Xception65.name else MobileNetV3Large
    return plain(output_stride=output_stride, in_channels=in_channels)


def _refuse(backbone: str, key: str, value: object, neutral: object) -> None:
    """An argument that a backbone cannot follow must not be dropped in silence."""
    if value != neutral:
        raise ConfigError(
            f"{key} has no meaning for the backbone {backbone}",
            where=f"model.{key}={value}",
            expected=f"model.{key}={'null' if neutral is None else neutral}",
            fix=f"set model.{key}={'null' if neutral is None else neutral}, or a backbone that has it: "
            + (
                "mobilenet_v2"
                if key == "last_channels"
                else "a ResNet, or mobilenet_v2"
                if key == "low_level"
                else "a ResNet"
            ),
        )

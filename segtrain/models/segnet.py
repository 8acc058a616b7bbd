"""SegNet (Badrinarayanan et al. 2015, arXiv 1511.00561): an encoder that remembers where each maximum was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.models.backbones.vgg import VGG16
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import NumClasses, PositiveInt

DECODER = ((512, 512, 512, 512), (512, 512, 512, 256), (256, 256, 256, 128), (128, 128, 64), (64, 64))
"""Channels into and out of the convolutions after each unpooling: the encoder's, read backwards."""


class SegNet(SegmentationModel):
    """VGG-16's thirteen convolutions, and a decoder that mirrors them (figure 2). Logits have the image's size.

    Every convolution has a bias, a batch normalization and a ReLU. The five 2x2 poolings keep the position of each
    maximum; the decoder puts every value back there, leaves zeros elsewhere, and convolves. A last 3x3 convolution
    gives the classes. Poolings round up and unpooling restores the very size before, as in the authors' Caffe: 360x480
    becomes 180x240, 90x120, 45x60, 23x30, 12x15 and goes the same way back. So any size works. Convolutions start as He
    et al. 2015 (arXiv 1502.01852) have it, by their inputs, shifts of the normalizations at 0.001.

    With 11, 12 and 21 classes it has 29,449,355, 29,449,932 and 29,455,125 parameters. Ports that drop the biases or
    the mirrored last block (64 -> 64) have fewer; ports that round down shift odd sizes.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the image.
    """

    imagenet_name = "vgg16_bn"
    """torchvision's classification network whose convolutions are the encoder's."""

    def __init__(self, *, num_classes: NumClasses, in_channels: PositiveInt = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.backbone = VGG16(batch_norm=True, in_channels=in_channels, ceil_mode=True)
        self.decoder = nn.ModuleList(_convolutions(channels) for channels in DECODER)
        self.classifier = nn.Conv2d(64, num_classes, 3, padding=1)
        self.apply(_initialize)

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's vgg16_bn state_dict -> the encoder's keys, without the classifier."""
        return {
            f"backbone.{key.removeprefix('features.')}" if key.startswith("features.") else key: value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        poolings: list[tuple[Tensor, torch.Size]] = []
        for layer in self.backbone:
            if isinstance(layer, nn.MaxPool2d):
                before = image.shape[-2:]
                image, position = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
                poolings.append((position, before))
            else:
                image = layer(image)
        for convolutions in self.decoder:
            image = convolutions(unpool(image, *poolings.pop()))
        return {"out": self.classifier(image)}


def unpool(image: Tensor, position: Tensor, size: Iterable[int]) -> Tensor:
    """Puts pooled values back to where 2x2 pooling found them, zeros elsewhere: (B, C, h, w) -> (B, C, *size).

    The same as `F.max_unpool2d`, which has no deterministic kernel on CUDA. Here every pixel of the finer grid asks
    whether it is the one that its pooled value came from, and nothing is scattered.

    Args:
        image: what to put back.
        position: row * W + column of each maximum, from `max_pool2d(..., 2, ceil_mode=True, return_indices=True)`.
        size: (H, W) before the pooling.
    """
    height, width = size
    batch, channels, rows, columns = image.shape
    row = torch.arange(2 * rows, device=image.device).view(rows, 2, 1, 1)
    column = torch.arange(2 * columns, device=image.device).view(columns, 2)
    # Axes: pooled row, row in the window, pooled column, column in the window.
    here = position[:, :, :, None, :, None] == row * width + column
    windows = torch.where(here, image[:, :, :, None, :, None], 0)
    finer = windows.reshape(batch, channels, 2 * rows, 2 * columns)
    # Not a slice: torch.export would then fix which sizes are odd.
    return F.pad(finer, (0, width - 2 * columns, 0, height - 2 * rows))


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, module.bias))
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.constant_(module.bias, 0.001)

"""Fully convolutional networks (Long et al. 2015, arXiv 1411.4038)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.models.backboned import BackboneModel
from segtrain.models.backbones.build import BackboneName, build_backbone
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.vgg import VGG16, convolutionalize
from segtrain.models.layers import FCNHead
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import Fraction, NumClasses, PositiveInt

CROPS = {"upscore": 19, "score_pool4": 5, "upscore16": 27, "score_pool3": 9, "upscore8": 31}
"""Rows and columns that the published networks cut off at the top and left of a layer's output.

Padding by 100 and fc6's unpadded kernel shift each grid by that much against the one it is laid upon.
"""


class BilinearUpsampling(nn.ConvTranspose2d):
    """A transposed convolution of twice the stride's width that starts as bilinear interpolation, class by class.

    Each class starts by reading itself alone, and the kernel is dense, as in the authors' initialization. Between
    pixels of the input it interpolates; outside them zeros take part.

    Args:
        channels: of input and output.
        factor: the stride.
        padded: cut half a stride off every side, so that n pixels become n * factor; else (n + 1) * factor.
        learn: whether the kernel is trained.
    """

    def __init__(self, channels: int, factor: int, *, padded: bool, learn: bool) -> None:
        super().__init__(
            channels, channels, 2 * factor, stride=factor, padding=factor // 2 if padded else 0, bias=False
        )
        self.weight.requires_grad_(learn)

    def reset_parameters(self) -> None:
        factor = self.stride[0]
        row = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        with torch.no_grad():
            self.weight.zero_()
            for index in range(self.in_channels):
                self.weight[index, index] = torch.outer(row, row)


class FCN(SegmentationModel):
    """FCN-32s, FCN-16s and FCN-8s on VGG-16 (section 4), as published in Caffe.

    VGG-16's fully connected layers become convolutions, `fc6` with a 7x7 and `fc7` with a 1x1 kernel; `score_fr` gives
    each coarse pixel a score per class, and a transposed convolution of kernel 64 and stride 32 brings the scores to
    the size of the image. The finer networks double the coarse scores, add those of `pool4` (and then of `pool3`) and
    leave a factor of 16 (8) to the last step. Layers have their Caffe names. Logits have the image's size, which may
    be any.

    The first convolution is padded by 100, so that a single pixel is enough for fc6, and poolings round up. An image
    of 500x500 has a pool5 of 22x22 and an fc7 of 16x16; the last scores of FCN-8s are 568x568, cut to 500x500 from row
    and column 31 on. With 21 classes FCN-32s, 16s and 8s have 136,152,917, 134,815,994 and 134,489,759 parameters;
    without the upsampling kernels 134,346,581, 134,357,354 and 134,362,751. Those kernels are bilinear and fixed, as
    in the published networks (the paper says that they can be learned). Score layers start at zero.

    Many ports pad by 1 instead, here `padding="modern"`: fc6 pads by 3, and all grids begin at the image's corner. The
    parameters are the same and the work is less, but the logits differ. In the upsampling, zeros beyond the border
    draw all scores of the outermost pixels (16 in FCN-32s) towards zero.

    Args:
        num_classes: channels of the output.
        stride: of the finest scores: 32, 16 (with pool4) or 8 (with pool4 and pool3).
        in_channels: channels of the image.
        at_once: scale pool4 by 0.01 and pool3 by 0.0001 before they are scored, as published for training all at
            once. Without it, 16s is meant to start from trained weights of 32s, and 8s from those of 16s.
        padding: "paper" or "modern", see above.
        fc_channels: width of fc6 and fc7; fewer than VGG-16's 4096 load every n-th of its channels.
        dropout: after fc6 and after fc7.
        learn_upsampling: train the upsampling kernels too, from their bilinear start.

    Raises:
        ConfigError: `at_once` at stride 32, where there is nothing to scale.
    """

    imagenet_name = "vgg16"
    """torchvision's classification network whose weights `from_classifier` takes."""
    staged_layers = ("score_pool4", "score_pool3", "upscore", "upscore2", "upscore16", "upscore_pool4", "upscore8")
    """Layers in which FCNs of different strides differ: one network's weights for the rest fit the other."""

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        stride: Literal[32, 16, 8] = 8,
        in_channels: PositiveInt = 3,
        at_once: bool = False,
        padding: Literal["paper", "modern"] = "paper",
        fc_channels: PositiveInt = 4096,
        dropout: Fraction = 0.5,
        learn_upsampling: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        if at_once and stride == 32:
            raise ConfigError(
                "FCN-32s has no skips that could be scaled",
                where="model.at_once=true, model.stride=32",
                expected="model.at_once=false, or a finer stride",
                fix="set model.at_once=false, or choose model=fcn8s_atonce",
            )
        paper = padding == "paper"
        self.output_stride = stride
        self.fc_channels = fc_channels
        self.crops = CROPS if paper else None
        self.at_once = at_once
        self.backbone = VGG16(in_channels=in_channels, first_padding=100 if paper else 1, ceil_mode=True)
        self.fc6 = nn.Conv2d(512, fc_channels, 7, padding=0 if paper else 3)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.score_fr = nn.Conv2d(fc_channels, num_classes, 1)
        options = {"padded": not paper, "learn": learn_upsampling}
        if stride == 32:
            self.upscore = BilinearUpsampling(num_classes, 32, **options)
        else:
            self.upscore2 = BilinearUpsampling(num_classes, 2, **options)
            self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        if stride == 16:
            self.upscore16 = BilinearUpsampling(num_classes, 16, **options)
        if stride == 8:
            self.upscore_pool4 = BilinearUpsampling(num_classes, 2, **options)
            self.score_pool3 = nn.Conv2d(256, num_classes, 1)
            self.upscore8 = BilinearUpsampling(num_classes, 8, **options)
        self.class_layers = tuple(name for name, _ in self.named_children() if "score" in name)
        self._initialize()

    def _initialize(self) -> None:
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                if name.startswith("score"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's vgg16 state_dict -> this network's keys: `backbone`, and `fc6` and `fc7` where it has them.

        The last layer is dropped. With fewer than 4096 `fc_channels`, every n-th channel is taken.

        Raises:
            ConfigError: 4096 is no multiple of `fc_channels`.
            CheckpointError: a layer has not VGG-16's shape.
        """
        return convolutionalize(state, features="backbone.", head="", channels=self.fc_channels)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        _, pool3, pool4, pool5 = self.backbone(image)
        hidden = self.dropout(F.relu(self.fc6(pool5)))
        score = self.score_fr(self.dropout(F.relu(self.fc7(hidden))))
        if self.output_stride == 32:
            return {"out": self._cut("upscore", self.upscore(score), image)}
        if self.at_once:
            # Poolings are far larger than fc7; unscaled, their scores would drown its own at the start.
            pool4, pool3 = pool4 * 0.01, pool3 * 0.0001
        score = self._sum("score_pool4", self.upscore2(score), self.score_pool4(pool4))
        if self.output_stride == 16:
            return {"out": self._cut("upscore16", self.upscore16(score), image)}
        score = self._sum("score_pool3", self.upscore_pool4(score), self.score_pool3(pool3))
        return {"out": self._cut("upscore8", self.upscore8(score), image)}

    def _sum(self, layer: str, score: Tensor, skip: Tensor) -> Tensor:
        """Doubled scores and a skip's scores where both lie: padding by 100 leaves more of the skip, by 1 less."""
        if self.crops is None:
            return self._cut(layer, score, skip) + skip
        return score + self._cut(layer, skip, score)

    def _cut(self, layer: str, score: Tensor, like: Tensor) -> Tensor:
        """The part of `score` that lies on `like`, of its height and width."""
        offset = 0 if self.crops is None else self.crops[layer]
        below, right = (like.shape[axis] + offset - score.shape[axis] for axis in (-2, -1))
        # Not a slice: torch.export would then fix which sizes leave nothing to cut.
        return F.pad(score, (-offset, right, -offset, below))


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
        backbone: BackboneName = "resnet50",
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

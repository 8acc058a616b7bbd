"""DeepLab v2 (Chen et al. 2017, arXiv 1606.00915)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from annotated_types import Interval, Len
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.models.backbones.dilation import OutputStride
from segtrain.models.backbones.resnet import ResNet, ResNetVariant
from segtrain.models.backbones.vgg import VGG16, convolutionalize
from segtrain.models.multiscale import largest, rescale
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import Fraction, NumClasses, PositiveInt

RATES = [6, 12, 18, 24]
"""ASPP-L, the pyramid of the paper's best networks; ASPP-S has 2, 4, 8, 12."""
SCALES = [0.5, 0.75]
FC_CHANNELS = 1024


class VGGBranches(nn.Module):
    """VGG-16 and, for each rate, its two hidden layers: fc6 as a dilated 3x3 convolution, fc7 as a 1x1 (figure 7b).

    Image (B, C, H, W) -> one feature (B, 1024, h, w) per rate, all of one stride. Poolings are 3x3 and round
    up; there is no average pooling after them, which DeepLab v1 has.
    """

    aux_feature = 0

    def __init__(self, rates: list[int], *, output_stride: OutputStride, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.features = VGG16(output_stride=output_stride, in_channels=in_channels, pool_kernel=3, ceil_mode=True)
        width = self.features.out_channels[-1]
        self.fc6 = nn.ModuleList(nn.Conv2d(width, FC_CHANNELS, 3, padding=rate, dilation=rate) for rate in rates)
        self.fc7 = nn.ModuleList(nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1) for _ in rates)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.name = self.features.name
        self.out_channels = [FC_CHANNELS] * len(rates)
        self.strides = [output_stride] * len(rates)
        for conv in (*self.fc6, *self.fc7):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        feature = self.features(image)[-1]
        branches = []
        for fc6, fc7 in zip(self.fc6, self.fc7, strict=True):
            hidden = self.dropout(self.relu(fc6(feature)))
            branches.append(self.dropout(self.relu(fc7(hidden))))
        return branches


class DeepLabV2(SegmentationModel):
    """A dilated network and one classifier per rate, summed (ASPP, section 3.2). Logits at stride 8.

    On a ResNet, four 3x3 convolutions with biases at rates 6, 12, 18 and 24 go straight to the classes
    (figure 4); the stride is in the 1x1 convolution, the stem's pooling rounds up, every unit of `layer3` has
    rate 2 and of `layer4` rate 4. On VGG-16 each branch has its own fc6, fc7 and fc8 (figure 7b). 44,048,532
    parameters on ResNet-101 and 37,877,652 on VGG-16 with 21 classes; 321x321, the paper's crop, gives 41x41.

    Everything but the layers that put out classes is in `backbone`, so that `optimizer.head_lr_mult=10` is the
    paper's ten-fold rate for the last layers. torchvision's ImageNet weights load; its ResNets
    were trained with the stride in the 3x3 convolution, of which only `layer2` notices anything here.

    With `msc` (section 4.1.2) the network also reads the image at smaller scales, with the same weights, and
    the logits are the largest at each pixel. In training, each scale's own logits are put out besides, for a
    loss on each. `logits` remains one scale, `native` and `forward` have them all.

    Args:
        num_classes: channels of the output.
        backbone: resnet101 and vgg16 in the paper.
        output_stride: 8 in the paper.
        in_channels: channels of the image.
        atrous_rates: dilation of each branch.
        dropout: after fc6 and fc7 of VGG-16; None: 0.5 as in the paper. A ResNet has none.
        msc: read the image at several scales, about twice the time and memory.
        msc_scales: the scales besides 1, as fractions of the image's sides, in [0.1, 4].
        align_corners: how logits and scaled images are resized; true in the authors' Caffe code, false in the
            PyTorch port that is most in use.

    Raises:
        ConfigError: scales that agree to a hundredth, or a dropout for a ResNet.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        backbone: Literal["resnet101", "resnet50", "vgg16"] = "resnet101",
        output_stride: OutputStride = 8,
        in_channels: PositiveInt = 3,
        atrous_rates: Annotated[list[PositiveInt], Len(1)] = RATES,
        dropout: Fraction | None = None,
        msc: bool = False,
        msc_scales: list[Annotated[float, Interval(ge=0.1, le=4)]] = SCALES,
        align_corners: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, align_corners=align_corners)
        self.output_stride = output_stride
        self.scales = _named([1.0, *msc_scales]) if msc else {}
        self.rates = atrous_rates
        self.backbone: VGGBranches | ResNet
        if backbone == "vgg16":
            self.backbone = VGGBranches(
                atrous_rates,
                output_stride=output_stride,
                in_channels=in_channels,
                dropout=0.5 if dropout is None else dropout,
            )
            last = [nn.Conv2d(FC_CHANNELS, num_classes, 1) for _ in atrous_rates]
        else:
            _refuse_dropout(backbone, dropout)
            variant = ResNetVariant(dilation="authors", stride_in="1x1", ceil_pool=True)
            self.backbone = ResNet(backbone, output_stride=output_stride, in_channels=in_channels, variant=variant)
            channels = self.backbone.out_channels[-1]
            last = [nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate) for rate in atrous_rates]
        for conv in last:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.classifier = nn.ModuleList(last)
        self.class_layers = tuple(f"classifier.{index}" for index in range(len(last)))

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        features = self.backbone(image)
        if isinstance(self.backbone, ResNet):
            features = features[-1:] * len(self.classifier)
        first, *others = (conv(feature) for conv, feature in zip(self.classifier, features, strict=True))
        return {"out": sum(others, first)}

    def native(self, image: Tensor) -> dict[str, Tensor]:
        """`logits`; with `msc` the largest of all scales, and in training each scale's own, as `scale_75`."""
        if not self.scales:
            return self.logits(image)
        scores = {}
        for name, scale in self.scales.items():
            scaled = image if scale == 1 else rescale(image, scale, self.align_corners)
            scores[name] = self.logits(scaled)["out"]
        fused = {"out": largest(scores.values(), self.align_corners)}
        return {**fused, **scores} if self.training else fused

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's VGG-16 -> the tensors of `backbone`: every branch starts from the same fc6 and fc7.

        fc6 is thinned out from 7x7 to 3x3 and both to every fourth channel, as the authors of DeepLab did.
        """
        converted = convolutionalize(
            state, features="backbone.features.", head="backbone.", channels=FC_CHANNELS, spacing=3
        )
        branched = {}
        for key, value in converted.items():
            layer, _, kind = key.rpartition(".")
            hidden = layer in ("backbone.fc6", "backbone.fc7")
            names = [f"{layer}.{index}.{kind}" for index in range(len(self.rates))] if hidden else [key]
            branched.update(dict.fromkeys(names, value))
        return branched


def _refuse_dropout(backbone: str, dropout: float | None) -> None:
    if dropout is not None:
        raise ConfigError(
            f"dropout has no meaning for the backbone {backbone}: there is nothing between it and the classes",
            where=f"model.dropout={dropout}",
            expected="model.dropout=null, or model.backbone=vgg16",
            fix="model.dropout=null",
        )


def _named(scales: list[float]) -> dict[str, float]:
    names = {f"scale_{round(100 * scale)}": scale for scale in scales}
    if len(names) < len(scales):
        raise ConfigError(
            "two scales are the same to a hundredth",
            where=f"model.msc_scales={scales[1:]}",
            expected="scales that differ, and differ from 1, which is always there",
            fix=f"model.msc_scales={SCALES}",
        )
    return names

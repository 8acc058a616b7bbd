"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with padded convolutions and batch normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.models.segmentation import SegmentationModel
from segtrain.types import NumClasses, PositiveInt


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch normalization and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(SegmentationModel):
    """An encoder that halves the resolution `depth` times, a decoder that mirrors it, and skips between them.

    Unlike the paper's, it pads its convolutions, so that the output has the image's size, and normalizes
    after each. Channels are joined in the order [skip, upsampled]. Pooling rounds odd sizes up, and the last
    row or column that upsampling then has too many is cut off: every pixel keeps the parent it was pooled
    into, nothing is shifted, and any size works. Weights start as the paper says (section 3): N(0, 2/N), N
    incoming values per neuron.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the image.
        base_channels: width of the first level, doubled at each level; 64 in the paper.
        depth: number of poolings; 4 in the paper.
        bilinear: upsample by bilinear x2 and a 2x2 convolution instead of a 2x2 transposed convolution. Both
            halve the channels and have the same number of parameters. (The widespread variant that keeps 512
            channels at the bottom and upsamples without a convolution is smaller and is not this one.)
        bias: give the convolutions before a normalization a bias too, which is without effect on what can be
            learned.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: PositiveInt = 3,
        base_channels: PositiveInt = 64,
        depth: PositiveInt = 4,
        bilinear: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            DoubleConv(before, after, bias) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        upward = widths[-2::-1]
        self.up = nn.ModuleList(_upsampling(2 * width, width, bilinear) for width in upward)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width, bias) for width in upward)
        self.classifier = nn.Conv2d(base_channels, num_classes, 1)
        self.apply(_initialize)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        skips = [self.encoder[0](image)]
        for level in self.encoder[1:]:
            skips.append(level(self.pool(skips[-1])))
        image = skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            skip = skips.pop()
            image = level(torch.cat([skip, _cut(up(image), skip)], dim=1))
        return {"out": self.classifier(image)}


class PaddedConv2x2(nn.Conv2d):
    """A 2x2 convolution that keeps the size: it sees each pixel and its neighbors to the right and below."""

    def forward(self, image: Tensor) -> Tensor:
        # Zeros, because replication padding has no deterministic backward pass on CUDA.
        return super().forward(F.pad(image, (0, 1, 0, 1)))


def _cut(image: Tensor, like: Tensor) -> Tensor:
    """`image` without the rows and columns, at the bottom and right, that `like` does not have."""
    surplus_x, surplus_y = (image.shape[axis] - like.shape[axis] for axis in (-1, -2))
    # Not a slice: torch.export would then fix which sizes are odd.
    return F.pad(image, (0, -surplus_x, 0, -surplus_y))


def _upsampling(in_channels: int, out_channels: int, bilinear: bool) -> nn.Module:
    if not bilinear:
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        PaddedConv2x2(in_channels, out_channels, 2),
    )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # A transposed convolution of stride 2 and size 2 feeds each output from one pixel, not from four.
        taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * module.in_channels)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

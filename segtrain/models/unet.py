"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597): with padded convolutions, and the paper's own."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.models.layers import mirror_window
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import Fraction, NumClasses, PositiveInt


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with ReLU, and with batch normalization before it where asked for."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool, norm: bool = True, padding: int = 1) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=padding, bias=bias))
            if norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
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
            learned; without normalization they always have one.
        norm: batch normalization after each 3x3 convolution; the paper has none.
        dropout: at the end of the contracting path (section 3.1, which names no rate).
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
        norm: bool = True,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        widths = [base_channels * 2**level for level in range(depth + 1)]
        bias = bias or not norm
        self.encoder = nn.ModuleList(
            DoubleConv(before, after, bias=bias, norm=norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        upward = widths[-2::-1]
        self.up = nn.ModuleList(_upsampling(2 * width, width, bilinear) for width in upward)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width, bias=bias, norm=norm) for width in upward)
        self.classifier = nn.Conv2d(base_channels, num_classes, 1)
        self.apply(_initialize)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        skips = [self.encoder[0](image)]
        for level in self.encoder[1:]:
            skips.append(level(self.pool(skips[-1])))
        image = self.dropout(skips.pop())
        for up, level in zip(self.up, self.decoder, strict=True):
            skip = skips.pop()
            image = level(torch.cat([skip, _cut(up(image), skip)], dim=1))
        return {"out": self.classifier(image)}


class UNetValid(SegmentationModel):
    """The U-Net of the paper: convolutions without padding, so that each pixel is judged by real surroundings alone.

    Each of `depth` + 1 levels has two valid 3x3 convolutions with ReLU, without normalization; 2x2 max-pooling
    leads down, a 2x2 transposed convolution that halves the channels leads up, and the center of the level's
    own features is joined to it (figure 1). At depth 4 that is 64 to 1024 channels and 23 convolutions:
    31,030,658 parameters for one channel and two classes. An input of 572 pixels gives an output of 388; 16k + 60
    from 188 on are valid, each loses 92 pixels per side, and skips are cropped by 4, 16, 40 and 88.

    `logits` is that network and takes valid sizes only. `forward` gives an image of any size an output of that
    size: the missing surroundings are the image mirrored at its border (section 2). Weights start as N(0, 2/N),
    N incoming values per neuron (section 3); biases, of which the paper says nothing, as 0.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the image; 1 in the paper.
        base_channels: width of the first level, doubled at each.
        depth: number of poolings.
        dropout: at the end of the contracting path; the paper names the place, the released network the rate.
        concat: order in which skip and upsampled features are joined, which the paper leaves open; null is
            skip_first, and up_first in the released network. It matters for weights from elsewhere only.
        release: the network that the authors released, as others have read it: ReLU after each transposed
            convolution, of which the last keeps 2 `base_channels`, and dropout after the last two levels, the
            upper one's skip included. 31,100,354 parameters.
        context: where the surroundings come from in training. mirror: as in evaluation, from mirroring each
            crop. crop: from the crop itself, whose outer `margin` pixels are not judged, as in the paper (tiles
            of 572, of which 388 are learned from); logits there are zeros, and the target must say 255.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: PositiveInt = 3,
        base_channels: PositiveInt = 64,
        depth: PositiveInt = 4,
        dropout: Fraction = 0.5,
        concat: Literal["skip_first", "up_first"] | None = None,
        release: bool = False,
        context: Literal["mirror", "crop"] = "mirror",
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.depth = depth
        self.up_first = release if concat is None else concat == "up_first"
        self.dropout_from = depth - 1 if release else depth
        self.context = context
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            DoubleConv(before, after, bias=True, norm=False, padding=0)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        upward = widths[-2::-1]
        kept = [*upward[:-1], 2 * base_channels if release else base_channels]
        self.up = nn.ModuleList(_up_convolution(2 * w, out, relu=release) for w, out in zip(upward, kept, strict=True))
        self.decoder = nn.ModuleList(
            DoubleConv(width + out, width, bias=True, norm=False, padding=0)
            for width, out in zip(upward, kept, strict=True)
        )
        self.classifier = nn.Conv2d(base_channels, num_classes, 1)
        self.apply(_initialize)

    @property
    def margin(self) -> int:
        """Pixels that `logits` loses on each side: 92 at depth 4."""
        return 6 * 2**self.depth - 4

    def valid_size(self, length: int) -> int:
        """The smallest valid input whose output has at least `length` pixels; 388 -> 572 at depth 4."""
        stride: int = 2**self.depth
        output = 4 - (4 - length) // stride * stride
        return output + 2 * self.margin

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, C, H, W) of valid size -> `{"out": (B, num_classes, H - 2 margin, W - 2 margin)}`.

        Raises:
            ConfigError: another size.
        """
        sides = image.shape[-2:]
        if any(self._valid_above(side) != side for side in sides):
            raise self._wrong_size(list(sides))
        return {"out": self._valid(image)}

    def native(self, image: Tensor) -> dict[str, Tensor]:
        """Logits at the image's size, which is the grid that a target fits."""
        if self.training and self.context == "crop":
            return {"out": F.pad(self.logits(image)["out"], [self.margin] * 4)}
        rows, columns = ((-self.margin, self.valid_size(side)) for side in image.shape[-2:])
        return {"out": _cut(self._valid(mirror_window(image, rows, columns)), image)}

    def _valid(self, image: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, level in enumerate(self.encoder):
            image = level(self.pool(image) if index else image)
            # Before the skip is taken: the released network drops in place.
            image = self.dropout(image) if index >= self.dropout_from else image
            skips.append(image)
        image = skips.pop()
        for index, (up, level) in enumerate(zip(self.up, self.decoder, strict=True)):
            surplus = 6 * 2 ** (index + 1) - 8  # 4, 16, 40, 88: what the levels below lost on each side
            parts = [F.pad(skips.pop(), [-surplus] * 4), up(image)]
            image = level(torch.cat(parts[::-1] if self.up_first else parts, dim=1))
        logits: Tensor = self.classifier(image)
        return logits

    def _valid_above(self, side: int) -> int:
        """The smallest valid input that has at least `side` pixels itself."""
        return self.valid_size(max(1, side - 2 * self.margin))

    def _wrong_size(self, sides: list[int]) -> ConfigError:
        stride, smallest = 2**self.depth, self.valid_size(1)
        above = [self._valid_above(side) for side in sides]
        near = [
            str(side) if side == up else f"{up - stride} or {up}" if up > smallest else str(up)
            for side, up in zip(sides, above, strict=True)
        ]
        return ConfigError(
            f"an image of {sides[0]}x{sides[1]} does not fit the valid convolutions of a U-Net of depth {self.depth}",
            where="UNetValid.logits, which trains on whole crops where model.context=crop",
            expected=f"sides of {stride}k + {smallest}, k from 0; here a height of {near[0]}, a width of {near[1]}",
            fix=f"set augment.crop_size=[{above[0]},{above[1]}], or model.context=mirror, which takes any size",
        )


def _up_convolution(in_channels: int, out_channels: int, *, relu: bool) -> nn.Module:
    up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return nn.Sequential(up, nn.ReLU(inplace=True)) if relu else up


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

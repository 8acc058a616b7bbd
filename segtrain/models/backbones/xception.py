"""Modified aligned Xception-65, the backbone of DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.models.backbones.dilation import OutputStride, spread

EPS = 1e-3
"""Of every batch normalization in the authors' network; PyTorch's default is 1e-5."""
MIDDLE = 16


class ConvBN(nn.Sequential):
    """A convolution without bias that keeps the size at stride 1, and its normalization: children `conv`, `bn`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)


class SeparableConv(nn.Module):
    """A 3x3 depthwise and a 1x1 pointwise convolution, each normalized; `activated`: each with a ReLU too."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
        self.bn_dw = nn.BatchNorm2d(in_channels, eps=EPS)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn_pw = nn.BatchNorm2d(out_channels, eps=EPS)

    def forward(self, image: Tensor) -> Tensor:
        image = self.bn_dw(self.conv_dw(image))
        if self.activated:
            image = F.relu(image, inplace=True)
        image = self.bn_pw(self.conv_pw(image))
        return F.relu(image, inplace=True) if self.activated else image


class XceptionBlock(nn.Module):
    """Three separable convolutions, the stride in the third, and a way around them.

    The way around is a 1x1 projection where the shape changes, nothing where `skip` is false, else the input itself.
    A ReLU stands before each separable convolution and none inside; with `activated` it is the other way round.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int, int],
        *,
        stride: int = 1,
        skip: bool = True,
        activated: bool = False,
    ) -> None:
        super().__init__()
        ins = (in_channels, *widths[:2])
        self.skip = skip
        self.activated = activated
        self.stack = nn.ModuleDict(
            {
                f"conv{i + 1}": SeparableConv(ins[i], widths[i], stride=stride if i == 2 else 1, activated=activated)
                for i in range(3)
            }
        )
        changed = stride > 1 or in_channels != widths[2]
        self.shortcut = ConvBN(in_channels, widths[2], 1, stride) if skip and changed else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its second convolution's: normalized, no ReLU yet, not strided yet."""
        # Out of place: the input goes around the stack, the second convolution's output is a feature.
        tap = self.stack["conv2"](self._activate(self.stack["conv1"](self._activate(image))))
        deep: Tensor = self.stack["conv3"](self._activate(tap))
        if self.skip:
            deep = deep + (image if self.shortcut is None else self.shortcut(image))
        return deep, tap

    def _activate(self, image: Tensor) -> Tensor:
        return image if self.activated else F.relu(image)


class Xception65(nn.Module):
    """Image (B, C, H, W) -> four features with 256, 728, 1024 and 2048 channels; 37,867,312 parameters.

    Sixty-five convolutions deep: a stem (3x3 to 32 channels at stride 2, 3x3 to 64), an entry flow of three blocks
    (128, 256, 728 channels, each halving the size), a middle flow of sixteen (728), and an exit flow of two
    (728-1024-1024, halving; 1536-1536-2048). All pooling is a stride in a separable convolution, so that dilation can
    take its place. At output stride 16 the first exit block has stride 1 and the second rate 2; at 8 the third entry
    block has stride 1, the middle flow and the first exit block rate 2, the second exit block rate 4.

    The first three features are the second separable convolutions of the strided blocks, after normalization and
    before the ReLU, each at the resolution before the stride: the authors' decoder reads the first one. A 513 x 513
    image gives 129, 65, 33 and, at output stride 16, 33 again.

    Key names are those of timm's `xception65`, whose features are these after a ReLU. Running statistics move at
    PyTorch's rate 0.1; the authors' decay 0.9997 (rate 0.0003) needs their very long training.

    Args:
        output_stride: stride of the last feature.
        in_channels: channels of the image.
    """

    name = "xception65"
    aux_feature = 2
    """Position of the feature that an auxiliary head reads: the first exit block's."""

    def __init__(self, *, output_stride: OutputStride = 32, in_channels: int = 3) -> None:
        super().__init__()
        self.out_channels = [256, 728, 1024, 2048]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self.stem = nn.ModuleList([ConvBN(in_channels, 32, 3, stride=2), ConvBN(32, 64, 3)])
        middle = (XceptionBlock(728, (728, 728, 728)) for _ in range(MIDDLE))
        self.blocks = nn.ModuleList(
            [
                XceptionBlock(64, (128, 128, 128), stride=2),
                XceptionBlock(128, (256, 256, 256), stride=2),
                XceptionBlock(256, (728, 728, 728), stride=2),
                *middle,
                XceptionBlock(728, (728, 1024, 1024), stride=2),
                XceptionBlock(1024, (1536, 1536, 2048), skip=False, activated=True),
            ]
        )
        self.taps = (1, 2, MIDDLE + 3)
        self._limit_stride(output_stride)

    def _limit_stride(self, output_stride: int) -> None:
        """As in the authors' code: a block that loses its stride keeps the rate before it, in all its kernels."""
        stride, rate = 2, 1
        for block in self.blocks:
            convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
            strided = any(conv.stride[0] > 1 for conv in convs)
            if strided and stride < output_stride:
                stride *= 2
                continue
            for conv in convs:
                conv.stride = (1, 1)
                spread(conv, rate)
            rate = 2 * rate if strided else rate

    def forward(self, image: Tensor) -> list[Tensor]:
        for layer in self.stem:
            image = F.relu(layer(image), inplace=True)
        features = []
        for index, block in enumerate(self.blocks):
            image, tap = block(image)
            if index in self.taps:
                features.append(tap)
        return [*features, image]

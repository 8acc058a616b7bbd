"""VGG-16 (Simonyan and Zisserman 2014, arXiv 1409.1556) as torchvision builds it, and its layers as convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from segtrain.errors import CheckpointError, ConfigError
from segtrain.models.backbones.dilation import OutputStride, spread

VGGName = Literal["vgg16", "vgg16_bn"]

FC_CHANNELS = 4096
"""Width of VGG-16's two hidden fully connected layers."""
FC_KERNELS = {
    "classifier.0": ("fc6", (FC_CHANNELS, 512, 7, 7)),
    "classifier.3": ("fc7", (FC_CHANNELS, FC_CHANNELS, 1, 1)),
}
"""torchvision's name of each -> its name in the papers, and the kernel that does the same on a 7x7 or a 1x1 grid."""


class VGG16(nn.Sequential):
    """torchvision's `features`: thirteen 3x3 convolutions with biases and ReLU in five blocks, each with a pooling.

    Image (B, C, H, W) -> the outputs of the last four poolings, with 128, 256, 512 and 512 channels; 14,714,688
    parameters, 8,448 more with batch normalization. Children have torchvision's indices, so that its ImageNet weights
    fit.

    Args:
        batch_norm: a batch normalization after each convolution, as in `vgg16_bn`.
        output_stride: stride of the last feature. A pooling beyond it keeps the grid (3x3, stride 1), and the
            convolutions after it are spread, as in DeepLab (Chen et al. 2014, arXiv 1412.7062, section 3.1).
        in_channels: channels of the image.
        first_padding: padding of the first convolution; 100 in FCN (Long et al. 2015, arXiv 1411.4038).
        pool_kernel: of the poolings that halve the grid: 2, or 3 (padded by 1) for DeepLab.
        ceil_mode: whether poolings round odd sizes up, as Caffe does; without it images of under 32 pixels
            shrink to nothing.
    """

    aux_feature = 2
    """Position of the feature that an auxiliary head reads: the fourth pooling's."""

    def __init__(
        self,
        *,
        batch_norm: bool = False,
        output_stride: OutputStride = 32,
        in_channels: int = 3,
        first_padding: int = 1,
        pool_kernel: Literal[2, 3] = 2,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(*make_layers(cfgs["D"], batch_norm=batch_norm))
        self.name: VGGName = "vgg16_bn" if batch_norm else "vgg16"
        self.out_channels = [128, 256, 512, 512]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self[0] = nn.Conv2d(in_channels, 64, 3, padding=first_padding)
        stride = rate = 1
        for index, layer in enumerate(self):
            if isinstance(layer, nn.Conv2d):
                _initialize(layer)
                if rate > 1:
                    spread(layer, rate)
            elif isinstance(layer, nn.MaxPool2d):
                if stride < output_stride:
                    stride *= 2
                    self[index] = nn.MaxPool2d(pool_kernel, 2, padding=pool_kernel // 3, ceil_mode=ceil_mode)
                else:
                    rate *= 2
                    self[index] = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:  # type: ignore[override]
        features = []
        for layer in self:
            image = layer(image)
            if isinstance(layer, nn.MaxPool2d):
                features.append(image)
        return features[1:]


def _initialize(conv: nn.Conv2d) -> None:
    """As torchvision starts them: with PyTorch's own start thirteen layers let the signal die out."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(cast(Tensor, conv.bias))


def convolutionalize(
    state: Mapping[str, Tensor], *, features: str, head: str, channels: int, spacing: int = 1
) -> dict[str, Tensor]:
    """torchvision's VGG-16 for classification -> the keys and shapes of a network that turned it into convolutions.

    The hidden layers `classifier.0` and `classifier.3` become `fc6` and `fc7`, the last one is dropped. Fewer
    channels than 4096 are every n-th of them. Other keys stay as they are, for the loader to refuse.

    Args:
        state: a state_dict with `features.*`, with or without `classifier.*`.
        features: prefix of the convolutions in the network, such as "backbone.".
        head: prefix of `fc6` and `fc7` in the network.
        channels: width of fc6 and fc7, a divisor of 4096.
        spacing: keep every n-th row and column of fc6's 7x7 kernel: 3 leaves 3x3.

    Raises:
        ConfigError: 4096 channels cannot be thinned out evenly to `channels`.
        CheckpointError: a hidden layer has not VGG-16's shape.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if layer in FC_KERNELS:
            name, shape = FC_KERNELS[layer]
            every = _thinning(channels)
            if kind == "weight":
                # fc7 reads what is left of fc6; fc6 reads all of the last feature.
                value = _kernel(key, value, shape)[:, :: every if name == "fc7" else 1, ::spacing, ::spacing]
            converted[f"{head}{name}.{kind}"] = value[::every]
        elif layer != "classifier.6":
            converted[features + key.removeprefix("features.") if key.startswith("features.") else key] = value
    return converted


def _thinning(channels: int) -> int:
    if FC_CHANNELS % channels:
        raise ConfigError(
            f"{channels} channels cannot be drawn evenly from VGG-16's {FC_CHANNELS}",
            where=f"model.fc_channels={channels}",
            expected=f"a divisor of {FC_CHANNELS}, such as 1024 or 4096, where VGG-16's weights are loaded",
            fix="set model.fc_channels=1024 or model.weights=none",
        )
    return FC_CHANNELS // channels


def _kernel(key: str, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A fully connected layer's matrix, which reads channels, rows, columns in this order, as a kernel."""
    rows, columns = shape[0], shape[1] * shape[2] * shape[3]
    if tuple(matrix.shape) != (rows, columns):
        raise CheckpointError(
            f"{key} has the shape {tuple(matrix.shape)}",
            expected=f"{(rows, columns)}, as in torchvision's vgg16",
            fix="set model.weights=imagenet, none, or the path of a vgg16 trained on ImageNet",
        )
    return matrix.reshape(shape)

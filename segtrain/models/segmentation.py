"""The contract that every semantic segmentation network of this package keeps."""

from __future__ import annotations

from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.models.layers import resize_logits


class SegmentationModel(nn.Module):
    """A network that gives each pixel one score per class.

    A subclass implements `logits`; `forward` brings its result to the size of the image. Any height and width
    work.

    Args:
        num_classes: channels of the output, background included, ignored label not.
        in_channels: channels of the image.
        align_corners: how logits are resized; as the original implementation of each network does it.
    """

    class_layers: tuple[str, ...] = ("classifier",)
    """Layers whose shape depends on `num_classes`; some may be absent (an auxiliary head that is off)."""
    output_stride: int = 1
    """Image pixels per pixel of the grid on which classes are told apart, before any upsampling to finer grids."""
    torchvision_form: str | None = None
    """The torchvision builder whose state_dict this network takes key for key, if there is one."""

    def __init__(self, *, num_classes: int, in_channels: int, align_corners: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.align_corners = align_corners

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, C, H, W) float -> `{"out": (B, num_classes, h, w)}` at the network's own stride.

        In training mode, a network with an auxiliary head adds `"aux"`, also at its own stride.
        """
        raise NotImplementedError(f"{type(self).__name__} must compute its logits")

    def native(self, image: Tensor) -> dict[str, Tensor]:
        """All that a loss at the network's own resolution reads: `logits`, or more of them for several scales."""
        return self.logits(image)

    def forward(self, image: Tensor, resize: bool = True) -> dict[str, Tensor]:
        """Image (B, C, H, W) float -> `{"out": (B, num_classes, H, W)[, "aux": same]}`: the image's size.

        With `resize=False` each stays at its own stride, for a loss that is computed there.
        """
        native = self.native(image)
        if not isinstance(native, dict):
            raise ConfigError(
                f"{type(self).__name__}.logits returns a {type(native).__name__}",
                where="model._target_",
                expected='{"out": logits (B, num_classes, h, w)}, and maybe "aux" alike',
                fix='return {"out": logits}',
            )
        if not resize:
            return native
        size = image.shape[-2:]
        return {name: resize_logits(value, size, self.align_corners) for name, value in native.items()}

"""The contract that every semantic segmentation network of this package keeps."""

from __future__ import annotations

from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.models.backbones.build import Backbone
from segtrain.models.layers import FCNHead, resize_logits


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


class BackboneModel(SegmentationModel):
    """A backbone, a head on its features, and on request an auxiliary head for training.

    Child names are torchvision's: `backbone`, `classifier`, `aux_classifier`. The auxiliary head (Zhao et al.
    2017, arXiv 1612.01105, section 3.3) reads a middle feature; its loss helps the backbone to train and it
    is then idle.
    """

    classifier: nn.Module

    def __init__(
        self, *, backbone: Backbone, num_classes: int, in_channels: int, aux: bool, align_corners: bool
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, align_corners=align_corners)
        self.backbone = backbone
        self.output_stride = backbone.strides[-1]
        channels = backbone.out_channels[backbone.aux_feature]
        self.aux_classifier = FCNHead(channels, num_classes) if aux else None

    def decode(self, features: list[Tensor]) -> Tensor:
        """The backbone's features, shallow to deep -> logits (B, num_classes, h, w)."""
        logits: Tensor = self.classifier(features[-1])
        return logits

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        features = self.backbone(image)
        logits = {"out": self.decode(features)}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features[self.backbone.aux_feature])
        return logits

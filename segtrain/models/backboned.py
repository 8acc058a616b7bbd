"""What networks on a backbone share. Apart from `segmentation`, because backbones import torchvision."""

from __future__ import annotations

from torch import Tensor, nn

from segtrain.models.backbones.build import Backbone
from segtrain.models.layers import FCNHead
from segtrain.models.segmentation import SegmentationModel


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

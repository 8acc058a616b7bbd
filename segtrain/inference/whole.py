"""The network sees the whole image at once."""

from __future__ import annotations

from torch import Tensor, nn

from segtrain.inference.base import ImageInference, Normalize
from segtrain.inference.outputs import outputs_of
from segtrain.models.segmentation import SegmentationModel


class WholeImage(ImageInference):
    """The network sees the whole image at once; arguments as for `ImageInference`."""

    def view(self, model: nn.Module, image: Tensor) -> Tensor:
        return outputs_of(model, image)["out"].float()

    def native(self, model: nn.Module, image: Tensor, normalize: Normalize) -> tuple[Tensor, bool] | None:
        """As for `ImageInference`: of one view, with a network that resizes as all networks of this package do."""
        ours = isinstance(model, SegmentationModel) and type(model).forward is SegmentationModel.forward
        if not (ours and self.plain()):
            return None
        return outputs_of(model, normalize(image), resize=False)["out"], bool(model.align_corners)

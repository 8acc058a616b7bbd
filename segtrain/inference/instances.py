"""From images to objects: how many, how sure, how large the image is that the network sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.instances import Detections
from segtrain.types import Fraction, PositiveInt

MASK_PIXELS_AT_ONCE = 64_000_000
"""Pixels of masks that are pasted as float32 before they become bytes: a quarter of a gibibyte."""


@dataclass
class Seen:
    """Images as a detector's parts take them.

    `images`: resized and padded into one batch; `features`: the backbone's, by level; `sizes`: height and width of each
    image before that; `targets`: moved with the images, where there are any.
    """

    images: Any
    features: dict[str, Tensor]
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]] | None


class InstanceInference:
    """Runs a detector of torchvision's form (`GeneralizedRCNN`) on images of any sizes.

    Args:
        score_threshold: detections below it are left out. 0.05 for scores, as COCO's AP wants; 0.5 to look at.
        nms_threshold: of two boxes of a class that overlap by more (IoU), the less likely one is left out.
        max_detections: per image, the likeliest.
        mask_threshold: pixels whose probability is above this belong to the object.
        min_size, max_size: the shorter side that images are resized to, and the longer side at most; None: as the
            network was built.
    """

    def __init__(
        self,
        *,
        score_threshold: Fraction = 0.05,
        nms_threshold: Fraction = 0.5,
        max_detections: PositiveInt = 100,
        mask_threshold: Fraction = 0.5,
        min_size: PositiveInt | None = None,
        max_size: PositiveInt | None = None,
    ) -> None:
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.mask_threshold = mask_threshold
        self.min_size = min_size
        self.max_size = max_size

    def prepare(self, model: Any) -> None:
        """Tells the detector how many objects to find."""
        heads = model.roi_heads
        heads.score_thresh, heads.nms_thresh = self.score_threshold, self.nms_threshold
        heads.detections_per_img = self.max_detections

    def check(self, model: nn.Module) -> None:
        """Raises a ConfigError for a network that finds no objects, or that normalizes images once more."""
        parts = ("transform", "backbone", "rpn", "roi_heads")
        if not all(hasattr(model, part) for part in parts):
            raise ConfigError(
                f"task=instance with {type(model).__name__}, which finds no objects",
                where="model",
                expected="a network of torchvision's GeneralizedRCNN",
                fix="model=maskrcnn; or task=semantic with data that have one class per pixel",
            )
        if any(model.transform.image_mean) or any(value != 1 for value in model.transform.image_std):  # type: ignore[union-attr, arg-type]
            raise ConfigError(
                f"{type(model).__name__} normalizes images itself",
                where="model",
                expected="image_mean=[0, 0, 0] and image_std=[1, 1, 1]: model.normalize is applied before",
                fix="model=maskrcnn",
            )

    def see(self, model: Any, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Seen:
        """Images (C, H, W), normalized, through the backbone, at the size for evaluation."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        with self._sizes_of(model.transform):
            batch, targets = model.transform(images, targets)
        features = model.backbone(batch.tensors)
        return Seen(batch, features, sizes, targets)

    def detect(self, model: Any, seen: Seen) -> list[Detections]:
        """The objects in each image, in pixels of the image as it came."""
        self.prepare(model)
        proposals, _ = model.rpn(seen.images, seen.features)
        found, _ = model.roi_heads(seen.features, proposals, seen.images.image_sizes)
        return [
            self._pasted(one, shown, size)
            for one, shown, size in zip(found, seen.images.image_sizes, seen.sizes, strict=True)
        ]

    def losses(self, model: Any, seen: Seen) -> dict[str, Tensor]:
        """The detector's losses against `seen.targets`, with everything but its sampling in evaluation mode."""
        parts = (model.rpn, model.roi_heads)
        for part in parts:
            part.training = True  # the part alone: its layers stay as they are
        try:
            proposals, of_proposals = model.rpn(seen.images, seen.features, seen.targets)
            _, of_heads = model.roi_heads(seen.features, proposals, seen.images.image_sizes, seen.targets)
        finally:
            for part in parts:
                part.training = False
        return {**of_heads, **of_proposals}

    @contextmanager
    def _sizes_of(self, transform: Any) -> Iterator[None]:
        before = transform.min_size, transform.max_size
        transform.min_size = before[0] if self.min_size is None else (self.min_size,)
        transform.max_size = self.max_size or before[1]
        try:
            yield
        finally:
            transform.min_size, transform.max_size = before

    def _pasted(self, found: dict[str, Tensor], shown: tuple[int, int], size: tuple[int, int]) -> Detections:
        from torchvision.models.detection.roi_heads import paste_masks_in_image
        from torchvision.models.detection.transform import resize_boxes

        boxes = resize_boxes(found["boxes"].float(), shown, size)
        masks = torch.zeros(len(boxes), *size, dtype=torch.uint8, device=boxes.device)
        at_once = max(1, MASK_PIXELS_AT_ONCE // (size[0] * size[1]))
        for first in range(0, len(boxes), at_once):
            part = slice(first, first + at_once)
            probs = paste_masks_in_image(found["masks"][part].float(), boxes[part], size)
            masks[part] = probs[:, 0] > self.mask_threshold
        order = found["scores"].argsort(descending=True, stable=True)
        return Detections(boxes[order], found["labels"][order], found["scores"][order].float(), masks[order])

"""Objects of an image, one mask each: as a dataset gives them, and as a network finds them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from segtrain.types import Samples


@dataclass
class Instances:
    """The N objects of one image (H, W). Masks may overlap.

    Attributes:
        masks: (N, H, W) uint8, 1 where the object is.
        boxes: (N, 4) float32 `x0, y0, x1, y1` in pixels; x1 and y1 lie behind the last column and row.
        labels: (N,) int64 class indices from 1 on; 0 is the background.
        crowd: (N,) bool; True: a group that nobody took apart. Never trained on; scored by COCO's rules for crowds.
        area: (N,) float64 pixels as the publisher counted them, by which scores tell small from large.
        ids: (N,) int64, the publisher's name of each object; 0 where it has none.
    """

    masks: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor
    ids: Tensor

    @staticmethod
    def of(
        masks: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        crowd: Tensor | None = None,
        area: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Instances:
        """Objects from masks (N, H, W) uint8 and labels (N,): what is not given follows from the masks."""
        count = len(masks)
        return Instances(
            masks=masks,
            boxes=boxes_around(masks) if boxes is None else boxes,
            labels=labels,
            crowd=torch.zeros(count, dtype=torch.bool) if crowd is None else crowd,
            area=areas_of(masks) if area is None else area,
            ids=torch.zeros(count, dtype=torch.int64) if ids is None else ids,
        )

    @staticmethod
    def none(height: int, width: int) -> Instances:
        """No objects in an image of that size."""
        return Instances.of(torch.zeros(0, height, width, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.masks.shape[1], self.masks.shape[2]

    def keep(self, which: Tensor) -> Instances:
        """The objects that `which`, booleans (N,) or indices in the main memory, names."""
        return Instances(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def to(self, device: torch.device) -> Instances:
        """The same on a device, but for `area` and `ids`, which only scores read, and which not every device can hold.

        Overlaps with computation where the memory is pinned.
        """
        moved = {
            name: getattr(self, name).to(device, non_blocking=True) for name in ("masks", "boxes", "labels", "crowd")
        }
        return replace(self, **moved)

    def pin_memory(self) -> Instances:
        """The same in memory that a GPU reads directly."""
        return Instances(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


@dataclass
class Detections:
    """What a network finds in one image (H, W), the likeliest first.

    Attributes:
        boxes: (N, 4) float32 `x0, y0, x1, y1` in pixels of the image.
        labels: (N,) int64 class indices from 1 on.
        scores: (N,) float32 in [0, 1], falling.
        masks: (N, H, W) uint8, 1 where the object is.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def keep(self, which: Tensor) -> Detections:
        """The detections that `which`, booleans (N,) or indices, names."""
        return Detections(self.boxes[which], self.labels[which], self.scores[which], self.masks[which])

    def cpu(self) -> Detections:
        """The same in the main memory."""
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), self.masks.cpu())


@dataclass
class InstanceBatch(Samples[list[Tensor], list[Instances]]):
    """Images of any sizes with their objects; never `unlabelled`: where no object is, that teaches too.

    `image` tensors (H, W, C) uint8, or float32 in [0, 255] for sources of more than 8 bits; `target` one per image.
    """

    def to(self, device: torch.device) -> InstanceBatch:
        """The same batch on a device."""
        color = None if self.color is None else self.color.to(device, non_blocking=True)
        image = [one.to(device, non_blocking=True) for one in self.image]
        return replace(self, image=image, target=[one.to(device) for one in self.target], color=color)

    def pin_memory(self) -> InstanceBatch:
        """Called by the loader's pinning thread when the batch goes to a GPU."""
        color = None if self.color is None else self.color.pin_memory()
        image = [one.pin_memory() for one in self.image]
        return replace(self, image=image, target=[one.pin_memory() for one in self.target], color=color)


def boxes_around(masks: Tensor) -> Tensor:
    """Masks (N, H, W) -> tight boxes (N, 4) float32 `x0, y0, x1, y1`; zeros where a mask is empty."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    if not masks.numel():
        return boxes
    for axis, start in ((1, 0), (2, 1)):  # collapsing rows leaves columns, which are x
        # The greatest value, and not `any`: that would make booleans of all pixels first, in ten times the time.
        occupied = (masks.amax(axis) != 0).to(torch.uint8)
        there = occupied.amax(1)
        boxes[:, start] = (occupied.argmax(1) * there).float()
        boxes[:, start + 2] = ((occupied.shape[1] - occupied.flip(1).argmax(1)) * there).float()
    return boxes


def areas_of(masks: Tensor) -> Tensor:
    """Masks (N, H, W) in the main memory -> their pixels (N,) float64."""
    # NumPy counts bytes that are not zero as fast as memory is read; torch would widen each pixel to a number first.
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.float64)

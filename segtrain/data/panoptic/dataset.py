"""What all datasets with one segment per pixel share: checked (image, segments, record) samples out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from segtrain.data.batches import Loaded
from segtrain.data.images import ImageDataset, refuse_unequal
from segtrain.errors import ConfigError, listed
from segtrain.panoptic import Panoptic, PanopticBatch
from segtrain.types import Record


class PanopticDataset(ImageDataset[Panoptic]):
    """Images cut into segments: objects of the classes `things`, and stuff.

    `target` is a `Panoptic` of the image's size whose categories are class indices. `record.extra["image_id"]` is the
    publisher's id of the image, or the sample's number from 1 on.

    Args:
        classes: names in index order; the class that an instance dataset calls background is none here.
        things: the names of those that are objects.
        shared: as in `ImageDataset`.

    Raises:
        ConfigError: a thing that is no class, or a class named twice.
        DataError: root, split or files are not as the publisher ships them.
    """

    task: ClassVar[str] = "panoptic"

    def __init__(self, *, classes: list[str], things: list[str], **shared: Any) -> None:
        strange = [name for name in things if name not in classes]
        if strange:
            raise ConfigError(
                f"data.things names {listed(strange)}, which data.classes has not",
                where="data.things",
                expected=f"some of {listed(classes, 20)}",
            )
        if len(set(classes)) != len(classes):
            twice = sorted({name for name in classes if classes.count(name) > 1})
            raise ConfigError(f"data.classes names {listed(twice)} twice", where="data.classes")
        self.things = list(things)
        super().__init__(classes=classes, **shared)

    @staticmethod
    def collate(samples: Sequence[Loaded]) -> PanopticBatch:
        """Samples of one size."""
        return PanopticBatch(
            image=torch.from_numpy(np.stack([sample.image for sample in samples])),
            target=[sample.target for sample in samples],
            index=torch.tensor([sample.index for sample in samples]),
            records=[sample.record for sample in samples],
        )

    @property
    def category_ids(self) -> dict[str, int]:
        """Class name -> the id that the publisher's files and server know it by."""
        return {name: number for number, name in enumerate(self.classes, 1)}

    def read_segments(self, record: Record) -> Panoptic:
        """The segments of one record, checked; needs no image."""
        raise NotImplementedError(f"{type(self).__name__} must say where its segments are")

    def load(self, record: Record) -> tuple[np.ndarray, Panoptic]:
        """The untransformed image (H, W, C) and its segments."""
        image = self.read_image(record)
        found = self.read_segments(record)
        refuse_unequal(
            image,
            record,
            found.size,
            found="image and segments have different sizes",
            other=f"{record.target} is",
            expected="one segment id per image pixel",
            fix="export the segments again from this image",
        )
        return image, found

"""What all datasets of single objects share: checked (image, objects, record) samples out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from segtrain.data.batches import Loaded, color_matrices
from segtrain.data.images import ImageDataset, Transform, refuse_unequal
from segtrain.data.reading import read_size
from segtrain.errors import ConfigError
from segtrain.instances import InstanceBatch, Instances
from segtrain.types import Record


class InstanceDataset(ImageDataset[Instances]):
    """Images with one mask per object.

    `target` is an `Instances` whose masks have the image's size. An image without objects is kept: it says where
    nothing is. `classes` begins with the background, which no object has.

    Args:
        shared: as in `ImageDataset`.

    Raises:
        DataError: root, split or files are not as the publisher ships them.
    """

    task: ClassVar[str] = "instance"
    classes_in_files: ClassVar[bool] = False
    """The files name their classes: then what reads them refuses other `classes`, and says which they have."""

    def __init__(self, *, classes: list[str], **shared: Any) -> None:
        if not self.classes_in_files and (not classes or classes[0] != "background"):
            raise ConfigError(
                f"data.classes begins with {classes[0] if classes else 'nothing'}",
                where="data.classes",
                expected="background first, which no object has",
                fix=f"data.classes=[{','.join(['background', *classes])}]",
            )
        super().__init__(classes=classes, **shared)

    @property
    def category_ids(self) -> dict[int, int]:
        """Class index -> the id that the publisher's files and server know it by."""
        return {number: number for number in range(1, len(self.classes))}

    @property
    def notes(self) -> list[str]:
        """What a person should know of the objects, such as how many were left out."""
        return []

    def aspect_ratios(self) -> np.ndarray:
        """Width over height of every image, (N,) float64, from the headers of the files."""
        sizes = [read_size(record.image, upright=self.exif == "apply") for record in self.records if record.image]
        return np.array([width / height for height, width in sizes]) if sizes else np.ones(len(self))

    def count_objects(self, index: int) -> np.ndarray:
        """The objects of each class in one sample, crowds left out: (C,) int64; no image is read."""
        found = self.read_objects(self.records[index])
        return np.bincount(found.labels[~found.crowd].numpy(), minlength=len(self.classes))

    def count_crowds(self, index: int) -> int:
        """The groups that nobody took apart in one sample; no image is read."""
        return int(self.read_objects(self.records[index]).crowd.sum())

    @abstractmethod
    def read_objects(self, record: Record) -> Instances:
        """The objects of one record, checked: labels in [1, len(classes)), masks of one size, no empty mask."""

    def load(self, record: Record) -> tuple[np.ndarray, Instances]:
        """The untransformed image (H, W, C) and its objects."""
        image = self.read_image(record)
        found = self.read_objects(record)
        refuse_unequal(
            image,
            record,
            found.size,
            found="image and objects have different sizes",
            other=f"the objects of {record.target or record.name} are",
            expected="masks of the image's size",
            fix="export the objects again from this image",
        )
        return image, found

    @staticmethod
    def collate(samples: Sequence[Loaded]) -> InstanceBatch:
        """Samples of any sizes, side by side."""
        return InstanceBatch(
            image=[torch.from_numpy(np.ascontiguousarray(sample.image)) for sample in samples],
            target=[sample.target for sample in samples],
            index=torch.tensor([sample.index for sample in samples]),
            records=[sample.record for sample in samples],
            color=color_matrices(samples),
            load_seconds=sum(sample.load_seconds for sample in samples),
            augment_seconds=sum(sample.augment_seconds for sample in samples),
        )

    @staticmethod
    def transform_of(steps: dict[str, Any]) -> Transform:
        """The named transforms, applied to image and objects together."""
        from segtrain.data.instances.transforms import InstanceTransform  # albumentations: only training needs it

        return InstanceTransform(steps)

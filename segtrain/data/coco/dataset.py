"""What all datasets of single objects in COCO's JSON share; where the files are, a subclass says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from segtrain.data.coco.annotations import Annotations
from segtrain.data.coco.faults import OnBad
from segtrain.data.coco.samples import open_samples, require_images
from segtrain.data.instances.dataset import InstanceDataset
from segtrain.instances import Instances
from segtrain.types import Record


class AnnotatedInstances(InstanceDataset):
    """Objects by polygons or run lengths, groups of them (`iscrowd`) among them.

    Masks are pixel for pixel those of pycocotools. Boxes are the file's, x, y, x + width, y + height, clipped to the
    image, and areas are the file's, too. Categories are classes by their names.

    Args:
        on_bad_annotation: `stop` refuses a file with faulty annotations and names them; `drop` goes without them.
        shared: as in `ImageDataset`.

    Attributes:
        annotations: the objects of all images of the file.
        dropped: what is wrong with annotations -> how many were left out for it.
        category_ids: class index -> the file's id of the category, for results in its terms; a class that the file has
            not has a number that no category of the file has.
    """

    classes_in_files: ClassVar[bool] = True

    annotations: Annotations

    def __init__(self, *, on_bad_annotation: OnBad = "stop", **shared: object) -> None:
        self.on_bad_annotation: OnBad = on_bad_annotation
        super().__init__(**shared)  # type: ignore[arg-type]

    @abstractmethod
    def annotation_file(self) -> Path:
        """The JSON file of this split."""

    @abstractmethod
    def image_folder(self, names: Sequence[str]) -> Path:
        """The folder that the images of these names are in."""

    @property
    def notes(self) -> list[str]:
        total = len(self.annotations.ids) + sum(self.dropped.values())
        left_out = [f"{count:,} of {total:,} annotations left out: they {what}" for what, count in self.dropped.items()]
        mended = self.annotations.mended.items()
        return left_out + [f"{count:,} of {total:,} annotations {what}" for what, count in mended if count]

    @property
    def dropped(self) -> dict[str, int]:
        return self.annotations.dropped

    @property
    def category_ids(self) -> dict[int, int]:
        return self.annotations.category_ids

    def find_records(self) -> list[Record]:
        records, self.annotations = open_samples(
            self.annotation_file(), self.image_folder, self.classes, on_bad=self.on_bad_annotation
        )
        require_images(self, records)
        return records

    def read_objects(self, record: Record) -> Instances:
        return self.annotations.instances(record.extra["row"])

    def aspect_ratios(self) -> np.ndarray:
        """Width / height (N,) float64 of every sample, without opening a file."""
        sizes = self.annotations.sizes[[record.extra["row"] for record in self.records]]
        return sizes[:, 1] / sizes[:, 0]

    def count_objects(self, index: int) -> np.ndarray:
        return self.annotations.count(self.records[index].extra["row"])

    def count_crowds(self, index: int) -> int:
        return int(self.annotations.of_image(self.records[index].extra["row"])[1].sum())

"""COCO 2017 with one class per pixel, drawn from its objects."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from segtrain.data.coco.annotations import Annotations
from segtrain.data.coco.faults import OnBad
from segtrain.data.coco.layout import GET_IT, LAYOUT, split_file, split_folder
from segtrain.data.coco.samples import open_samples, require_images
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import refuse_unequal
from segtrain.types import IGNORE_INDEX, NonNegativeInt, Record


class CocoSemantic(SegmentationDataset):
    """The objects' masks put into one picture of classes; where there is none is background.

    A group that nobody took apart (`iscrowd`) is 255, unlabelled.

    Args:
        overlap: where masks overlap. `smaller` paints groups first, then objects from the largest area to the smallest,
            of two equal ones the later over the earlier, so that a cup on a table is seen. `ignore` makes every pixel
            of two masks or more 255, also of one class, as torchvision's references do; and of a group.
        categories: category name -> class name; what it does not list is background. None: categories are classes.
        min_area: images of train whose objects, groups too, have no more pixels by the file's `area` are left out.
        on_bad_annotation: `stop` refuses a file with faulty annotations and names them; `drop` goes without them.
        label_map: none, as there are no masks on disk.
        shared: as in `SegmentationDataset`.

    Attributes:
        dropped: what is wrong with annotations -> how many were left out for it.
    """

    layout: ClassVar[str] = LAYOUT
    get_it: ClassVar[str] = GET_IT
    annotations: Annotations

    def __init__(
        self,
        *,
        overlap: Literal["smaller", "ignore"] = "smaller",
        categories: dict[str, str] | None = None,
        min_area: NonNegativeInt | None = None,
        on_bad_annotation: OnBad = "stop",
        label_map: None = None,
        **shared: Any,
    ) -> None:
        self.overlap = overlap
        self.categories = categories
        self.min_area = min_area
        self.on_bad_annotation: OnBad = on_bad_annotation
        super().__init__(label_map=label_map, **shared)

    @property
    def dropped(self) -> dict[str, int]:
        return self.annotations.dropped

    def find_records(self) -> list[Record]:
        records, self.annotations = open_samples(
            split_file(self),
            lambda _: split_folder(self),
            self.classes,
            on_bad=self.on_bad_annotation,
            named=self.categories,
        )
        require_images(self, records)
        if self.min_area is not None and self.split == "train":
            records = [record for record in records if self._area(record) > self.min_area]
        return records

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        image = self.read_image(record)
        target = self.read_target(record)
        refuse_unequal(
            image,
            record,
            target.shape,
            found="the image has another size than the annotations say",
            other=f"listed in {record.target} as",
            expected="the image that the annotations were drawn on",
            fix="get the image again",
        )
        return image, target

    def read_target(self, record: Record) -> np.ndarray:
        row = record.extra["row"]
        masks = self.annotations.masks(row).numpy().astype(bool)
        labels, crowd, area = self.annotations.of_image(row)
        target = np.zeros(self.annotations.sizes[row], np.uint8)
        if self.overlap == "ignore":
            for mask, label in zip(masks, labels, strict=True):
                target[mask] = label
            target[masks.sum(0) > 1] = IGNORE_INDEX
            target[masks[crowd].any(0)] = IGNORE_INDEX
            return target
        target[masks[crowd].any(0)] = IGNORE_INDEX
        objects = np.flatnonzero(~crowd)
        for number in objects[np.argsort(-area[objects], kind="stable")]:
            target[masks[number]] = labels[number]
        return target

    def _area(self, record: Record) -> float:
        return float(self.annotations.of_image(record.extra["row"])[2].sum())

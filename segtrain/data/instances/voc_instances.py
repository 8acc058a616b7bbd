"""PASCAL VOC 2012 (Everingham et al. 2010), object by object: SegmentationObject beside SegmentationClass."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from segtrain.data.download import extract, fetch
from segtrain.data.instances.objects import ObjectMap, ObjectMapDataset, distinct
from segtrain.errors import DataError, listed
from segtrain.types import IGNORE_INDEX, Record


class VocInstances(ObjectMapDataset):
    """VOC 2012 segmentation: 1,464 train, 1,449 val; 20 classes, numbered as in the files.

    An object's class is the one under it in `SegmentationClass`. The border (255 in either file) belongs to nobody.
    """

    layout: ClassVar[str] = (
        "VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt\n"
        "VOCdevkit/VOC2012/JPEGImages/ID.jpg\n"
        "VOCdevkit/VOC2012/SegmentationObject/ID.png\n"
        "VOCdevkit/VOC2012/SegmentationClass/ID.png"
    )
    get_it: ClassVar[str] = (
        "set data.download=true, or unpack VOCtrainval_11-May-2012.tar of "
        "https://host.robots.ox.ac.uk/pascal/VOC/voc2012 and set data.root to its folder"
    )

    def find_records(self) -> list[Record]:
        home = self.locate("VOCdevkit/VOC2012", "VOC2012", ".", holds="ImageSets/Segmentation")
        names = self.read_list(home / "ImageSets" / "Segmentation" / f"{self.split}.txt")
        records = [
            Record(name, home / "JPEGImages" / f"{name}.jpg", home / "SegmentationObject" / f"{name}.png")
            for name in names
        ]
        self.require_files(records)
        self.require_files([Record(record.name, target=_class_file(record)) for record in records])
        return records

    def fetch(self) -> None:
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        if not self.is_complete():
            source = DATASET_YEAR_DICT["2012"]
            extract(fetch(source["url"], source["md5"], self.root, filename=source["filename"]), self.root)

    def read_map(self, record: Record) -> ObjectMap:
        assert record.target is not None
        numbers, classes = self._read_pair(record.target, _class_file(record))
        numbers = np.where((numbers == IGNORE_INDEX) | (classes == IGNORE_INDEX), np.uint8(0), numbers)
        ids = distinct(numbers)
        ids = ids[ids > 0]
        pixels = np.bincount(numbers.ravel() * np.int64(256) + classes.ravel(), minlength=256 * 256)
        under = pixels.reshape(256, 256)[ids]  # (N, 256): how many pixels of each class an object has
        self._refuse_unclear(ids, under, record.target)
        return ObjectMap(numbers, ids, under.argmax(1), np.zeros(len(ids), bool))

    def _read_pair(self, objects: Path, classes: Path) -> tuple[np.ndarray, np.ndarray]:
        pair = self.read_numbers(objects), self.read_numbers(classes)
        if pair[0].shape != pair[1].shape:
            sizes = [f"{numbers.shape[1]}x{numbers.shape[0]}" for numbers in pair]
            raise DataError(
                "the files of objects and of classes have different sizes (width x height)",
                where=f"{objects} is {sizes[0]}, {classes} is {sizes[1]}",
                expected="one class per pixel of every object",
                fix=self.get_it,
            )
        for path, numbers, top in ((objects, pair[0], IGNORE_INDEX), (classes, pair[1], len(self.classes) - 1)):
            unknown = [int(value) for value in distinct(numbers) if value > top and value != IGNORE_INDEX]
            if unknown:
                raise DataError(
                    f"file has the values {listed(unknown)}",
                    where=path,
                    expected=f"0..{min(top, 254)}, or {IGNORE_INDEX} for the border",
                    fix="get the file again; data.classes must name all classes in the order of their numbers",
                )
        return pair[0].astype(np.uint8), pair[1].astype(np.uint8)

    def _refuse_unclear(self, ids: np.ndarray, under: np.ndarray, path: Path) -> None:
        for number, counts in zip(ids, under, strict=True):
            found = np.flatnonzero(counts)
            if len(found) > 1 or found[0] == 0:
                shares = listed(f"{self.classes[label]} ({counts[label]} pixels)" for label in found)
                raise DataError(
                    f"object {number} lies on {shares} in SegmentationClass",
                    where=path,
                    expected="one class under all pixels of an object, and not the background",
                    fix=f"mend one of the two files, or take {path.stem} out of the split's list",
                )


def _class_file(record: Record) -> Path:
    assert record.target is not None
    return record.target.parents[1] / "SegmentationClass" / record.target.name

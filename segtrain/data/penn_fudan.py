"""Penn-Fudan pedestrians (Wang et al. 2007): where the files are, and all pedestrians as one class."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import ImageDataset, files_by_stem
from segtrain.data.reading import read_mask
from segtrain.errors import DataError
from segtrain.types import Record

Target = TypeVar("Target")
HOLDOUT = 4
"""Without lists, every fourth image by name is val."""


class PennFudanFiles(ImageDataset[Target], Generic[Target]):
    """Where the images and masks are: 170 photographs of streets in all, 345 people.

    The publisher has no splits. `train.txt` and `val.txt` in the data's folder, one name per line, are taken where one
    of them stands; else the fourth, eighth, … image by name is val and the others are train (128 and 42 of 170).
    """

    layout: ClassVar[str] = (
        "PennFudanPed/PNGImages/NAME.png (or JPEGImages/NAME.jpg)\n"
        "PennFudanPed/PedMasks/NAME_mask.png\n"
        "PennFudanPed/{train,val}.txt (may be absent: every fourth image is val)"
    )
    get_it: ClassVar[str] = (
        "unpack PennFudanPed.zip of https://www.cis.upenn.edu/~jshi/ped_html and set data.root to its folder"
    )

    def find_records(self) -> list[Record]:
        home = self.locate("PennFudanPed", ".", holds="PedMasks")
        folder = next((home / name for name in ("PNGImages", "JPEGImages") if (home / name).is_dir()), None)
        if folder is None:
            raise self.missing("folder of images (PNGImages or JPEGImages)", home)
        images = self.files_in(folder)
        masks = home / "PedMasks"
        targets = files_by_stem(masks.iterdir(), masks, "_mask")
        if any((home / f"{split}.txt").is_file() for split in self.splits):
            path = home / f"{self.split}.txt"
            return self.pick(self.read_list(path), images, targets, path)
        records = self.pair(images, targets, home)
        held_out = [number % HOLDOUT == HOLDOUT - 1 for number in range(len(records))]
        return [record for record, val in zip(records, held_out, strict=True) if val == (self.split == "val")]


class PennFudanSemantic(PennFudanFiles[np.ndarray], SegmentationDataset):
    """Two classes: whichever number a pedestrian has, its pixels are 1, for `label_map` too. None is unlabelled."""

    def read_target(self, record: Record) -> np.ndarray:
        assert record.target is not None
        numbers = read_mask(record.target, max_pixels=self.max_pixels)
        if numbers.ndim == 3:
            raise DataError(
                "pedestrians are told apart by colors",
                where=record.target,
                expected="0 on the background and 1, 2, … on the pedestrians: a grey or palette PNG",
                fix=self.get_it,
            )
        return self.labels.apply((numbers > 0).astype(np.uint8), record.target)

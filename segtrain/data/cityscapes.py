"""Cityscapes (Cordts et al. 2016): street scenes, 2048x1024, 19 classes that are scored."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record

IMAGE_END = "_leftImg8bit.png"
TARGET_END = "_gtFine_labelIds.png"


class Cityscapes(SegmentationDataset):
    """2,975 train and 500 val images with fine labels, in the order of city and name.

    Masks are the publisher's `labelIds`; `label_map` holds the published table from id to the 19 classes,
    everything else 255. The test split has no usable labels.
    """

    layout: ClassVar[str] = (
        f"leftImg8bit/{{train,val}}/CITY/NAME{IMAGE_END}\ngtFine/{{train,val}}/CITY/NAME{TARGET_END}"
    )
    get_it: ClassVar[str] = (
        "register at https://www.cityscapes-dataset.com, unpack leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip into one folder and set data.root to it"
    )

    def find_records(self) -> list[Record]:
        images = self._files("leftImg8bit", IMAGE_END)
        return self.pair(images, self._files("gtFine", TARGET_END), self.root)

    def _files(self, kind: str, end: str) -> dict[str, Path]:
        folder = self.root / kind / self.split
        if not folder.is_dir():
            raise self.missing(f"folder of split '{self.split}'", folder)
        found = {f"{path.parent.name}/{path.name.removesuffix(end)}": path for path in folder.glob(f"*/*{end}")}
        if not found:
            raise self.missing(f"files CITY/NAME{end}", folder)
        return dict(sorted(found.items()))

"""Cityscapes (Cordts et al. 2016): street scenes, 2048x1024, 19 classes that are scored."""

from __future__ import annotations

from typing import ClassVar

from segtrain.data import cityscapes_files
from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record

TARGET_END = "_gtFine_labelIds.png"


class Cityscapes(SegmentationDataset):
    """2,975 train and 500 val images with fine labels, in the order of city and name.

    Masks are the publisher's `labelIds`; `label_map` holds the published table from id to the 19 classes,
    everything else 255. The test split has no usable labels.
    """

    layout: ClassVar[str] = cityscapes_files.layout(TARGET_END)
    get_it: ClassVar[str] = cityscapes_files.GET_IT

    def find_records(self) -> list[Record]:
        return cityscapes_files.find_pairs(self, TARGET_END)

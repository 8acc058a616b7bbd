"""COCO 2017 (Lin et al. 2014): 118,287 train and 5,000 val images, 80 kinds of things."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from segtrain.data.coco.dataset import AnnotatedInstances
from segtrain.data.coco.layout import GET_IT, LAYOUT, split_file, split_folder


class Coco(AnnotatedInstances):
    """COCO 2017: 860,001 annotated objects in train, 36,781 in val.

    Two annotations of train, 918 and 2206849, have boxes without height; the YAML drops them.
    """

    layout: ClassVar[str] = LAYOUT
    get_it: ClassVar[str] = GET_IT

    def annotation_file(self) -> Path:
        return split_file(self)

    def image_folder(self, names: Sequence[str]) -> Path:
        return split_folder(self)

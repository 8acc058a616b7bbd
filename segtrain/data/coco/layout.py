"""Where COCO's publisher puts the files of 2017."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segtrain.data.images import ImageDataset

LAYOUT = "annotations/instances_{train,val}2017.json\n{train,val}2017/NAME.jpg"
GET_IT = (
    "unpack train2017.zip (18 GB), val2017.zip (1 GB) and annotations_trainval2017.zip of "
    "https://cocodataset.org/#download into one folder and set data.root to it"
)


def split_file(dataset: ImageDataset[Any]) -> Path:
    """The file of a split's objects."""
    name = f"annotations/instances_{dataset.split}2017.json"
    return dataset.locate("coco", "COCO", "coco2017", ".", holds=name) / name


def split_folder(dataset: ImageDataset[Any]) -> Path:
    """The folder of a split's images, beside the annotations or in `images`."""
    home, name = split_file(dataset).parents[1], f"{dataset.split}2017"
    for folder in (home / name, home / "images" / name):
        if folder.is_dir():
            return folder
    raise dataset.missing(f"folder of images of split '{dataset.split}'", home / name)

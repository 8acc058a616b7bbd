"""COCO panoptic (Lin et al. 2014; Kirillov et al. 2019): 80 things, 53 kinds of stuff; any data in its format."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from segtrain.data.panoptic.dataset import PanopticDataset
from segtrain.data.panoptic.files import Annotated, Index, read_index, read_panoptic
from segtrain.errors import ConfigError, listed
from segtrain.panoptic import Panoptic
from segtrain.types import Record


class CocoPanoptic(PanopticDataset):
    """118,287 train and 5,000 val images of 2017, in the order of the list.

    Categories go by name: a category that `classes` leaves out is void, a class that the list has not is an error.
    """

    layout: ClassVar[str] = (
        "annotations/panoptic_{train,val}2017.json\n"
        "panoptic_{train,val}2017/ID.png (or in annotations/)\n"
        "{train,val}2017/ID.jpg (or in images/)"
    )
    get_it: ClassVar[str] = (
        "download train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip from https://cocodataset.org, "
        "unpack them and the two archives of PNG files within into one folder, and set data.root to it"
    )

    def find_records(self) -> list[Record]:
        stem = f"panoptic_{self.split}2017"
        home = self.locate(".", "coco", holds=f"annotations/{stem}.json")
        index = read_index(home / "annotations" / f"{stem}.json")
        self._match(index)
        images = self._folder(home, f"{self.split}2017", "images")
        segments = self._folder(home, stem, "annotations")
        # Kept here and not in `extra`, which goes along with every sample.
        self._annotated: dict[int | str, Annotated] = {one.image_id: one for one in index.images}
        return self.require_files([_record(one, images, segments) for one in index.images])

    def _folder(self, home: Path, name: str, parent: str) -> Path:
        for folder in (home / name, home / parent / name):
            if folder.is_dir():
                return folder
        raise self.missing(f"folder {name}", home)

    def _match(self, index: Index) -> None:
        """Class indices of the list's categories, by name."""
        known = {category.name: number for number, category in index.categories.items()}
        absent = [name for name in self.classes if name not in known]
        if absent:
            raise ConfigError(
                f"the data have no category {listed(absent)}",
                where=f"data.classes, {index.path}",
                expected=f"names of its categories: {listed(known, 200)}",
                fix="correct data.classes",
            )
        self._ids = {name: known[name] for name in self.classes}
        self._things = {number for number, category in index.categories.items() if category.thing}
        wrong = [name for name, number in self._ids.items() if (number in self._things) != (name in self.things)]
        if wrong:
            raise ConfigError(
                f"data.things and the data do not agree on {listed(wrong)}",
                where=f"data.things, {index.path}",
                expected="in data.things what has isthing=1, and nothing else",
                fix=f"things there: {listed((n for n in self.classes if self._ids[n] in self._things), 200)}",
            )

    @property
    def category_ids(self) -> dict[str, int]:
        return self._ids

    def read_segments(self, record: Record) -> Panoptic:
        assert record.target is not None
        return read_panoptic(
            record.target,
            self._annotated[record.extra["image_id"]],
            {number: self.classes.index(name) for name, number in self._ids.items()},
            self._things,
            max_pixels=self.max_pixels,
        )


def _record(one: Annotated, images: Path, segments: Path) -> Record:
    name = Path(one.image).with_suffix("").as_posix()
    return Record(name, images / one.image, segments / one.png, {"image_id": one.image_id})

"""Cityscapes (Cordts et al. 2016) as segments: 11 kinds of stuff, 8 classes of things."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segtrain.data.cityscapes_files import GET_IT, OBJECTS_END, find_pairs, layout
from segtrain.data.panoptic.dataset import PanopticDataset
from segtrain.data.reading import read_mask
from segtrain.errors import ConfigError, DataError, listed
from segtrain.panoptic import Panoptic, Segment
from segtrain.types import IGNORE_INDEX, Record

PER_INSTANCE = 1000
"""An object's value is its label id times this plus its number; a smaller value is a label id."""


class CityscapesPanoptic(PanopticDataset):
    """2,975 train and 500 val images, in the order of city and name, from the publisher's `instanceIds`.

    A value below 1000 is a label id: one segment of stuff, or, of a class of things, a group that nobody took apart,
    which is a crowd. Segment ids are the file's values, as the publisher's own panoptic files have them.

    Args:
        label_map: label id -> class index; 255 = void. Every id that the files hold must be in it.
        shared: as in `PanopticDataset`.
    """

    layout: ClassVar[str] = layout(OBJECTS_END)
    get_it: ClassVar[str] = GET_IT

    def __init__(self, *, label_map: dict[int, int], **shared: Any) -> None:
        self.label_map = dict(label_map)
        super().__init__(**shared)
        wrong = sorted(set(self.label_map.values()) - {IGNORE_INDEX} - set(range(len(self.classes))))
        if self.label_map.get(0, IGNORE_INDEX) != IGNORE_INDEX:
            raise ConfigError(
                "data.label_map gives label id 0 a class", where="data.label_map", expected="255: 0 is void"
            )
        missing = [name for n, name in enumerate(self.classes) if n not in self.label_map.values()]
        if wrong or missing:
            told = f"leads to {listed(wrong)}" if wrong else f"leads to none of {listed(missing)}"
            raise ConfigError(
                f"data.label_map {told}",
                where="data.label_map",
                expected=f"each of the class indices 0 to {len(self.classes) - 1}, and 255",
                fix="leave data.classes and data.label_map as configs/data/cityscapes_panoptic.yaml has them",
            )

    def find_records(self) -> list[Record]:
        records = find_pairs(self, OBJECTS_END)
        return [Record(one.name, one.image, one.target, {"image_id": one.name.rpartition("/")[2]}) for one in records]

    @property
    def category_ids(self) -> dict[str, int]:
        return {self.classes[index]: label for label, index in self.label_map.items() if index != IGNORE_INDEX}

    def read_segments(self, record: Record) -> Panoptic:
        assert record.target is not None
        values = read_mask(record.target, max_pixels=self.max_pixels)
        if values.ndim != 2:
            raise DataError("instanceIds are colors", where=record.target, expected="one channel of 16 bits")
        ids = values.astype(np.int32)
        segments = []
        for value in np.unique(ids).tolist():
            segment = self._segment(value, record.target)
            if segment is None:
                ids[ids == value] = 0
            else:
                segments.append(segment)
        return Panoptic(ids, segments)

    def _segment(self, value: int, path: Path) -> Segment | None:
        """The segment of one file value; None: void."""
        label = value if value < PER_INSTANCE else value // PER_INSTANCE
        if label not in self.label_map:
            raise DataError(
                f"instanceIds hold {value}, of label id {label}",
                where=path,
                expected=f"label ids that data.label_map lists: {listed(sorted(self.label_map), 50)}",
                fix="unpack gtFine_trainvaltest.zip again, or add the id to data.label_map",
            )
        index = self.label_map[label]
        if index == IGNORE_INDEX:
            return None
        thing = self.classes[index] in self.things
        if value >= PER_INSTANCE and not thing:
            raise DataError(
                f"instanceIds hold {value}, a single '{self.classes[index]}', which is stuff",
                where=path,
                expected=f"objects of {listed(self.things)}",
                fix="unpack gtFine_trainvaltest.zip again, or add the class to data.things",
            )
        return Segment(value, index, thing, crowd=thing and value < PER_INSTANCE)

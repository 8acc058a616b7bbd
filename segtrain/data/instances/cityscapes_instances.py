"""Cityscapes (Cordts et al. 2016), object by object: the eight classes whose objects are told apart and scored."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from segtrain.data.cityscapes_files import GET_IT, OBJECTS_END, find_pairs, layout
from segtrain.data.instances.objects import ObjectMap, ObjectMapDataset, distinct
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import Record

THINGS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Label ids of the publisher."""
UNSCORED_THINGS = (29, 30)
"""Caravans and trailers: told apart in the files, left out of every score."""
LAST_LABEL = 33


class CityscapesInstances(ObjectMapDataset):
    """2,975 train and 500 val images with fine labels, in the order of city and name.

    A pixel of object n of label id k holds 1000 k + n. Below 1000 it holds the label id alone, which for a thing means
    a group that nobody took apart: a crowd, one per class and image. Objects of classes that `data.classes` leaves out
    are background.
    """

    layout: ClassVar[str] = layout(OBJECTS_END)
    get_it: ClassVar[str] = GET_IT

    def __init__(self, *, classes: list[str], **shared: object) -> None:
        unknown = [name for name in classes[1:] if name not in THINGS.values()]
        if unknown:
            raise ConfigError(
                f"data.classes has {listed(unknown)}, of which Cityscapes has no objects",
                where="data.classes",
                expected=f"background and then any of {listed(THINGS.values())}",
                fix="leave data.classes as configs/data/cityscapes_instances.yaml has it",
            )
        super().__init__(classes=classes, **shared)  # type: ignore[arg-type]

    def find_records(self) -> list[Record]:
        return find_pairs(self, OBJECTS_END)

    def read_map(self, record: Record) -> ObjectMap:
        assert record.target is not None
        numbers = self.read_numbers(record.target)
        ids = distinct(numbers)
        alone = ids >= 1000
        labels = np.where(alone, ids // 1000, ids)
        _refuse_unknown(ids, alone, labels, record.target)
        index_of = {label: self.classes.index(name) for label, name in THINGS.items() if name in self.classes}
        wanted = np.isin(labels, list(index_of))
        classes = np.array([index_of[label] for label in labels[wanted]], np.int64)
        return ObjectMap(numbers, ids[wanted], classes, ~alone[wanted])


def _refuse_unknown(ids: np.ndarray, alone: np.ndarray, labels: np.ndarray, path: Path) -> None:
    known = np.where(alone, np.isin(labels, [*THINGS, *UNSCORED_THINGS]), labels <= LAST_LABEL)
    if not known.all():
        raise DataError(
            f"file has the ids {listed(ids[~known])}",
            where=path,
            expected=f"label ids 0..{LAST_LABEL}, or 1000 times that of a thing and the object's number",
            fix="get gtFine_trainvaltest.zip again; labelTrainIds and other conversions are not read",
        )

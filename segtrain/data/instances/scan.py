"""Looks at the objects before the first step: are they usable, and how common is each class?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segtrain.data.faults import together
from segtrain.data.instances.dataset import InstanceDataset
from segtrain.data.scan import evenly
from segtrain.errors import DataError
from segtrain.types import PositiveInt


@dataclass(frozen=True)
class ObjectScan:
    """What `images` of the dataset's `of` samples hold.

    `objects` (C,) int64 per class without crowds; `empty` is the number of images without one, of which `crowded`
    have crowds.
    """

    images: int
    of: int
    objects: np.ndarray
    empty: int
    crowded: int


def scan_objects(dataset: InstanceDataset, limit: PositiveInt | None = None, threads: PositiveInt = 4) -> ObjectScan:
    """Counts the objects of `limit` evenly spaced samples (None: of all); no image is decoded.

    Raises:
        DataError: objects that cannot be used, all in one error.
    """
    indices = evenly(len(dataset), limit)

    def counted(index: int) -> np.ndarray | DataError:
        try:
            return dataset.count_objects(index)
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(counted, indices))
    errors = [
        (dataset.records[index], count)
        for index, count in zip(indices, found, strict=True)
        if isinstance(count, DataError)
    ]
    if errors:
        raise together(errors, len(indices), "images' objects")
    table = np.stack([count for count in found if not isinstance(count, DataError)])
    empty = [index for index, objects in zip(indices, table.sum(1), strict=True) if objects == 0]
    crowded = sum(dataset.count_crowds(index) > 0 for index in empty)
    return ObjectScan(len(indices), len(dataset), table.sum(0), len(empty), crowded)

"""Penn-Fudan pedestrians (Wang et al. 2007), one by one."""

from __future__ import annotations

import numpy as np

from segtrain.data.instances.objects import ObjectMap, ObjectMapDataset, distinct
from segtrain.data.penn_fudan import PennFudanFiles
from segtrain.instances import Instances
from segtrain.types import Record


class PennFudan(PennFudanFiles[Instances], ObjectMapDataset):
    """One class beside the background: the mask of an image holds 0 there and 1, 2, … on the pedestrians."""

    def read_map(self, record: Record) -> ObjectMap:
        assert record.target is not None
        numbers = self.read_numbers(record.target)
        ids = distinct(numbers)
        ids = ids[ids > 0]
        return ObjectMap(numbers, ids, np.ones(len(ids), np.int64), np.zeros(len(ids), bool))

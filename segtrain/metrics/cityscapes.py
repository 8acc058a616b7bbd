"""Cityscapes' own scores, equal to those of its evaluation script: IoU and iIoU, per class and per category.

Cordts et al. 2016 (arXiv 1604.01685, section 4.1); rules and mean instance sizes are those of cityscapesScripts,
`evaluation/evalPixelLevelSemanticLabeling.py`. All is counted in integers, so that neither the order of the images nor
the number of processes changes a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segtrain.errors import ConfigError, DataError, listed
from segtrain.metrics.base import Judged
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.types import IGNORE_INDEX

LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The 19 scored classes and the ids that the publisher's files and server know them by."""
CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
MEAN_INSTANCE_PIXELS = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Mean size of an instance of each class that has instances, in pixels of the fine annotations."""
INSTANCE_CATEGORIES = {"human": (24, 25), "vehicle": tuple(range(26, 34))}
"""Categories whose every label has instances; caravan and trailer (29, 30) belong to the vehicles, though unscored."""
ID_COUNT = 34
PER_INSTANCE = 1000
"""An instance's value is its label id times this plus its number; a smaller value is a region without instances."""
SHARE_BITS = 64
"""Shares of instances are added as integers of this many binary places: exact sums, in any order."""
TARGET_END, INSTANCE_END = "_labelIds.png", "_instanceIds.png"


class CityscapesScores:
    """An `ImageMetric`: IoU and iIoU of the 19 classes and 7 categories; memory does not grow with the images.

    A prediction on an unlabelled pixel costs nothing. In iIoU each instance of the truth weighs the same, whatever
    its size: its pixels are multiplied by mean size / own size. False positives are plain pixels, since predictions
    have no instances. Groups (crowds) are not weighted and not counted as true positives or misses.

    Args:
        classes: names in index order, all 19 of them.

    Raises:
        ConfigError: other classes.
    """

    def __init__(self, *, classes: list[str]) -> None:
        self.id_of = label_ids(classes)
        self.confusion = ConfusionMatrix(ID_COUNT)
        # Of each class: instances, their share that was found, and the share found as any class of the category.
        self.instances = {name: [0, 0, 0] for name in MEAN_INSTANCE_PIXELS}

    def update(self, judged: Judged) -> None:
        """Takes in one image, whose `instanceIds` lie beside its `labelIds`.

        Raises:
            DataError: no such file, or one that is not what the publisher ships.
        """
        instances = read_instances(judged.record.target, judged.target.shape)
        self.count(self.id_of[judged.prediction], self.id_of[judged.target], instances)

    def count(self, prediction: np.ndarray, target: np.ndarray, instances: np.ndarray) -> None:
        """Takes in one image of label ids (H, W): 0 to 33, and 255 in the target for a license plate.

        `instances` (H, W) are the publisher's `instanceIds`.
        """
        self.confusion.update(prediction, target)
        whole = instances > PER_INSTANCE
        ids = instances[whole].astype(np.int64)
        if not ids.size:
            return
        said = prediction[whole]
        category = np.zeros(said.shape, bool)
        for members in INSTANCE_CATEGORIES.values():
            category |= np.isin(ids // PER_INSTANCE, members) & np.isin(said, members)
        sizes = np.bincount(ids)
        found = np.bincount(ids[said == ids // PER_INSTANCE], minlength=len(sizes))
        related = np.bincount(ids[category], minlength=len(sizes))
        for value in np.flatnonzero(sizes):
            self._add(int(value) // PER_INSTANCE, int(sizes[value]), int(found[value]), int(related[value]))

    def _add(self, label: int, size: int, found: int, related: int) -> None:
        name = _NAME_OF.get(label)
        if name is None:  # of a class that is not scored, e.g. a caravan
            return
        if name not in self.instances:
            raise DataError(
                f"instanceIds hold an instance of '{name}'", expected=f"instances of {listed(MEAN_INSTANCE_PIXELS)}"
            )
        sums = self.instances[name]
        sums[0] += 1
        sums[1] += (found << SHARE_BITS) // size
        sums[2] += (related << SHARE_BITS) // size

    def state(self) -> Any:
        """Counts, in plain integers."""
        return self.confusion.counts, self.instances

    def merge(self, state: Any) -> None:
        """Adds the counts of another process."""
        counts, instances = state
        self.confusion.counts += counts
        for name, sums in instances.items():
            self.instances[name] = [a + b for a, b in zip(self.instances[name], sums, strict=True)]

    def compute(self) -> dict[str, Any]:
        """Under `cityscapes`: `iou`, `iiou`, `category_iou`, `category_iiou` by name, and `mean_iou` etc.; NaN where
        there is nothing to score."""
        scores: dict[str, dict[str, float]] = {
            "iou": {name: self._iou([name]) for name in LABEL_IDS},
            "iiou": {name: self._iiou([name], [LABEL_IDS[name]], 1) for name in MEAN_INSTANCE_PIXELS},
            "category_iou": {name: self._iou(members) for name, members in CATEGORIES.items()},
            "category_iiou": {name: self._iiou(CATEGORIES[name], ids, 2) for name, ids in INSTANCE_CATEGORIES.items()},
        }
        means = {f"mean_{name}": _mean(values.values()) for name, values in scores.items()}
        return {"cityscapes": {**scores, **means}}

    def _iou(self, names: Iterable[str]) -> float:
        ids = [LABEL_IDS[name] for name in names]
        counts = self.confusion.counts.numpy()
        targets, hits = int(counts[ids].sum()), int(counts[np.ix_(ids, ids)].sum())
        return _ratio(hits, targets + self._false_positives(ids, ids))

    def _iiou(self, names: Iterable[str], columns: Iterable[int], share: int) -> float:
        names = list(names)
        weight = [(MEAN_INSTANCE_PIXELS[name], self.instances[name]) for name in names]
        hits = sum(mean * (sums[share] / 2**SHARE_BITS) for mean, sums in weight)
        targets = sum(mean * sums[0] for mean, sums in weight)
        return _ratio(hits, targets + self._false_positives([LABEL_IDS[name] for name in names], columns))

    def _false_positives(self, rows: list[int], columns: Iterable[int]) -> int:
        """Pixels predicted as `columns` where the truth is scored and is none of `rows`."""
        others = [label for label in LABEL_IDS.values() if label not in rows]
        return int(self.confusion.counts.numpy()[np.ix_(others, list(columns))].sum())


_NAME_OF = {label: name for name, label in LABEL_IDS.items()}


def label_ids(classes: list[str]) -> np.ndarray:
    """Table (256,) uint8 from class index to the publisher's label id; an unlabelled pixel stays 255.

    Raises:
        ConfigError: `classes` are not the 19 scored ones, whose ids alone the publisher knows.
    """
    if sorted(classes) != sorted(LABEL_IDS):
        strange = [name for name in classes if name not in LABEL_IDS]
        raise ConfigError(
            f"Cityscapes' scores and files of {len(classes)} classes"
            + (f", of which it does not know {listed(strange)}" if strange else ""),
            where="data.classes",
            expected=f"the 19 classes that are scored: {listed(LABEL_IDS, 19)}",
            fix="leave data.classes and data.label_map as in configs/data/cityscapes.yaml",
        )
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(classes)] = [LABEL_IDS[name] for name in classes]
    return table


def read_instances(target: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    """The publisher's `instanceIds` (H, W) uint16 that belong to the file of label ids `target`."""
    if target is None or not target.name.endswith(TARGET_END):
        raise DataError(
            "iIoU of an image without Cityscapes' files",
            where=target,
            expected=f"masks named CITY/NAME_gtFine{TARGET_END}, as data=cityscapes has them",
        )
    path = target.with_name(target.name.removesuffix(TARGET_END) + INSTANCE_END)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if found is None:
        raise DataError(
            "the file of instances is missing or damaged",
            where=path,
            expected=f"one {INSTANCE_END} beside each {TARGET_END}: iIoU weighs pixels by their instance",
            fix="unpack gtFine_trainvaltest.zip again",
        )
    if found.shape != shape or found.dtype != np.uint16:
        raise DataError(
            f"the file of instances is {found.dtype} of shape {found.shape}",
            where=path,
            expected=f"uint16 of shape {shape}, as the mask",
            fix="unpack gtFine_trainvaltest.zip again",
        )
    return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan

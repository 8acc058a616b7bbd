"""Panoptic quality: how many segments were found, and how well their outlines fit.

Kirillov et al. 2019, "Panoptic Segmentation" (arXiv 1801.00868, section 4), by the rules of panopticapi's
`evaluation.py`. Per class, with TP the pairs of a true and a found segment of that class with IoU > 0.5,

    PQ = sum of IoU over TP / (TP + FP / 2 + FN / 2) = SQ * RQ,  SQ = mean IoU of TP,  RQ = F1 of the segments

A pixel that is void in the truth is no part of a union. A crowd can be neither found nor missed, and a found segment
that lies by more than half on void and the crowd of its class is no false positive; where an image has several crowds
of a class, the last one listed is meant. Means are over the classes with any segment; so PQ's mean is not the product
of the other two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from segtrain.errors import DataError
from segtrain.panoptic import Panoptic, Segment

IOU_BITS = 64
"""IoUs are added as integers of this many binary places: exact sums, in any order."""
COUNTS = ("tp", "fp", "fn", "iou")


class PanopticQuality:
    """PQ, SQ and RQ over all classes, over things and over stuff; memory does not grow with the images.

    Args:
        classes: names in index order.
        things: the names of those that are objects.

    Raises:
        ValueError: a thing that is no class.
    """

    def __init__(self, classes: Sequence[str], things: Collection[str]) -> None:
        strange = set(things) - set(classes)
        if strange:
            raise ValueError(f"things that are no classes: {sorted(strange)}")
        self.classes = list(classes)
        self.things = set(things)
        self.counts = {name: [0] * len(classes) for name in COUNTS}
        """Per class: segments found, invented, missed, and the sum of IoU in units of 2^-64."""

    def update(self, prediction: Panoptic, truth: Panoptic, where: object | None = None) -> None:
        """Takes in one image; `where` is named in errors.

        Raises:
            DataError: sizes differ, ids and segments do not belong together, or a class index is out of range.
        """
        if prediction.size != truth.size:
            raise DataError(
                f"a prediction of {prediction.size[1]}x{prediction.size[0]} pixels for a truth of "
                f"{truth.size[1]}x{truth.size[0]}",
                where=where,
                expected="one size",
                fix="write the prediction at the image's own size",
            )
        self._check(prediction.segments, where)
        self._check(truth.segments, where)
        # Rows are truth, columns are found; the first of each is void.
        columns = len(prediction.segments) + 1
        pairs = truth.positions(where).astype(np.int64) * columns + prediction.positions(where)
        overlap = np.bincount(pairs.ravel(), minlength=(len(truth.segments) + 1) * columns).reshape(-1, columns)
        self._count(prediction.segments, truth.segments, overlap)

    def _check(self, segments: list[Segment], where: object | None) -> None:
        for segment in segments:
            if not 0 <= segment.category < len(self.classes):
                raise DataError(
                    f"segment {segment.id} has the class index {segment.category}",
                    where=where,
                    expected=f"0 to {len(self.classes) - 1}",
                )

    def _count(self, found: list[Segment], true: list[Segment], overlap: np.ndarray) -> None:
        true_area, found_area = overlap.sum(1), overlap.sum(0)
        matched: set[int] = set()
        missed: set[int] = set()
        crowds: dict[int, int] = {}
        for row, segment in enumerate(true, 1):
            if segment.crowd:
                crowds[segment.category] = row
                continue
            missed.add(row)
            for column in (np.flatnonzero(overlap[row, 1:]) + 1).tolist():
                if found[column - 1].category != segment.category:
                    continue
                both = int(overlap[row, column])
                union = int(true_area[row] + found_area[column] - overlap[0, column]) - both
                if 2 * both > union:  # segments do not overlap, so no other one can have this much of either
                    self._add("tp", segment.category)
                    self._add("iou", segment.category, (both << IOU_BITS) // union)
                    matched.add(column)
                    missed.discard(row)
        for row in missed:
            self._add("fn", true[row - 1].category)
        for column, segment in enumerate(found, 1):
            if column in matched:
                continue
            crowd = crowds.get(segment.category)
            uncounted = overlap[0, column] + (0 if crowd is None else overlap[crowd, column])
            if 2 * uncounted <= found_area[column]:
                self._add("fp", segment.category)

    def _add(self, name: str, category: int, amount: int = 1) -> None:
        self.counts[name][category] += amount

    def state(self) -> dict[str, list[int]]:
        """Counts, in plain integers."""
        return self.counts

    def merge(self, state: dict[str, list[int]]) -> None:
        """Adds the counts of another process."""
        for name, counts in state.items():
            self.counts[name] = [a + b for a, b in zip(self.counts[name], counts, strict=True)]

    def compute(self) -> dict[str, Any]:
        """Scores in [0, 1], NaN where there is nothing to score.

        `pq`, `sq`, `rq`: means over the classes that have segments, in truth or found; the same with `_things` and
        `_stuff`. `pq_per_class` etc. by name; `tp_per_class`, `fp_per_class`, `fn_per_class`: segments.
        `classes_counted`: how many classes the means are over, also with `_things` and `_stuff`.
        """
        scores = {name: self._scores(index) for index, name in enumerate(self.classes)}
        chosen = {
            "": self.classes,
            "_things": [name for name in self.classes if name in self.things],
            "_stuff": [name for name in self.classes if name not in self.things],
        }
        result: dict[str, Any] = {}
        for end, names in chosen.items():
            for place, score in enumerate(("pq", "sq", "rq")):
                result[score + end] = _mean(scores[name][place] for name in names)
            result["classes_counted" + end] = sum(not math.isnan(scores[name][0]) for name in names)
        for place, score in enumerate(("pq", "sq", "rq")):
            result[f"{score}_per_class"] = {name: scores[name][place] for name in self.classes}
        for count in ("tp", "fp", "fn"):
            result[f"{count}_per_class"] = dict(zip(self.classes, self.counts[count], strict=True))
        return result

    def _scores(self, index: int) -> tuple[float, float, float]:
        """PQ, SQ and RQ of one class; SQ of a class of which nothing was found is 0, as panopticapi's."""
        tp, fp, fn = (self.counts[name][index] for name in ("tp", "fp", "fn"))
        if tp + fp + fn == 0:
            return math.nan, math.nan, math.nan
        iou = self.counts["iou"][index] / 2**IOU_BITS
        weight = tp + fp / 2 + fn / 2
        return iou / weight, iou / tp if tp else 0.0, tp / weight


def _mean(values: Iterable[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return math.fsum(found) / len(found) if found else math.nan

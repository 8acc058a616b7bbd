"""COCO's own evaluation, given overlaps that were measured image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import FunctionType
from typing import Any

import numpy as np

SIZES = ("all", "small", "medium", "large")
"""COCO's ranges of area, parted at 32^2 and 96^2 px."""


@dataclass(frozen=True)
class ClassInImage:
    """What of D detections and G true objects of one class in one image decides its scores.

    Attributes:
        scores: (D,) float64, falling; those of equal score in the network's order.
        found_area: by kind (D,) float64 px^2: of the box for `box`, of the mask otherwise.
        true_area: (G,) float64 px^2, as the publisher counts.
        crowd: (G,) bool.
        iou: by kind (D, G) float64.
    """

    scores: np.ndarray
    found_area: dict[str, np.ndarray]
    true_area: np.ndarray
    crowd: np.ndarray
    iou: dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """COCO's tables of one kind. T IoU thresholds 0.5:0.05:0.95, R recalls 0:0.01:1, K classes, A sizes, M limits.

    `precision` (T, R, K, A, M) and `recall` (T, K, A, M) are float64, -1 where there is no object to find.
    """

    precision: np.ndarray
    recall: np.ndarray


def verdict(images: dict[int, dict[int, ClassInImage]], kind: str, num_classes: int, limits: list[int]) -> Verdict:
    """Matches and sums up by pycocotools.

    Args:
        images: by the image's index, then by class. The result does not depend on the order of this dict: of equal
            scores those in the image of the lower index come first.
        kind: which overlap and area count.
        num_classes: with the background, class 0, which is left out.
        limits: most detections of a class in an image, ascending.
    """
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType="segm")
    known = judge.params
    known.imgIds, known.catIds, known.maxDets = sorted(images), list(range(1, num_classes)), limits
    names = count(1)  # 0 means "unmatched" there
    for index in known.imgIds:
        for label, one in images[index].items():
            _hand_over(judge, (index, label), one, kind, names)
    # What `evaluate` does, but only for classes that an image has: it would make an empty list for each of the others.
    judge.evalImgs = [
        judge.evaluateImg(index, label, area, limits[-1]) if label in images[index] else None
        for label in known.catIds
        for area in known.areaRng
        for index in known.imgIds
    ]
    judge._paramsEval = known
    _quiet(COCOeval.accumulate)(judge)
    return Verdict(judge.eval["precision"], judge.eval["recall"])


def mean(values: np.ndarray) -> float:
    """Of what is in a table, NaN where all of it is missing."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else math.nan


def _hand_over(judge: Any, key: tuple[int, int], one: ClassInImage, kind: str, names: Any) -> None:
    crowds = one.crowd.astype(int).tolist()
    judge._gts[key] = [
        {"id": next(names), "area": area, "iscrowd": crowd, "ignore": crowd}
        for area, crowd in zip(one.true_area.tolist(), crowds, strict=True)
    ]
    judge._dts[key] = [
        {"id": next(names), "area": area, "score": score}
        for area, score in zip(one.found_area[kind].tolist(), one.scores.tolist(), strict=True)
    ]
    judge.ious[key] = one.iou[kind] if one.iou[kind].size else []


def _quiet(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same code with a `print` that says nothing. To redirect sys.stdout would silence other threads, too."""
    assert isinstance(method, FunctionType)
    names = {**method.__globals__, "print": lambda *words: None}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__)

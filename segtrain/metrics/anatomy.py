"""What kind of mistake each wrong pixel is, and what mending a kind would be worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from segtrain.metrics.base import Judged, SummedMetric
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.metrics.near import near, window
from segtrain.types import IGNORE_INDEX, Fraction, NonNegativeFloat

RIGHT = 0
BOUNDARY_SLIP = 1
CLASS_CONFUSION = 2
MISSED_REGION = 3
INVENTED_REGION = 4

KINDS = {
    "boundary_slip": BOUNDARY_SLIP,
    "class_confusion": CLASS_CONFUSION,
    "missed_region": MISSED_REGION,
    "invented_region": INVENTED_REGION,
}
SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}
"""Areas in px below which a target's region is of that size (COCO's)."""
PAIRS = 20
RADIUS_RATIO = 0.0075
LEAST_RADIUS = 2.0


def slip_radius(shape: tuple[int, ...], ratio: float = RADIUS_RATIO, least: float = LEAST_RADIUS) -> float:
    """How many px an edge may be misplaced: a share of the diagonal of (H, W), at least `least`."""
    return max(least, ratio * math.hypot(*shape))


def error_kinds(target: np.ndarray, prediction: np.ndarray, radius: float | None = None) -> np.ndarray:
    """The kind of every pixel, (H, W) uint8: `RIGHT`, one of `KINDS`, or 255 where the target is unlabelled.

    A region is a set of pixels of one class that touch, corners included: T is the target's region at the pixel, P
    the prediction's. A wrong pixel is the first that fits:

    1. boundary slip: the predicted class occurs in the target within `radius` px, and the target's class in the
       prediction. Moved by so much, the edge would have been right. In a band that nobody labelled, the edge runs
       where the nearest labels change.
    2. class confusion: T and P overlap with an IoU above 0.5. The region was found and called by another name.
    3. missed region: less than half of T is predicted as its class.
    4. invented region: less than half of P has its class in the target.
    5. class confusion: both regions were mostly found, and still differ here.

    Regions of the prediction go on across unlabelled pixels; overlaps and halves count labelled pixels only.

    Args:
        target, prediction: (H, W) uint8; 255 in the target where unlabelled.
        radius: px, Euclidean; None is 0.75 % of the image's diagonal, at least 2.
    """
    return _dissect(target, prediction, slip_radius(target.shape) if radius is None else radius)[0]


class ErrorAnatomy(SummedMetric):
    """How many wrong pixels are of which kind: in all, by class, by size of the target's region, by pair of classes.

    `gain` of a kind is what mIoU would rise by if its pixels were right and the others as they are. Gains do not add
    up; a gain can be negative where mending leaves a class counted that mIoU had left out, or the reverse.

    Args:
        classes: names in index order.
        radius_ratio, least_radius: an image's `radius` in `error_kinds`, as a share of its diagonal, and its least px.
    """

    def __init__(
        self,
        classes: list[str],
        *,
        radius_ratio: Fraction = RADIUS_RATIO,
        least_radius: NonNegativeFloat = LEAST_RADIUS,
    ) -> None:
        self.classes = classes
        self.radius_ratio = radius_ratio
        self.least_radius = least_radius
        number = len(classes)
        self.sums = {
            "pairs": np.zeros((1 + len(KINDS), number, number), np.int64),  # by kind, target, prediction
            "sizes": np.zeros((len(SIZES), 1 + len(KINDS)), np.int64),
        }

    def update(self, judged: Judged) -> None:
        target, prediction = judged.target, judged.prediction
        kinds, sizes = _dissect(target, prediction, slip_radius(target.shape, self.radius_ratio, self.least_radius))
        counted = target != IGNORE_INDEX
        number = len(self.classes)
        pair = target[counted].astype(np.int64) * number + prediction[counted]
        found = np.bincount(kinds[counted] * np.int64(number**2) + pair, minlength=self.sums["pairs"].size)
        self.sums["pairs"] += found.reshape(self.sums["pairs"].shape)
        wrong = counted & (kinds != RIGHT)
        limits = list(SIZES.values())[:-1]
        place = np.searchsorted(limits, sizes, side="right") * (1 + len(KINDS)) + kinds[wrong]
        self.sums["sizes"] += np.bincount(place, minlength=self.sums["sizes"].size).reshape(self.sums["sizes"].shape)

    def compute(self) -> dict[str, Any]:
        pairs = self.sums["pairs"]
        by_kind = pairs.sum((1, 2))
        errors = int(by_kind[1:].sum())
        by_class, by_size = pairs.sum(2), self.sums["sizes"]
        found = {
            "pixels": {name: int(by_kind[kind]) for name, kind in KINDS.items()},
            "share_of_errors": {name: _share(by_kind[kind], errors) for name, kind in KINDS.items()},
            "by_class": {one: _named(by_class[:, place]) for place, one in enumerate(self.classes)},
            "by_size": {size: _named(by_size[place]) for place, size in enumerate(SIZES)},
            "pairs": self._confused(),
            "gain": self._gains(),
            "radius": {"share_of_diagonal": self.radius_ratio, "least_px": self.least_radius},
        }
        return {"anatomy": found}

    def _confused(self) -> list[dict[str, Any]]:
        """The pairs of classes most often confused; equal ones in the order of the classes."""
        confused = self.sums["pairs"][CLASS_CONFUSION]
        order = np.argsort(-confused, axis=None, kind="stable")[:PAIRS]
        places = [divmod(int(place), len(self.classes)) for place in order]
        return [
            {"target": self.classes[true], "prediction": self.classes[found], "pixels": int(confused[true, found])}
            for true, found in places
            if confused[true, found]
        ]

    def _gains(self) -> dict[str, float]:
        pairs = self.sums["pairs"]
        whole = pairs.sum(0)
        before = _miou(whole)
        mended = {name: whole - pairs[kind] + np.diag(pairs[kind].sum(1)) for name, kind in KINDS.items()}
        return {name: _miou(counts) - before for name, counts in mended.items()}


@dataclass(frozen=True)
class _Regions:
    """Regions of one label map: `ids` (H, W), 0 where not looked at; by id the labelled pixels and the right ones."""

    ids: np.ndarray
    area: np.ndarray
    right: np.ndarray


def _dissect(target: np.ndarray, prediction: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The kinds (H, W), and for each wrong pixel, in row order, the area of its region of the target."""
    labelled = target != IGNORE_INDEX
    wrong = labelled & (target != prediction)
    kinds = np.where(labelled, np.uint8(RIGHT), np.uint8(IGNORE_INDEX))
    if not wrong.any():
        return kinds, np.zeros(0, np.int64)
    truth = _regions(target, target[wrong], prediction == target, labelled)
    drawn = _regions(prediction, prediction[wrong], prediction == target, labelled)
    kinds[wrong] = _region_kinds(truth, drawn, wrong)
    kinds[_slips(target, prediction, wrong, radius)] = BOUNDARY_SLIP
    return kinds, truth.area[truth.ids[wrong]]


def _slips(target: np.ndarray, prediction: np.ndarray, wrong: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) bool: wrong pixels near both what they were called and what they should have been."""
    return _reached(closed(target), prediction, wrong, radius) & _reached(prediction, target, wrong, radius)


def closed(target: np.ndarray) -> np.ndarray:
    """The target (H, W) with each unlabelled pixel given the class of the nearest labelled one.

    Where annotators leave a band around every object, as VOC's do, the edge is somewhere inside it: without this, no
    error beside the band would be near an edge.
    """
    unlabelled = target == IGNORE_INDEX
    if not unlabelled.any() or unlabelled.all():
        return target
    _, nearest = cv2.distanceTransformWithLabels(
        unlabelled.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    classes = np.zeros(int(nearest.max()) + 1, target.dtype)
    classes[nearest[~unlabelled]] = target[~unlabelled]
    return classes[nearest]


def _reached(labels: np.ndarray, wanted: np.ndarray, wrong: np.ndarray, radius: float) -> np.ndarray:
    """Wrong pixels within `radius` of a pixel of `labels` whose class is the one `wanted` at the wrong pixel."""
    reached = np.zeros(wrong.shape, dtype=bool)
    for index in _present(wanted[wrong]):
        asked = wrong & (wanted == index)
        box = window(asked, radius)
        reached[box] |= asked[box] & near(labels[box] == index, radius)
    return reached


def _regions(labels: np.ndarray, looked_at: np.ndarray, right: np.ndarray, labelled: np.ndarray) -> _Regions:
    """The regions of the classes that `looked_at` holds; the others are never asked for."""
    ids = np.zeros(labels.shape, np.int32)
    total = 0
    for index in _present(looked_at):
        box = window(labels == index, 0)
        mask = labels[box] == index
        number, own = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        ids[box][mask] = own[mask] + total
        total += number - 1
    area = np.bincount(ids[labelled], minlength=total + 1)
    return _Regions(ids, area, np.bincount(ids[right], minlength=total + 1))


def _region_kinds(truth: _Regions, drawn: _Regions, wrong: np.ndarray) -> np.ndarray:
    """Rules 2 to 5 for each wrong pixel, in row order."""
    true, found = truth.ids[wrong].astype(np.int64), drawn.ids[wrong].astype(np.int64)
    # T and P are of different classes, so every pixel they share is wrong and is counted here.
    pairs, place, shared = np.unique(true * len(drawn.area) + found, return_inverse=True, return_counts=True)
    true_of, found_of = np.divmod(pairs, len(drawn.area))
    union = truth.area[true_of] + drawn.area[found_of] - shared
    missed = 2 * truth.right[true_of] < truth.area[true_of]
    invented = 2 * drawn.right[found_of] < drawn.area[found_of]
    cases = [2 * shared > union, missed, invented]
    return np.select(cases, [CLASS_CONFUSION, MISSED_REGION, INVENTED_REGION], CLASS_CONFUSION)[place]


def _present(labels: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.bincount(labels))


def _named(by_kind: np.ndarray) -> dict[str, int]:
    return {name: int(by_kind[kind]) for name, kind in KINDS.items()}


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else math.nan


def _miou(counts: np.ndarray) -> float:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts = torch.from_numpy(counts)
    return matrix.miou()

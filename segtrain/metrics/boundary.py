"""How well edges are drawn: Boundary IoU, boundary F and the trimap curve, over a dataset."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
import torch

from segtrain.metrics.base import Judged, SummedMetric
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.metrics.fixed_point import from_fixed, to_fixed
from segtrain.metrics.near import distance, distance_limit, near, window
from segtrain.types import IGNORE_INDEX, Fraction, PositiveInt

SQUARE = np.ones((3, 3), np.uint8)
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
F_BITS = 40
"""Sums of F in units of 2**-40: exact to twelve digits, and enough for eight million images."""
RADII = (1, 2, 4, 8, 16, 32)


def band_width(shape: tuple[int, ...], ratio: float) -> int:
    """Width in px of an image's boundary band, max(1, round(ratio * diagonal)); shape (H, W)."""
    return max(1, round(ratio * math.hypot(*shape)))


def inner_band(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask (H, W) bool less than `width` + 1 steps from its outside; beyond the image is outside.

    Source: Cheng et al. 2021, "Boundary IoU", and the erosion of their boundary-iou-api.
    """
    inside = cv2.erode(mask.view(np.uint8), SQUARE, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~inside.view(bool)


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) bool with a 4-neighbour outside of it; the image's border is no edge."""
    return mask & ~cv2.erode(mask.view(np.uint8), CROSS).view(bool)


def boundary_f(target: np.ndarray, prediction: np.ndarray, tolerance: float) -> float:
    """F1 of one class's outlines in one image, matched within `tolerance` px by Euclidean distance.

    Precision is the share of the prediction's outline near the target's, recall the reverse (Csurka et al. 2013).
    Masks are (H, W) bool. 0 where only one has an outline, NaN where neither has: there is nothing to draw.
    """
    true, found = outline(target), outline(prediction)
    if not true.any() and not found.any():
        return math.nan
    if not true.any() or not found.any():
        return 0.0
    precision = np.count_nonzero(found & near(true, tolerance)) / np.count_nonzero(found)
    recall = np.count_nonzero(true & near(found, tolerance)) / np.count_nonzero(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def label_edges(target: np.ndarray) -> np.ndarray:
    """(H, W) bool: labelled pixels with a labelled 4-neighbour of another class."""
    edges = np.zeros(target.shape, dtype=bool)
    for here, there in (((slice(1, None),), (slice(None, -1),)), ((..., slice(1, None)), (..., slice(None, -1)))):
        differ = (target[here] != target[there]) & (target[here] != IGNORE_INDEX) & (target[there] != IGNORE_INDEX)
        edges[here] |= differ
        edges[there] |= differ
    return edges


class BoundaryScores(SummedMetric):
    """Boundary IoU and boundary F per class, and the scores near boundaries as a curve over distance.

    Unlabelled pixels belong to no class, in the target and in the prediction: a prediction that is right on every
    labelled pixel has 1 everywhere, however it is drawn inside the void.

    - Boundary IoU (Cheng et al. 2021): IoU of the inner bands, intersections and unions added up over the dataset.
      `min_iou` is the lesser of it and the mask's IoU, per class.
    - Boundary F (Csurka et al. 2013): `f` is the mean over the images that have the class, in the target or in the
      prediction; `mean_f` is over images the mean of each image's classes. A class without an outline in either (it
      fills the image) is left out there.
    - Trimap (Kohli et al. 2009; DeepLab): mIoU and pixel accuracy of the labelled pixels within r px of the band.

    Args:
        classes: names in index order.
        dilation_ratio: width of the bands as a share of the diagonal: 0.02 in COCO and LVIS, 0.005 in Cityscapes.
        f_tolerance: greatest distance of matched outlines as a share of the diagonal.
        radii: px, ascending.
        trimap: what the curve is measured from: `void` pixels, as around VOC's objects; class `edges`; `auto` is void
            where the dataset has any.
    """

    def __init__(
        self,
        classes: list[str],
        *,
        dilation_ratio: Fraction = 0.02,
        f_tolerance: Fraction = 0.0075,
        radii: tuple[PositiveInt, ...] = RADII,
        trimap: Literal["auto", "void", "edges"] = "auto",
    ) -> None:
        if list(radii) != sorted(set(radii)) or not radii:
            raise ValueError(f"radii are {radii}: they must ascend")
        self.classes = classes
        self.dilation_ratio = dilation_ratio
        self.f_tolerance = f_tolerance
        self.radii = radii
        self.trimap = trimap
        number = len(classes)
        self.sums = {
            "masks": np.zeros((number, number), np.int64),
            "band": np.zeros((2, number), np.int64),  # intersection, union
            "f": np.zeros((2, number), np.int64),  # sum of F, images
            "image_f": np.zeros(2, np.int64),
            "edges": np.zeros((len(radii), number, number), np.int64),
            "void": np.zeros((len(radii), number, number), np.int64),
            "void_pixels": np.zeros(1, np.int64),
        }

    def update(self, judged: Judged) -> None:
        target, void = judged.target, judged.target == IGNORE_INDEX
        prediction = np.where(void, np.uint8(IGNORE_INDEX), judged.prediction)
        self.sums["masks"] += self._pairs(target, judged.prediction)
        self.sums["void_pixels"] += np.count_nonzero(void)
        self._add_classes(target, prediction, ~void)
        if self.trimap != "edges" and void.any():
            self.sums["void"] += self._near_band(void, target, prediction)
        if self.trimap != "void":
            self.sums["edges"] += self._near_band(label_edges(target), target, prediction)

    def compute(self) -> dict[str, Any]:
        intersection, union = self.sums["band"]
        iou = _ratio(intersection, union)
        mask_iou = np.array(_scores(self.sums["masks"]).iou)
        least = np.minimum(mask_iou, iou)
        f = _ratio(from_fixed(self.sums["f"][0], F_BITS), self.sums["f"][1])
        image_f = from_fixed(self.sums["image_f"][:1], F_BITS)
        named = {
            "iou": self._by_class(iou),
            "mean_iou": _mean(iou),
            "min_iou": self._by_class(least),
            "mean_min_iou": _mean(least),
            "f": self._by_class(f),
            "mean_f": float(_ratio(image_f, self.sums["image_f"][1:])[0]),
        }
        sizes = {"dilation_ratio": self.dilation_ratio, "f_tolerance": self.f_tolerance}
        return {"boundary": {**sizes, **named, "trimap": self._curve()}}

    def _add_classes(self, target: np.ndarray, prediction: np.ndarray, labelled: np.ndarray) -> None:
        width = band_width(target.shape, self.dilation_ratio)
        tolerance = self.f_tolerance * math.hypot(*target.shape)
        found = []
        # Only classes that occur, each in the box around it, so that 150 classes cost little more than 20.
        for index in np.flatnonzero(np.bincount(np.concatenate([target[labelled], prediction[labelled]]))):
            both = window((target == index) | (prediction == index), tolerance + 1)
            true, drawn = target[both] == index, prediction[both] == index
            true_band, drawn_band = inner_band(true, width), inner_band(drawn, width)
            # A band is part of a mask, and no mask holds void, so that none is counted.
            bands = np.count_nonzero(true_band & drawn_band), np.count_nonzero(true_band | drawn_band)
            self.sums["band"][:, index] += bands
            f = boundary_f(true, drawn, tolerance)
            if not math.isnan(f):
                self.sums["f"][:, index] += _fixed_and_one(f)
                found.append(f)
        if found:
            self.sums["image_f"] += _fixed_and_one(sum(found) / len(found))

    def _near_band(self, band: np.ndarray, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """(radii, C, C): the pairs of the labelled pixels within each radius of the band."""
        limits = np.array([distance_limit(radius) for radius in self.radii])
        counted = target != IGNORE_INDEX
        ring = np.searchsorted(limits, distance(band)[counted])
        number = len(self.classes)
        within = ring < len(limits)
        pair = target[counted][within].astype(np.int64) * number + prediction[counted][within]
        rings = np.bincount(ring[within] * number**2 + pair, minlength=len(limits) * number**2)
        return rings.reshape(-1, number, number).cumsum(0)

    def _pairs(self, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.update(prediction, target)
        return matrix.counts.numpy()

    def _curve(self) -> dict[str, Any]:
        band = self.trimap
        if band == "auto":
            band = "void" if self.sums["void_pixels"][0] else "edges"
        scores = [_scores(pairs) for pairs in self.sums[band]]
        return {
            "band": band,
            "radius": list(self.radii),
            "miou": [one.miou for one in scores],
            "pixel_accuracy": [one.pixel_accuracy for one in scores],
            "pixels": self.sums[band].sum((1, 2)).tolist(),
        }

    def _by_class(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes, values.tolist(), strict=True))


def _fixed_and_one(f: float) -> np.ndarray:
    return np.array([to_fixed(f, F_BITS), 1], np.int64)


def _scores(pairs: np.ndarray) -> Any:
    matrix = ConfusionMatrix(len(pairs))
    matrix.counts = torch.from_numpy(pairs)
    return matrix.compute()


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing below."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _mean(values: np.ndarray) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else math.nan

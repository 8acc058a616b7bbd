"""How far a score would move on other images of the same kind, and whether one network beats another by more."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.atomic import write_atomically
from segtrain.errors import DataError, listed
from segtrain.metrics.base import ImageMetric, Judged
from segtrain.metrics.confusion import ConfusionMatrix

FIELDS = ("classes", "names", "image", "target", "prediction", "count")
DRAWS_AT_ONCE = 250
"""Resamples whose weights are held in memory together."""


class PerImageCounts(ImageMetric):
    """The confusion matrix of every image, of which only the pairs that occur are kept.

    Grows with the images: about 12 bytes per pair of classes that an image has, so a megabyte for 1,449 images of VOC.
    What it holds does not depend on the order of images.

    Args:
        classes: names in index order.
    """

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.images: dict[str, np.ndarray] = {}
        """By name the pairs that occur, int64 (3, pairs): target, prediction, count."""

    @property
    def names(self) -> list[str]:
        """The images, sorted."""
        return sorted(self.images)

    def update(self, judged: Judged) -> None:
        matrix = ConfusionMatrix(len(self.classes))
        matrix.update(judged.prediction, judged.target)
        self.add(judged.record.name, matrix.counts.numpy())

    def add(self, name: str, counts: np.ndarray) -> None:
        """Takes in the confusion matrix (C, C) of one image; rows are targets.

        Raises:
            ValueError: an image of this name was counted already.
        """
        target, prediction = np.nonzero(counts)
        self._put(name, np.stack([target, prediction, counts[target, prediction]]).astype(np.int64))

    def state(self) -> dict[str, np.ndarray]:
        return self.images

    def merge(self, state: dict[str, np.ndarray]) -> None:
        for name, pairs in state.items():
            self._put(name, pairs)

    def compute(self) -> dict[str, Any]:
        """Nothing: `intervals` and `paired` make scores of these counts."""
        return {}

    def sums(self) -> np.ndarray:
        """(3, images, C) int64, images by name: pixels that are right, of the target, and of the prediction."""
        found = np.zeros((3, len(self.images), len(self.classes)), np.int64)
        for place, name in enumerate(self.names):
            target, prediction, count = self.images[name]
            right = target == prediction
            np.add.at(found[0, place], target[right], count[right])
            np.add.at(found[1, place], target, count)
            np.add.at(found[2, place], prediction, count)
        return found

    def save(self, path: Path) -> None:
        """Writes an `.npz` of plain arrays in one step; the same counts give the same bytes."""
        pairs = [self.images[name] for name in self.names]
        lengths = [one.shape[1] for one in pairs]
        target, prediction, count = np.concatenate([np.zeros((3, 0), np.int64), *pairs], axis=1)
        content = BytesIO()
        np.savez_compressed(
            content,
            classes=np.array(self.classes, dtype=np.str_),
            names=np.array(self.names, dtype=np.str_),
            image=np.repeat(np.arange(len(pairs), dtype=np.int32), lengths),
            target=target.astype(np.uint8),
            prediction=prediction.astype(np.uint8),
            count=count,
        )
        write_atomically(path, content.getbuffer())

    @classmethod
    def load(cls, path: Path) -> PerImageCounts:
        """What `save` wrote.

        Raises:
            DataError: there is no such file, or it is another one.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                classes, names, image, *pairs = (archive[field] for field in FIELDS)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"counts per image cannot be read: {error}",
                where=path,
                expected="the per_image.npz of an evaluation",
                fix="python -m segtrain evaluate checkpoint=… writes it",
            ) from error
        counts = cls([str(name) for name in classes])
        ends = np.searchsorted(image, np.arange(len(names) + 1))
        table = np.stack(pairs).astype(np.int64)
        for place, name in enumerate(names):
            counts._put(str(name), table[:, ends[place] : ends[place + 1]])
        return counts

    def _put(self, name: str, pairs: np.ndarray) -> None:
        if name in self.images:
            raise ValueError(f"image {name} was counted twice: every image of an evaluation has a name of its own")
        self.images[name] = pairs


def intervals(counts: PerImageCounts, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Percentile intervals of the dataset's scores, by drawing its images again with replacement (Efron 1979).

    Says how far scores move with the choice of images, not with the seed of training. With fewer than some 50 images
    the intervals are too narrow. A class that a draw has nowhere is left out of that draw, as in `mIoU`.

    Args:
        counts: of one evaluation.
        resamples: how many times the images are drawn.
        level: share of the draws that an interval holds, in (0, 1).
        seed: of the draws; the same one gives the same intervals.

    Returns:
        `level`, `resamples`, `images`; `[low, high]` as `miou`, `pixel_accuracy` and by class as `iou`; NaN where no
        draw has a score.
    """
    sums = counts.sums()
    miou, accuracy, iou = _drawn(sums.shape[1], resamples, seed, partial(_scores, sums=sums))
    return {
        "level": level,
        "resamples": resamples,
        "images": sums.shape[1],
        "miou": _interval(miou, level),
        "pixel_accuracy": _interval(accuracy, level),
        "iou": {name: _interval(iou[:, place], level) for place, name in enumerate(counts.classes)},
    }


def paired(
    a: PerImageCounts, b: PerImageCounts, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Whether two evaluations of the same images differ by more than the choice of images explains.

    Both are scored on the same draws of images, so that what makes an image hard for both cancels. The two-sided p is
    twice the smaller share of draws on either side of no difference, with one draw added to each so that no p is 0.
    Its least value is 2 / (`resamples` + 1), and Holm's is that times the number of classes: take enough draws.

    Args:
        a, b: of two evaluations; differences are b - a.
        resamples, seed, level: as in `intervals`.

    Returns:
        `images`, `resamples`, `level`; under `miou`, `pixel_accuracy` and for each class of `iou`: `a`, `b`,
        `difference`, `interval` of the difference, `p`; classes also have `p_holm`, corrected for their number.

    Raises:
        ValueError: other images or other classes.
    """
    _check_pair(a, b)
    both = a.sums(), b.sums()
    drawn = [_drawn(len(a.images), resamples, seed, partial(_scores, sums=one)) for one in both]
    everything = np.ones((1, len(a.images)))
    whole = [_scores(everything, one) for one in both]

    def compared(place: int, column: Any) -> dict[str, Any]:
        score_a, score_b = (float(one[place][0][column]) for one in whole)
        change = (drawn[1][place] - drawn[0][place])[:, column]
        scores = {"a": score_a, "b": score_b, "difference": score_b - score_a}
        return {**scores, "interval": _interval(change, level), "p": _p_value(change)}

    iou = {name: compared(2, index) for index, name in enumerate(a.classes)}
    for one, corrected in zip(iou.values(), holm([one["p"] for one in iou.values()]), strict=True):
        one["p_holm"] = corrected
    head = {"images": len(a.images), "resamples": resamples, "level": level}
    return {**head, "miou": compared(0, 0), "pixel_accuracy": compared(1, 0), "iou": iou}


def holm(p_values: list[float]) -> list[float]:
    """P-values corrected for their number by Holm's method (1979); NaN stays NaN and is not counted."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - rank)))
        corrected[place] = least
    return corrected


def _drawn(
    images: int, resamples: int, seed: int, score: Callable[[np.ndarray], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """The scores of every draw: of weights (draws, images) that say how often each image was drawn."""
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, DRAWS_AT_ONCE):
        draws = min(DRAWS_AT_ONCE, resamples - start)
        picked = generator.integers(0, max(1, images), (draws, images)) + images * np.arange(draws)[:, None]
        weights = np.bincount(picked.ravel(), minlength=draws * images).reshape(draws, images)
        parts.append(score(weights.astype(np.float64)))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _scores(weights: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (draws, images), sums (3, images, C) -> mIoU (draws, 1), pixel accuracy (draws, 1), IoU (draws, C)."""
    # Products of counts stay below 2**53, so these sums are exact in float64 however BLAS orders them.
    right, target, predicted = (weights @ part for part in sums.astype(np.float64))
    union = target + predicted - right
    iou = np.divide(right, union, out=np.full_like(union, np.nan), where=union > 0)
    counted = (union > 0).sum(1, keepdims=True)
    total = np.nansum(iou, axis=1, keepdims=True)
    miou = np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0)
    pixels = target.sum(1, keepdims=True)
    accuracy = np.divide(right.sum(1, keepdims=True), pixels, out=np.full_like(pixels, np.nan), where=pixels > 0)
    return miou, accuracy, iou


def _interval(values: np.ndarray, level: float) -> list[float]:
    found = values[~np.isnan(values)]
    if not len(found):
        return [math.nan, math.nan]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _p_value(change: np.ndarray) -> float:
    found = change[~np.isnan(change)]
    if not len(found):
        return math.nan
    below, above = np.count_nonzero(found <= 0), np.count_nonzero(found >= 0)
    return min(1.0, 2 * (min(below, above) + 1) / (len(found) + 1))


def _check_pair(a: PerImageCounts, b: PerImageCounts) -> None:
    if a.classes != b.classes:
        raise ValueError(f"other classes: {listed(a.classes)}; and {listed(b.classes)}")
    only_a, only_b = (sorted(one.images.keys() - other.images.keys()) for one, other in ((a, b), (b, a)))
    if only_a or only_b:
        found = [f"only {side} has {listed(names)}" for side, names in (("a", only_a), ("b", only_b)) if names]
        raise ValueError(f"images cannot be paired: {'; '.join(found)}")

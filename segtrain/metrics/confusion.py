"""The confusion matrix of a whole dataset, counted in integers, and the scores that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from segtrain.types import IGNORE_INDEX

LABELS_PER_CALL = 2**24
"""OpenCV counts in float32, whose integers are exact up to here."""

LANES = 32
"""Tables that an accelerator counts in side by side: neighbours are mostly alike, and threads queue at one counter."""

Labels = Tensor | np.ndarray
Absent = Literal["ignore", "target_only", "zero"]
ABSENT: tuple[Absent, ...] = get_args(Absent)
"""What a mean IoU does with a class that is nowhere; see `ConfusionMatrix.miou`."""


@dataclass(frozen=True)
class Scores:
    """Scores of a dataset, all in [0, 1]; NaN where there is nothing to score.

    `iou`, `dice`, `precision` and `recall` have one value per class: NaN for a class that neither targets nor
    predictions have (`recall`: that no target has, `precision`: that no prediction has). The means leave NaN out;
    `miou` and `mean_dice` are over `classes_counted` classes. `accuracy` is another name of recall.
    `fw_iou` weighs each class that targets have by its pixels. `pixels` is each class's share of the labelled pixels.
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: list[float]
    accuracy: list[float]
    classes_counted: int
    pixels: list[float]
    fw_iou: float
    mean_dice: float
    mean_precision: float
    mean_recall: float
    dice: list[float]
    precision: list[float]
    recall: list[float]


class ConfusionMatrix:
    """Counts of (target, prediction) pairs of labelled pixels; memory does not grow with the images.

    `counts` (C, C) int64 on the CPU: rows are targets, columns predictions. To add up ranks, sum `counts`.

    Args:
        num_classes: C, background included and the ignored label not.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._on_device: Tensor | None = None  # what was counted on an accelerator and not yet brought here

    @property
    def counts(self) -> Tensor:
        """The matrix (C, C) int64 on the CPU; reading it waits for an accelerator, where one counts.

        Raises:
            ValueError: labels seen on an accelerator held a value that is no class.
        """
        if self._on_device is not None:
            seen, self._on_device = self._on_device.cpu(), None
            classes = self.num_classes
            if seen[classes + 1].any() or seen[:, classes].any():
                raise ValueError(
                    f"labels hold a value that is no class: 0 to {classes - 1}, or {IGNORE_INDEX} in targets"
                )
            self._counts += seen[:classes, :classes]
        return self._counts

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._counts, self._on_device = counts, None

    def update(self, prediction: Labels, target: Labels) -> None:
        """Adds the pixels of one or more images.

        Args:
            prediction: classes in [0, C), any shape, uint8 or another integer dtype, on any device.
            target: the same shape, classes in [0, C) or `IGNORE_INDEX`, whose pixels are not counted.

        Raises:
            TypeError: labels that are not integers.
            ValueError: shapes that differ, or a value that is no class: nothing is dropped silently.
        """
        if tuple(prediction.shape) != tuple(target.shape):
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
        device = _device(prediction) if _device(prediction).type != "cpu" else _device(target)
        if device.type == "cpu":
            self.counts += self._count_on_cpu(np.asarray(prediction), np.asarray(target))
        else:
            labels = (torch.as_tensor(labels).to(device) for labels in (prediction, target))
            seen = self._count_on_device(*labels)
            self._on_device = seen if self._on_device is None else self._on_device + seen

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix.

        Raises:
            ValueError: it has another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"a matrix of {other.num_classes} classes cannot be added to one of {self.num_classes}")
        self.counts += other.counts

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        total = ConfusionMatrix(self.num_classes)
        total.merge(self)
        total.merge(other)
        return total

    def compute(self) -> Scores:
        """All scores of what was counted so far."""
        correct, targets, union = self._correct_targets_union()
        predicted = union - targets + correct
        iou, recall, precision = correct / union, correct / targets, correct / predicted
        dice = 2 * correct / (targets + predicted)
        return Scores(
            miou=_mean(iou),
            mean_accuracy=_mean(recall),
            pixel_accuracy=float(correct.sum() / targets.sum()),
            iou=iou.tolist(),
            accuracy=recall.tolist(),
            classes_counted=int((union > 0).sum()),
            pixels=(targets / targets.sum()).tolist(),
            # A class that no target has weighs nothing, even where its IoU is NaN.
            fw_iou=float((targets * iou.nan_to_num(0.0)).sum() / targets.sum()),
            mean_dice=_mean(dice),
            mean_precision=_mean(precision),
            mean_recall=_mean(recall),
            dice=dice.tolist(),
            precision=precision.tolist(),
            recall=recall.tolist(),
        )

    def miou(self, absent: Absent = "ignore") -> float:
        """Mean IoU under a convention for absent classes, of which published numbers use several.

        Args:
            absent: `ignore` leaves out classes that neither targets nor predictions have (`compute`'s choice;
                FCN, Cityscapes); `target_only` leaves out those that no target has (deeplab-pytorch); `zero`
                leaves out none and takes an absent one as 0 (semseg).
        """
        correct, targets, union = self._correct_targets_union()
        iou = correct / union
        if absent == "target_only":
            return _mean(iou[targets > 0])
        if absent == "zero":
            return float(iou.nan_to_num(0.0).mean())
        return _mean(iou)

    def _correct_targets_union(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.double()
        correct, targets = counts.diagonal(), counts.sum(1)
        return correct, targets, targets + counts.sum(0) - correct

    def _count_on_cpu(self, prediction: np.ndarray, target: np.ndarray) -> Tensor:
        labels = (target, prediction)
        if any(one.dtype != np.uint8 for one in labels):
            # First, since as bytes -1 would become 255 and 256 would become 0.
            self._check(prediction, target)
        pairs = [one.astype(np.uint8, copy=False).reshape(1, -1) for one in labels]
        # OpenCV's two-dimensional histogram of bytes is several times faster than any bincount.
        bins, ranges = [IGNORE_INDEX + 1, self.num_classes], [0, IGNORE_INDEX + 1, 0, self.num_classes]
        seen = torch.zeros(bins, dtype=torch.int64)
        for start in range(0, target.size, LABELS_PER_CALL):
            part = [one[:, start : start + LABELS_PER_CALL] for one in pairs]
            seen += torch.from_numpy(cv2.calcHist(part, [0, 1], None, bins, ranges)).long()
        if int(seen.sum()) != target.size or seen[self.num_classes : IGNORE_INDEX].any():
            self._check(prediction, target)
        return seen[: self.num_classes]

    def _count_on_device(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Counts (C + 2, C + 1) that stay on the device: row C is ignored, row C + 1 and column C are no class."""
        if torch.uint8 not in (prediction.dtype, target.dtype) or prediction.dtype != target.dtype:
            self._check(prediction, target)  # waits for the device; bytes need not, they all have a place in the table
        classes = self.num_classes
        rows = torch.where(target < classes, target.long(), classes + 1).masked_fill(target == IGNORE_INDEX, classes)
        pairs = (rows * (classes + 1) + prediction.long().clamp(max=classes)).flatten()
        # Not `bincount`, which reads the least and the largest value back on a GPU, whatever its `minlength`.
        bins = (classes + 2) * (classes + 1)
        lane = torch.arange(len(pairs), device=pairs.device) % LANES
        ones = torch.ones_like(pairs, dtype=torch.int32)
        counts = ones.new_zeros(LANES * bins).scatter_add_(0, lane * bins + pairs, ones)
        return counts.view(LANES, classes + 2, classes + 1).sum(0)

    def _check(self, prediction: Labels, target: Labels) -> None:
        """Raises if a value is no class."""
        self._check_range("prediction", prediction, "")
        self._check_range("target", target * (target != IGNORE_INDEX), f", and {IGNORE_INDEX} is ignored")

    def _check_range(self, name: str, labels: Labels, also: str) -> None:
        dtype = str(labels.dtype).removeprefix("torch.")
        if not dtype.startswith(("int", "uint")):
            raise TypeError(f"{name} is {dtype}: class indices are integers, as uint8 or int64")
        low, high = (int(labels.min()), int(labels.max())) if math.prod(labels.shape) else (0, 0)
        if low < 0 or high >= self.num_classes:
            found = low if low < 0 else high
            raise ValueError(f"{name} holds {found}: classes are 0 to {self.num_classes - 1}{also}")


def _device(labels: Labels) -> torch.device:
    return labels.device if isinstance(labels, Tensor) else torch.device("cpu")


def _mean(values: Tensor) -> float:
    """Mean of what is not NaN; NaN if all is."""
    found = values[~values.isnan()]
    return float(found.mean()) if len(found) else math.nan

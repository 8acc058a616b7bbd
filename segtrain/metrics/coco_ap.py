"""Average precision as COCO counts it, by box, by mask and by boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.instances import Detections, Instances
from segtrain.metrics.coco_judge import SIZES, ClassInImage, Verdict, mean, verdict
from segtrain.metrics.object_overlap import Cut, boundary_iou, box_iou, cuts, mask_iou
from segtrain.rle import coco_mask
from segtrain.types import Fraction, PositiveInt

AT_50, AT_75 = 0, 5
"""Places of IoU 0.5 and 0.75 among COCO's thresholds 0.5:0.05:0.95."""


@dataclass(frozen=True)
class _Found:
    """Detections as arrays of the main memory: `boxes` (N, 4) float64 x, y, width, height; the others (N,)."""

    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    cuts: list[Cut]

    @staticmethod
    def of(detections: Detections) -> _Found:
        scores = detections.scores.cpu().double().numpy()
        return _Found(detections.labels.cpu().numpy(), _boxes(detections.boxes), scores, cuts(detections.masks))

    def keep(self, rows: np.ndarray) -> _Found:
        """Those at these places."""
        return _Found(self.labels[rows], self.boxes[rows], self.scores[rows], [self.cuts[row] for row in rows])


@dataclass(frozen=True)
class _True:
    """True objects, as `_Found`."""

    labels: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    cuts: list[Cut]

    @staticmethod
    def of(truth: Instances) -> _True:
        area, crowd = truth.area.cpu().double().numpy(), truth.crowd.cpu().numpy()
        return _True(truth.labels.cpu().numpy(), _boxes(truth.boxes), area, crowd, cuts(truth.masks))

    def keep(self, which: np.ndarray) -> _True:
        """Those that booleans name."""
        chosen = [cut for cut, kept in zip(self.cuts, which, strict=True) if kept]
        return _True(self.labels[which], self.boxes[which], self.area[which], self.crowd[which], chosen)


def _boxes(corners: Tensor) -> np.ndarray:
    """Corners (N, 4) -> (N, 4) float64 x, y, width, height."""
    boxes = corners.cpu().double().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


class AveragePrecision:
    """COCO's scores of a dataset, which pycocotools computes: images come in one by one, on one rank or several.

    Of an image only areas, scores and overlaps of objects of one class are kept, some kilobytes, and no mask. Neither
    the order of images nor their split over ranks changes a score.

    - AP is the mean over classes and IoU 0.5:0.05:0.95 of the precision at recalls 0:0.01:1; AR the mean greatest
      recall. Classes without a true object are left out; where there is none at all, a score is NaN.
    - A detection on a crowd is neither right nor wrong, however many there are. Its overlap is intersection over its
      own area.
    - Sizes are parted at 32^2 and 96^2 px by the publisher's area of true objects; unmatched detections by the area of
      their mask, or of their box for `box_`.
    - `boundary_` takes the lesser of the masks' IoU and that of their inner bands (Cheng et al. 2021); a crowd keeps
      the masks' rule.

    Boxes come in float32 corners, COCO's are decimals of width and height: a box IoU differs from that of the JSON by
    some 1e-6, which a detection within as much of a threshold can show.

    Args:
        classes: names in index order, the background first.
        boundary: whether to score boundaries.
        boundary_ratio: width of a mask's inner band as a share of the image's diagonal: 0.02 in COCO and LVIS.
        max_detections: most detections of a class in an image, ascending: one AR each; AP takes the last.

    Raises:
        ConfigError: pycocotools is missing, or `max_detections` do not ascend.
    """

    def __init__(
        self,
        *,
        classes: list[str],
        boundary: bool = True,
        boundary_ratio: Fraction = 0.02,
        max_detections: tuple[PositiveInt, ...] = (1, 10, 100),
    ) -> None:
        coco_mask()  # told before a training rather than at its first evaluation
        if list(max_detections) != sorted(set(max_detections)) or not max_detections:
            raise ConfigError(
                f"max_detections are {list(max_detections)}", expected="ascending numbers, e.g. [1, 10, 100]"
            )
        self.classes = classes
        self.boundary_ratio = boundary_ratio
        self.max_detections = list(max_detections)
        self.kinds = ("box", "mask", "boundary") if boundary else ("box", "mask")
        self.images: dict[int, dict[int, ClassInImage]] = {}
        """By the image's number, then by class."""
        self._verdicts: dict[str, Verdict] = {}

    def update(self, detections: Detections, truth: Instances, index: int) -> None:
        """Takes in one image.

        Args:
            detections, truth: in pixels of the image.
            index: a number of the image's own. Equal scores of two images are ordered by it, as COCO's are by its ids.

        Raises:
            ValueError: the image was taken in already, a label is no class, or masks differ in size.
        """
        if len(detections) and detections.masks.shape[1:] != truth.masks.shape[1:]:
            raise ValueError(f"found masks are {detections.masks.shape[1:]}, those of image {index} {truth.size}")
        found, true = _Found.of(detections), _True.of(truth)
        first = np.argsort(-found.scores, kind="stable")
        labels = np.union1d(found.labels, true.labels).tolist()
        if labels and (labels[0] < 1 or labels[-1] >= len(self.classes)):
            raise ValueError(f"image {index} has labels {labels}: classes are 1 to {len(self.classes) - 1}")
        seen = {}
        for label in labels:
            likeliest = first[found.labels[first] == label][: self.max_detections[-1]]
            seen[label] = self._compare(found.keep(likeliest), true.keep(true.labels == label), truth.size)
        self._put(index, seen)

    def state(self) -> dict[int, dict[int, ClassInImage]]:
        """All that was taken in, for another process: what pickle can carry."""
        return self.images

    def merge(self, state: dict[int, dict[int, ClassInImage]]) -> None:
        """Adds the state of another rank's metric.

        Raises:
            ValueError: both have seen the same image.
        """
        for index, seen in state.items():
            self._put(index, seen)

    def compute(self) -> dict[str, Any]:
        """`box_ap`, `box_ap50`, `box_ap75`, `box_ap_small` …, `box_ar1` …, `box_ar_small` … in [0, 1] or NaN.

        The same with `mask_` and `boundary_`; by class name `box_ap_per_class` … and `instances_per_class`, the number
        of true objects that are no crowds.
        """
        scores: dict[str, Any] = {}
        for kind in self.kinds:
            scores |= {f"{kind}_{name}": score for name, score in self._summary(self._verdict(kind)).items()}
        return {**scores, "instances_per_class": self._instances()}

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """By class that has true objects: `recall` (101), and `precision` there of masks at IoU 0.5, `precision75`."""
        table = self._verdict("mask").precision[:, :, :, 0, -1]
        return {
            name: {
                "recall": np.linspace(0, 1, table.shape[1]).tolist(),
                "precision": table[AT_50, :, place].tolist(),
                "precision75": table[AT_75, :, place].tolist(),
            }
            for place, name in enumerate(self.classes[1:])
            if (table[:, :, place] > -1).all()
        }

    def by_size(self, kind: str = "mask") -> dict[str, dict[str, float]]:
        """By class name its AP over `all`, `small`, `medium` and `large` objects; NaN where it has none."""
        table = self._verdict(kind).precision[..., -1]
        return {
            name: {size: mean(table[:, :, place, number]) for number, size in enumerate(SIZES)}
            for place, name in enumerate(self.classes[1:])
        }

    def by_threshold(self, kind: str = "mask") -> list[float]:
        """AP at each IoU of 0.5:0.05:0.95."""
        return [mean(one) for one in self._verdict(kind).precision[..., 0, -1]]

    def _summary(self, verdict: Verdict) -> dict[str, Any]:
        precision, recall = verdict.precision[..., -1], verdict.recall
        named: dict[str, Any] = {
            "ap": mean(precision[..., 0]),
            "ap50": mean(precision[AT_50, ..., 0]),
            "ap75": mean(precision[AT_75, ..., 0]),
        }
        named |= {f"ap_{size}": mean(precision[..., number]) for number, size in enumerate(SIZES) if number}
        named |= {f"ar{most}": mean(recall[..., 0, place]) for place, most in enumerate(self.max_detections)}
        named |= {f"ar_{size}": mean(recall[..., number, -1]) for number, size in enumerate(SIZES) if number}
        named["ap_per_class"] = {name: mean(precision[:, :, k, 0]) for k, name in enumerate(self.classes[1:])}
        return named

    def _instances(self) -> dict[str, int]:
        totals = dict.fromkeys(self.classes[1:], 0)
        for seen in self.images.values():
            for label, one in seen.items():
                totals[self.classes[label]] += int(np.count_nonzero(~one.crowd))
        return totals

    def _verdict(self, kind: str) -> Verdict:
        if kind not in self._verdicts:
            self._verdicts[kind] = verdict(self.images, kind, len(self.classes), self.max_detections)
        return self._verdicts[kind]

    def _put(self, index: int, seen: dict[int, ClassInImage]) -> None:
        if index in self.images:
            raise ValueError(f"image {index} was counted twice: every image of an evaluation is seen once")
        self.images[index] = seen
        self._verdicts.clear()

    def _compare(self, found: _Found, true: _True, size: tuple[int, int]) -> ClassInImage:
        """Objects of one class, found and true, of an image of that size."""
        masks = mask_iou(found.cuts, true.cuts, true.crowd)
        iou = {"box": box_iou(found.boxes, true.boxes, true.crowd), "mask": masks}
        area = np.array([one.area for one in found.cuts], np.float64)
        if "boundary" in self.kinds:
            iou["boundary"] = boundary_iou(masks, found.cuts, true.cuts, true.crowd, size, self.boundary_ratio)
        return ClassInImage(
            scores=found.scores,
            found_area={"box": found.boxes[:, 2] * found.boxes[:, 3], "mask": area, "boundary": area},
            true_area=true.area,
            crowd=true.crowd,
            iou=iou,
        )

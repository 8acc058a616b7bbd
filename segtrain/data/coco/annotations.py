"""The objects of a COCO file against the classes of the data: checked, and packed by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, filterfalse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segtrain.data.coco.boxes import corners, measured, misplaced
from segtrain.data.coco.categories import ids_of, labels_of
from segtrain.data.coco.faults import Found, OnBad, settle
from segtrain.data.coco.outlines import Outlines
from segtrain.data.coco.reading import Annotation, CocoFile, Fault
from segtrain.instances import Instances
from segtrain.rle import Rle, coco_mask, decode, parse

_THINNEST = 0.005
"""Pixels below which a side of a box is none: half of the publisher's last digit, and float32 still tells it from 0."""


class Annotations:
    """The objects of all images of one file, in its order of images and within an image of annotations.

    A few arrays and no objects of Python's: processes that are forked share them, to others they are sent fast.

    Args:
        content: what the file lists.
        path: the file, for errors.
        classes: names in index order, the background first.
        named: category name -> class name; categories without one are left out. None: categories are classes.
        on_bad: what to do about faulty annotations.

    Raises:
        DataError: annotations are faulty, or categories are not among the classes.
        ConfigError: the classes do not begin with the background, or two are one.

    Attributes:
        sizes: (I, 2) height and width of the images; their rows are what the methods go by.
        category_ids: class index -> the file's category id, of all but the background; classes that the file has not
            are numbered on from its greatest id.
        dropped: what is wrong with annotations -> how many were left out for it.
        mended: what other annotations lacked and what they have in its place -> of how many.
    """

    def __init__(
        self,
        content: CocoFile,
        path: Path,
        classes: Sequence[str],
        *,
        named: Mapping[str, str] | None = None,
        on_bad: OnBad = "stop",
    ) -> None:
        self.path = path
        self.num_classes = len(classes)
        self.mended: Counter[str] = Counter()
        annotations = self._without_parts(content.annotations) if on_bad == "drop" else content.annotations
        labels = labels_of(path, content.categories, annotations, classes, named)
        self.category_ids = ids_of(labels, content.categories, len(classes))
        self.sizes = np.array([(image.height, image.width) for image in content.images], np.int64).reshape(-1, 2)
        rows = {image.id: row for row, image in enumerate(content.images)}
        categories = {category.id for category in content.categories}
        found: list[Found] = []
        kept = []
        for annotation, fault in _judged(annotations, rows, self.sizes.tolist(), categories):
            if fault is not None:
                found.append((annotation, fault))
            elif annotation.category in labels:
                kept.append(annotation)
        kept.sort(key=lambda annotation: rows[annotation.image])
        found += self._pack(kept, np.array([rows[annotation.image] for annotation in kept], np.int64), labels)
        self.dropped = settle(found, len(annotations), path, on_bad)

    def _without_parts(self, annotations: list[Annotation]) -> list[Annotation]:
        """Those whose only fault is a polygon that is none go on without it."""
        parts = [number for number, entry in enumerate(annotations) if entry.fault and entry.fault.kind == "part"]
        if parts:
            annotations = list(annotations)
            for number in parts:
                annotations[number] = annotations[number]._replace(fault=None)
            self.mended["had polygons of less than three points, which are left out"] = len(parts)
        return annotations

    def _pack(self, kept: list[Annotation], rows: np.ndarray, labels: Mapping[int, int]) -> list[Found]:
        """Fills the arrays; what is kept, and covers no pixel or has another's box, is left out and told."""
        outlines = Outlines([annotation.outline for annotation in kept])
        sizes = self.sizes[rows]

        def drawn(number: int) -> Rle:
            return self._rle(outlines, number, rows[number], kept[number].id)

        empty = [number for number in outlines.doubtful(sizes) if coco_mask().area(drawn(number)) == 0]
        wrong = [(number, Fault("empty", "its mask is empty")) for number in empty]
        if not wrong:
            boxes, areas = measured(kept, drawn)
            wrong = misplaced(kept, outlines, boxes, sizes, drawn)
        if wrong:
            left = np.delete(np.arange(len(kept)), [number for number, _ in wrong])
            found = [(kept[number], fault) for number, fault in wrong]
            return found + self._pack([kept[number] for number in left], rows[left], labels)
        self.outlines = outlines
        self.first = np.searchsorted(rows, np.arange(len(self.sizes) + 1))
        self.ids = self._numbered(kept)
        self.labels = np.array([labels[annotation.category] for annotation in kept], np.uint8)
        self.crowd = np.array([annotation.crowd for annotation in kept], bool)
        self.area = areas
        self.boxes = corners(boxes, sizes).astype(np.float32)
        self.mended["had no bbox: it is drawn around the mask"] = sum(not annotation.box for annotation in kept)
        self.mended["had no area: it is the mask's"] = sum(annotation.area is None for annotation in kept)
        return []

    def _numbered(self, kept: list[Annotation]) -> np.ndarray:
        """Ids (N,) int64; those without one get numbers from 1 on that no other has."""
        taken = {annotation.id for annotation in kept}
        free = filterfalse(taken.__contains__, count(1))  # COCO's own code takes 0 for no object
        self.mended["had no id: they are numbered"] = sum(annotation.id is None for annotation in kept)
        return np.array([next(free) if annotation.id is None else annotation.id for annotation in kept], np.int64)

    def instances(self, row: int) -> Instances:
        """The objects of the image in that row."""
        numbers = self._of(row)
        return Instances(
            masks=self.masks(row),
            boxes=torch.from_numpy(self.boxes[numbers].copy()),
            labels=torch.from_numpy(self.labels[numbers].astype(np.int64)),
            crowd=torch.from_numpy(self.crowd[numbers].copy()),
            area=torch.from_numpy(self.area[numbers].copy()),
            ids=torch.from_numpy(self.ids[numbers].copy()),
        )

    def masks(self, row: int) -> Tensor:
        """The masks (N, H, W) uint8 of the image in that row."""
        height, width = self.sizes[row].tolist()
        numbers = range(int(self.first[row]), int(self.first[row + 1]))
        return decode([self._rle(self.outlines, number, row, self.ids[number]) for number in numbers], height, width)

    def count(self, row: int) -> np.ndarray:
        """Objects of each class (C,) int64 of the image in that row, crowds left out."""
        numbers = self._of(row)
        return np.bincount(self.labels[numbers][~self.crowd[numbers]], minlength=self.num_classes)

    def of_image(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (N,) uint8, crowd (N,) bool and area (N,) float64 of the image in that row; no mask is drawn."""
        numbers = self._of(row)
        return self.labels[numbers], self.crowd[numbers], self.area[numbers]

    def _of(self, row: int) -> slice:
        return slice(int(self.first[row]), int(self.first[row + 1]))

    def _rle(self, outlines: Outlines, number: int, row: int, name: int | None) -> Rle:
        height, width = self.sizes[row].tolist()
        segmentation = outlines.segmentation(number, height, width)
        return parse(segmentation, height, width, where=f"{self.path}: annotation {name}")


def _judged(
    annotations: Sequence[Annotation], rows: Mapping[int, int], sizes: list[list[int]], categories: set[int]
) -> Iterator[tuple[Annotation, Fault | None]]:
    """Every annotation with what is wrong with it, as far as that shows without drawing it."""
    seen: set[int] = set()
    for annotation in annotations:
        fault = annotation.fault
        if fault is None and annotation.id is not None and annotation.id in seen:
            fault = Fault("id", f"of image {annotation.image}")
        elif fault is None and annotation.image not in rows:
            fault = Fault("image", f"image_id {annotation.image}")
        elif fault is None and annotation.category not in categories:
            fault = Fault("category", f"category_id {annotation.category}")
        elif fault is None:
            fault = _misfit(annotation, *sizes[rows[annotation.image]])
        if annotation.id is not None:
            seen.add(annotation.id)
        yield annotation, fault


def _misfit(annotation: Annotation, height: int, width: int) -> Fault | None:
    """What does not fit the image."""
    size = annotation.outline.size
    if size is not None and size != (height, width):
        return Fault("size", f"of {size[1]}x{size[0]}, image {annotation.image} is {width}x{height} (width x height)")
    if not annotation.box:
        return None
    x, y, box_width, box_height = annotation.box
    across, down = min(x + box_width, width) - max(x, 0), min(y + box_height, height) - max(y, 0)
    if min(across, down) < _THINNEST:
        return Fault("box", f"box {list(annotation.box)} in image {annotation.image} of {width}x{height}")
    return None

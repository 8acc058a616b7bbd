"""The boxes of a COCO file against its masks: which cannot be right, and what they are where the file has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segtrain.data.coco.outlines import Outlines
from segtrain.data.coco.reading import Annotation, Fault
from segtrain.rle import Rle, coco_mask

_OVERLAP = 0.5
"""IoU of a box and that of its mask from which on it is taken for right."""
_BEYOND = 2.0, 0.1
"""Pixels, and part of its side, that a mask may reach beyond its box; the larger of the two counts."""


def measured(annotations: Sequence[Annotation], rle_of: Callable[[int], Rle]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) x, y, width, height and areas (N,) in pixels, float64; where the file has none, its mask's."""
    boxes = np.array([annotation.box or (0.0,) * 4 for annotation in annotations], np.float64).reshape(-1, 4)
    areas = np.array([annotation.area or 0.0 for annotation in annotations], np.float64)
    unboxed = [number for number, annotation in enumerate(annotations) if not annotation.box]
    unmeasured = [number for number, annotation in enumerate(annotations) if annotation.area is None]
    if unboxed:
        boxes[unboxed] = coco_mask().toBbox([rle_of(number) for number in unboxed])
    if unmeasured:
        areas[unmeasured] = coco_mask().area([rle_of(number) for number in unmeasured])
    return boxes, areas


def corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) x, y, width, height -> x0, y0, x1, y1 inside images of sizes (N, 2) height, width."""
    return _inside(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), sizes)


def misplaced(
    annotations: Sequence[Annotation],
    outlines: Outlines,
    boxes: np.ndarray,
    sizes: np.ndarray,
    rle_of: Callable[[int], Rle],
) -> list[tuple[int, Fault]]:
    """Numbers of the annotations whose box is not that of their mask, with what was found; groups are passed over.

    A box is let pass from IoU 0.5 on; and one that the mask hardly leaves, as tools draw boxes around what is hidden,
    too, but for one that fits better as x0, y0, x1, y1: read as x, y, width, height, it mostly holds its mask.

    Args:
        boxes: (N, 4) x, y, width, height in pixels.
        sizes: (N, 2) height and width of the images.
        rle_of: number -> the mask, drawn for run lengths only.
    """
    masks = outlines.extents()
    runs = [number for number in np.flatnonzero(np.isnan(masks[:, 0])).tolist() if not annotations[number].crowd]
    if runs:
        found = np.asarray(coco_mask().toBbox([rle_of(number) for number in runs])).reshape(-1, 4)
        masks[runs] = corners(found, sizes[runs])
    crowd = np.array([annotation.crowd for annotation in annotations], bool)
    masks[crowd] = 0
    masks, given, swapped = _inside(masks, sizes), corners(boxes, sizes), _inside(boxes, sizes)
    apart = _iou(given, masks) < _OVERLAP
    sides = np.tile(masks[:, 2:] - masks[:, :2], 2)
    beyond = np.concatenate([given[:, :2] - masks[:, :2], masks[:, 2:] - given[:, 2:]], 1)
    outside = (beyond > np.maximum(_BEYOND[0], _BEYOND[1] * sides)).any(1)
    loose = (-beyond > np.maximum(_BEYOND[0], _BEYOND[1] * sides)).any(1)
    fits = _iou(swapped, masks) >= _OVERLAP
    wrong: list[int] = np.flatnonzero(~crowd & apart & (outside | (fits & loose))).tolist()
    return [(number, _told(annotations[number], masks[number], bool(fits[number]))) for number in wrong]


def _told(annotation: Annotation, mask: np.ndarray, swapped: bool) -> Fault:
    hint = "; it fits as x0, y0, x1, y1" if swapped else ""
    x, y, right, bottom = (round(float(value), 2) for value in mask)
    around = [x, y, round(right - x, 2), round(bottom - y, 2)]
    return Fault("misplaced", f"box {list(annotation.box)}, that of its mask is {around}{hint}")


def _inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union (N,) of boxes x0, y0, x1, y1 (N, 4) in pairs; 0 for two without area."""
    shared = np.maximum(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0).prod(1)
    union = sum(np.maximum(box[:, 2:] - box[:, :2], 0).prod(1) for box in (one, other)) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))

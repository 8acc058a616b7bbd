"""How much found and true objects of an image overlap: by box, by mask, and along the masks' boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from segtrain.metrics.boundary import band_width, inner_band
from segtrain.metrics.near import window
from segtrain.rle import coco_mask


@dataclass(frozen=True)
class Cut:
    """A mask without the empty rows and columns around it, so that work grows with the object, not with the image.

    `bits` (h, w) bool; `top` and `left` say where in the image it lies.
    """

    top: int
    left: int
    bits: np.ndarray

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.bits))

    def band(self, width: int) -> Cut:
        """The mask's inner band of that width in px; beyond the image is outside, as beyond the cut."""
        return Cut(self.top, self.left, inner_band(self.bits, width))

    def shared(self, other: Cut) -> int:
        """Pixels of both."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.bits.shape[0], other.top + other.bits.shape[0])
        right = min(self.left + self.bits.shape[1], other.left + other.bits.shape[1])
        if bottom <= top or right <= left:
            return 0
        parts = (
            one.bits[top - one.top : bottom - one.top, left - one.left : right - one.left] for one in (self, other)
        )
        return int(np.count_nonzero(np.logical_and(*parts)))


def cuts(masks: Tensor) -> list[Cut]:
    """Masks (N, H, W) uint8, 0 or 1, on any device -> one cut each."""
    found = []
    for mask in masks.cpu().contiguous().numpy().view(bool):
        rows, columns = window(mask, 0)
        bits = np.ascontiguousarray(mask[rows, columns])  # a copy: the masks themselves may go
        found.append(Cut(rows.start, columns.start, bits))
    return found


def box_iou(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Boxes (D, 4) and (G, 4) float64 `x, y, width, height`, crowd (G,) bool -> (D, G) float64 in [0, 1].

    Beside a crowd it is the share of the found box that lies on it.
    """
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    return coco_mask().iou(found, true, crowd.astype(np.uint8))


def mask_iou(found: list[Cut], true: list[Cut], crowd: np.ndarray) -> np.ndarray:
    """D and G masks, crowd (G,) bool -> (D, G) float64 in [0, 1], to the last bit what pycocotools finds.

    Beside a crowd it is the share of the found mask that lies on it. 0 where a mask is empty.
    """
    iou = np.zeros((len(found), len(true)))
    true_area = [one.area for one in true]
    for row, one in enumerate(found):
        area = one.area
        for column, other in enumerate(true):
            shared = one.shared(other)
            if shared:
                iou[row, column] = shared / (area if crowd[column] else area + true_area[column] - shared)
    return iou


def boundary_iou(
    masks: np.ndarray, found: list[Cut], true: list[Cut], crowd: np.ndarray, size: tuple[int, int], ratio: float
) -> np.ndarray:
    """The lesser of the masks' IoU and that of their inner bands: (D, G) float64 in [0, 1].

    A crowd has no boundary anyone drew: beside it the masks' number stays, as in the authors' boundary-iou-api.
    Source: Cheng et al. 2021, "Boundary IoU".

    Args:
        masks: (D, G), from `mask_iou`.
        found: D masks.
        true: G masks.
        crowd: (G,) bool.
        size: height and width of the image.
        ratio: width of the bands as a share of the image's diagonal.
    """
    width = band_width(size, ratio)
    rows, columns = np.nonzero((masks > 0) & ~crowd)
    found_bands = {row: found[row].band(width) for row in set(rows.tolist())}
    true_bands = {column: true[column].band(width) for column in set(columns.tolist())}
    iou = masks.copy()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        one, other = found_bands[row], true_bands[column]
        shared = one.shared(other)
        iou[row, column] = min(iou[row, column], shared / (one.area + other.area - shared))
    return iou

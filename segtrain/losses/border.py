"""Cross-entropy that weighs the gaps between cells: the loss of U-Net (Ronneberger et al. 2015, arXiv 1505.04597)."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.losses.pixel import PixelLoss
from segtrain.types import IGNORE_INDEX, NonNegativeFloat, NonNegativeInt, PositiveFloat

REACH = 6.0
"""In sigmas: a cell this far away adds at most exp(-REACH^2 / 2) = 1.5e-8 of `w0` to a pixel's weight."""

Connectivity = Literal[4, 8]


class BorderCrossEntropy(PixelLoss):
    """Cross-entropy in which background between two cells that nearly touch weighs most (section 3, equations 1, 2).

    A pixel's weight is w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)). w_c balances the classes: the class
    weights, or 1. d1 and d2 are the distances in pixels to the nearest and the second nearest cell. A cell is a
    connected component of one class that is not the background. Only background has the second term, as only there
    is something to separate, and only where there are two cells. Unlabelled pixels weigh nothing and are of no cell.

    The weighted sum is divided by the sum of w_c, as with every mean over pixels here, so that gaps add to the loss.
    The weights follow from the target of each crop, on the CPU; cells beyond the crop's border are not seen.

    Args:
        w0: height of the second term; 10 in the paper.
        sigma: its width in pixels; about 5 in the paper.
        background: index of the class that is no cell.
        connectivity: 8: pixels that touch at a corner belong to one cell; 4: they must share a side, for masks in
            which a diagonal line of single background pixels parts two cells.
    """

    def __init__(
        self,
        *,
        w0: NonNegativeFloat = 10.0,
        sigma: PositiveFloat = 5.0,
        background: NonNegativeInt = 0,
        connectivity: Connectivity = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.w0 = w0
        self.sigma = sigma
        self.background = background
        self.connectivity: Connectivity = connectivity

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.background >= logits.shape[1]:
            raise ConfigError(
                f"the background is class {self.background}, and there are {logits.shape[1]} classes",
                where="loss.terms.border.background",
                expected=f"an index from 0 to {logits.shape[1] - 1}: the class between the cells",
                fix="set loss.terms.border.background=0 if the background is the first class",
            )
        weights = self.pixel_weights(target) + self.border_weights(target)
        return (self.cross_entropies(logits, target) * weights).sum()

    def border_weights(self, target: Tensor) -> Tensor:
        """The second term of each pixel's weight, without w_c: float32, the target's shape and device."""
        maps = target.to(torch.uint8).cpu().numpy()
        terms = [border_term(one, self.w0, self.sigma, self.background, self.connectivity) for one in maps]
        return torch.from_numpy(np.stack(terms)).to(target.device)


def border_term(
    target: np.ndarray, w0: float, sigma: float, background: int = 0, connectivity: Connectivity = 8
) -> np.ndarray:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on the background of a target (H, W) uint8, 0 elsewhere: float32.

    Exact up to `w0` times 1.5e-8: a cell is measured in its own surroundings only, so that the work grows with the
    cells' areas and not with their number times the image's.
    """
    nearest = np.full(target.shape, np.inf, np.float32)
    second = nearest.copy()
    reach = math.ceil(REACH * sigma)
    for label in np.unique(target):
        if label in (background, IGNORE_INDEX):
            continue
        mask = (target == label).astype(np.uint8)
        count, components, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
        for cell in range(1, count):
            x, y, width, height = boxes[cell, :4]
            around = (slice(max(0, y - reach), y + height + reach), slice(max(0, x - reach), x + width + reach))
            distance = _distance_to(components[around] == cell)
            second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
            nearest[around] = np.minimum(nearest[around], distance)
    # Where there are not two cells the distance is infinite and the term is 0.
    term = w0 * np.exp(-np.square(nearest + second) / (2 * sigma**2))
    return np.where(target == background, term, 0).astype(np.float32)


def _distance_to(cell: np.ndarray) -> np.ndarray:
    """Distance in pixels from each pixel (H, W) to the nearest of the cell, between centers: exact, not by chamfers."""
    return cv2.distanceTransform((~cell).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)

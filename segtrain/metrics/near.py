"""Which pixels lie within a distance of others, by exact Euclidean distance."""

from __future__ import annotations

import math

import cv2
import numpy as np

DISC_LIMIT = 8.0
"""Up to this radius a disc slid over the mask is faster than a distance transform; both find the same pixels."""


def distance_limit(radius: float) -> float:
    """The number that separates distances up to `radius` from greater ones.

    Squared distances of pixels are integers, so half-way to the next one no rounding can decide wrongly.
    """
    return math.sqrt(math.floor(radius * radius + 1e-9) + 0.5)


def distance(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) float32 px to the nearest pixel of the mask; infinite where the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def near(mask: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: within `radius` px of a pixel of the mask, the mask itself included."""
    if radius > DISC_LIMIT:
        return distance(mask) <= distance_limit(radius)
    reach = math.floor(radius)
    across = np.arange(-reach, reach + 1)
    disc = across[:, None] ** 2 + across[None] ** 2 <= distance_limit(radius) ** 2
    return cv2.dilate(mask.view(np.uint8), disc.view(np.uint8)).view(bool)


def window(mask: np.ndarray, margin: float) -> tuple[slice, slice]:
    """The rows and columns of the box around a mask's pixels, widened by `margin` px within the image."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    more = math.ceil(margin)
    return (
        slice(max(0, top - more), top + height + more),
        slice(max(0, left - more), left + width + more),
    )

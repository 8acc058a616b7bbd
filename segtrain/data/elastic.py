"""U-Net's training tiles (Ronneberger et al. 2015, arXiv 1505.04597): rotated, smoothly deformed, context mirrored.

Beyond the border an image goes on as its own mirror image, never as a fill color, because a network without padding
looks there. Nobody labelled those pixels, so the target says 255.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import cv2
import numpy as np
from albumentations.core.transforms_interface import DualTransform
from annotated_types import Ge

from segtrain.errors import ConfigError
from segtrain.types import IGNORE_INDEX, Fraction, NonNegativeFloat, NonNegativeInt, Size, height_width


class ElasticGrid(DualTransform):
    """Displaces the nodes of a coarse grid at random and everything between them smoothly along (section 3.1).

    Displacements are drawn from a normal distribution, along each axis and for each node alone. The outer nodes lie on
    the image's corner pixels; between nodes displacements are interpolated bicubically. The image is resampled
    bilinearly, once, with a rotation on the way, and goes on as its mirror image; the target takes the nearest label,
    and 255 from outside.

    Args:
        sigma: standard deviation of the displacements in pixels; 10 in the paper, for images of 512 pixels.
        grid: nodes along each axis; 3 in the paper.
        rotate_limit: the image is also turned about its center by an angle drawn evenly from this many degrees either
            way; 0: not at all. The paper names rotations and no angles.
        p: share of the samples that are deformed.
    """

    def __init__(
        self,
        *,
        sigma: NonNegativeFloat = 10.0,
        grid: Annotated[int, Ge(2)] = 3,
        rotate_limit: NonNegativeFloat = 0.0,
        p: Fraction = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.sigma = sigma
        self.grid = grid
        self.rotate_limit = rotate_limit

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        angle = math.radians(self.py_random.uniform(-self.rotate_limit, self.rotate_limit))
        nodes = self.random_generator.normal(0, self.sigma, (2, self.grid, self.grid))
        dy, dx = _cubic_weights(height, self.grid) @ nodes @ _cubic_weights(width, self.grid).T
        middle = (height - 1) / 2, (width - 1) / 2
        y, x = np.ogrid[:height, :width]
        y, x = y - middle[0], x - middle[1]
        rows = math.cos(angle) * y + math.sin(angle) * x + middle[0] + dy
        columns = math.cos(angle) * x - math.sin(angle) * y + middle[1] + dx
        return {"source": (columns.astype(np.float32), rows.astype(np.float32))}

    def apply(self, img: np.ndarray, source: tuple[np.ndarray, np.ndarray], **params: Any) -> np.ndarray:
        moved = cv2.remap(img, *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return moved.reshape(img.shape)  # OpenCV drops a channel axis of one

    def apply_to_mask(self, mask: np.ndarray, source: tuple[np.ndarray, np.ndarray], **params: Any) -> np.ndarray:
        return cv2.remap(mask, *source, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE_INDEX)


class MirrorCrop(DualTransform):
    """Crops `size` at random; what reaches beyond the image is its mirror image, and 255 in the target.

    Args:
        size: side or [height, width] of the crop.
        margin: outer pixels of the crop on each side that are context only. The part inside them is what lies at
            random within the image, so that pixels at the image's border are learned from too. An image smaller than
            that part lies at random within it.
    """

    def __init__(self, *, size: Size, margin: NonNegativeInt = 0) -> None:
        super().__init__(p=1.0)
        self.size = height_width(size)
        self.margin = margin
        _refuse_margin_of_all(margin, self.size)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        starts = []
        for length, side in zip(params["shape"][:2], self.size, strict=True):
            room = length - (side - 2 * self.margin)
            starts.append(self.py_random.randint(min(0, room), max(0, room)) - self.margin)
        return {"starts": starts}

    def apply(self, img: np.ndarray, starts: list[int], **params: Any) -> np.ndarray:
        rows, columns = self._sources(img, starts)
        return img[rows[:, None], columns]

    def apply_to_mask(self, mask: np.ndarray, starts: list[int], **params: Any) -> np.ndarray:
        rows, columns = self._sources(mask, starts)
        inside = _within(starts[0], rows, mask.shape[0])[:, None] & _within(starts[1], columns, mask.shape[1])
        return np.where(inside, mask[rows[:, None], columns], mask.dtype.type(IGNORE_INDEX))

    def _sources(self, array: np.ndarray, starts: list[int]) -> list[np.ndarray]:
        """Along each axis, the row or column that each of the crop's is a copy of."""
        return [
            np.array([cv2.borderInterpolate(at, length, cv2.BORDER_REFLECT_101) for at in range(start, start + side)])
            for start, side, length in zip(starts, self.size, array.shape[:2], strict=True)
        ]


class IgnoreBorder(DualTransform):
    """Sets the outer `margin` pixels of the target to 255, on each side; the image stays.

    For `model.context=crop`: the outermost pixels of a crop are context, which the network gives no logits for.
    """

    def __init__(self, *, margin: NonNegativeInt) -> None:
        super().__init__(p=1.0)
        self.margin = margin

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        height, width = mask.shape[:2]
        _refuse_margin_of_all(self.margin, (height, width))
        inner = slice(self.margin, height - self.margin), slice(self.margin, width - self.margin)
        framed = np.full_like(mask, IGNORE_INDEX)
        framed[inner] = mask[inner]
        return framed


def _refuse_margin_of_all(margin: int, size: tuple[int, int]) -> None:
    if 2 * margin >= min(size):
        raise ConfigError(
            f"a margin of {margin} pixels on each side leaves nothing of a crop of {size[0]}x{size[1]}",
            where="augment.margin, augment.crop_size",
            expected=f"a crop of more than {2 * margin} pixels: 572 for the paper's margin of 92",
            fix="set augment.margin=0 with model.context=mirror, or a larger augment.crop_size",
        )


def _within(start: int, sources: np.ndarray, length: int) -> np.ndarray:
    places = np.arange(start, start + len(sources))
    return (places >= 0) & (places < length)


def _cubic_weights(length: int, nodes: int) -> np.ndarray:
    """How much each node counts at each pixel of an axis, (length, nodes): rows add up to 1.

    Cubic convolution (Keys 1981, a = -1/2), which passes through the nodes; beyond the outer ones they repeat. Not
    OpenCV's resize or remap, which would round positions on so coarse a grid to steps of several pixels.
    """
    places = np.linspace(0, nodes - 1, length)
    first = np.floor(places).astype(int) - 1
    weights = np.zeros((length, nodes))
    for neighbor in range(4):
        distance = np.abs(places - first - neighbor)
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        share = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.arange(length), np.clip(first + neighbor, 0, nodes - 1)), share)
    return weights

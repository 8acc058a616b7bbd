"""Images of one size for the network: a part of the image at a random scale, or the whole of it.

Padding is `FILL` in the image and 255 in the target. Targets are only ever copied from, pixel by pixel.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from albumentations import HorizontalFlip
from albumentations.core.transforms_interface import DualTransform

from segtrain.errors import ConfigError
from segtrain.types import IGNORE_INDEX, PositiveFloat, Size, height_width

FILL = (124, 116, 104)
"""What padding looks like: ImageNet's mean color, which is near zero after normalization."""
NEAREST = cv2.INTER_NEAREST_EXACT
"""By pixel centers, as the image is resized; OpenCV's INTER_NEAREST shifts a halved target by half a source pixel."""
_SHIFT = 0.05


class RandomScaleCrop(DualTransform):
    """Scales by a factor drawn uniformly from `scale_range`, pads to `size` where smaller, crops `size` at random.

    The recipe of the FCN-to-DeepLab line. Aspect ratio is kept; padding is `FILL` in the image, 255 in the target.
    Only the part of the image that the crop shows is scaled. The target is what scaling all of it would give; the image
    differs by a shift of at most 1/20 of a pixel along each axis (see `Span`) and by rounding.
    """

    def __init__(self, *, size: Size, scale_range: list[PositiveFloat], p: float = 1.0) -> None:
        super().__init__(p=p)
        if len(scale_range) != 2 or scale_range[0] > scale_range[1]:
            raise ConfigError(f"augment.scale_range={scale_range}", expected="[smallest, largest], e.g. [0.5, 2.0]")
        self.size = height_width(size)
        self.scale_range = scale_range

    def draw(self, shape: Sequence[int]) -> Place:
        """Where the next crop of an image of `shape` (height, width, …) lies."""
        scale = self.py_random.uniform(*self.scale_range)
        rows, top = self._along(shape[0], scale, self.size[0])
        columns, left = self._along(shape[1], scale, self.size[1])
        return Place(rows, columns, (top, left))

    def _along(self, length: int, scale: float, side: int) -> tuple[Span, int]:
        """One axis: what is shown of it, and where on the canvas of `side` pixels that begins."""
        scaled = max(1, round(length * scale))
        room = side - scaled
        if room < 0:
            return Span.of(length, scaled, -room - self.py_random.randrange(1 - room), side), 0
        # Padding is split at random too, so that a small image may lie anywhere in the crop.
        return Span.of(length, scaled, 0, scaled), self.py_random.randrange(room + 1)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"place": self.draw(params["shape"])}

    def apply(self, img: np.ndarray, place: Place, mirrored: bool = False, **params: Any) -> np.ndarray:
        """The crop (*size, C) of an image (H, W, C); `mirrored`: with left and right exchanged."""
        rows, columns = place.rows, place.columns
        window = img[rows.first : rows.last, columns.first : columns.last]
        if rows.scale != 1 or columns.scale != 1:
            window = _scaled(window, columns.scale, rows.scale)
        part = window[rows.skip : rows.skip + rows.kept, columns.skip : columns.skip + columns.kept]
        part = cv2.flip(part, 1) if mirrored else part
        part = part.reshape(rows.kept, columns.kept, *img.shape[2:])
        return _pad(part, self.size, self._corner(place, mirrored), fill_of(img))

    def apply_to_mask(self, mask: np.ndarray, place: Place, mirrored: bool = False, **params: Any) -> np.ndarray:
        """The crop (*size) of a target (H, W) uint8."""
        vertical, horizontal = place.rows.nearest(), place.columns.nearest()
        left, right = horizontal[0], horizontal[-1] + 1
        horizontal = horizontal[::-1] - left if mirrored else horizontal - left
        # Whole rows are copied ten times as fast as single pixels, even turned on their side and back, and fastest
        # where they are fewest: before they are enlarged, after they are shrunk.
        if place.rows.scale < 1:
            part = _columns(mask.take(vertical, 0, mode="clip")[:, left:right], horizontal)
        else:
            part = _columns(mask[vertical[0] : vertical[-1] + 1, left:right], horizontal)
            part = part.take(vertical - vertical[0], 0, mode="clip")
        return _pad(part, self.size, self._corner(place, mirrored), [IGNORE_INDEX])

    def _corner(self, place: Place, mirrored: bool) -> tuple[int, int]:
        top, left = place.corner
        return (top, self.size[1] - place.columns.kept - left) if mirrored else (top, left)


class CropAndFlip:
    """A RandomScaleCrop and, where there is one right after it, the HorizontalFlip, in one go.

    Called as they are, and to the same result from the same random numbers.
    """

    def __init__(self, crop: RandomScaleCrop, flip: HorizontalFlip | None = None) -> None:
        self.crop = crop
        self.flip = flip

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Both draw from these."""
        self.crop.set_random_state(random_generator, py_random)
        if self.flip is not None:
            self.flip.set_random_state(random_generator, py_random)

    def __call__(self, *, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        if not self.crop.should_apply():
            whole = {"image": image, "mask": mask}
            return whole if self.flip is None else self.flip(**whole)
        place = self.crop.draw(image.shape)
        mirrored = self.flip is not None and self.flip.should_apply()
        return {
            "image": self.crop.apply(image, place, mirrored),
            "mask": self.crop.apply_to_mask(mask, place, mirrored),
        }


def _scaled(window: np.ndarray, fx: float, fy: float) -> np.ndarray:
    """The window (H, W, C) scaled by exactly these factors, along pixel centers as all resizing here is."""
    height, width = window.shape[:2]
    size = round(height * fy), round(width * fx)
    if size != (height, width):
        # Without a size, OpenCV keeps these factors as they are instead of those that fit the window.
        return cv2.resize(window, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    # Where the sizes agree it would copy, and shift the window's end by up to half a pixel.
    matrix = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2]])
    return cv2.warpAffine(window, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _columns(labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The columns `at` of labels (H, W) uint8."""
    return cv2.transpose(cv2.transpose(labels).take(at, 0, mode="clip"))


class Place(NamedTuple):
    """A crop from a scaled image: its pixels along each axis, and where (top, left) they lie on the padded canvas."""

    rows: Span
    columns: Span
    corner: tuple[int, int]


class Span(NamedTuple):
    """One axis of a crop from a scaled image: which source pixels to scale, and which of the result to keep.

    Scaling source pixels `first` to `last - 1` by `scale` and keeping `kept` from `skip` on gives the `kept` pixels
    from `start` on of the whole axis scaled, whose `length` pixels become `scaled`, moved by at most `_SHIFT` of a
    scaled pixel: `first` is chosen so that `first * scale` is that close to a whole number.
    """

    length: int
    scaled: int
    start: int
    kept: int
    first: int
    last: int
    skip: int

    @classmethod
    def of(cls, length: int, scaled: int, start: int, count: int) -> Span:
        """The span of the fewest source pixels; 0 <= start, 0 < count, start + count <= scaled."""
        if scaled == length:
            return cls(length, scaled, start, count, start, start + count, 0)
        needed = max(0, (start - 1) * length // scaled - 1)  # with the left neighbor of the leftmost point
        # A few pixels back as a rule; many where the scale is close to a simple fraction. Zero is always on the grid.
        slack, first = _SHIFT * length, needed
        while slack < first * scaled % length < length - slack:
            first -= 1
        last = min(length, -(-(start + count + 1) * length // scaled) + 1)
        skip = start - (2 * first * scaled + length) // (2 * length)
        return cls(length, scaled, start, count, first, last, skip)

    @property
    def scale(self) -> float:
        return self.scaled / self.length

    def nearest(self) -> np.ndarray:
        """(kept,) int64: the source pixel that holds the center of each pixel kept; exact, from whole numbers."""
        twice_centers = np.arange(2 * self.start + 1, 2 * (self.start + self.kept), 2)
        return twice_centers * self.length // (2 * self.scaled)


class Fit(DualTransform):
    """Brings every image to `size` without randomness: `resize` (aspect ratio not kept) or `pad`.

    `pad` centers the image on the canvas and cuts what does not fit; padding is `FILL`, and 255 in the target.
    """

    def __init__(self, *, size: Size, mode: Literal["resize", "pad"] = "resize") -> None:
        super().__init__(p=1.0)
        self.size = height_width(size)
        self.mode = mode

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        fill = fill_of(img)
        return self._fit(img, cv2.INTER_LINEAR, fill)

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return self._fit(mask, NEAREST, [IGNORE_INDEX])

    def _fit(self, array: np.ndarray, interpolation: int, fill: list[float]) -> np.ndarray:
        if self.mode == "resize":
            return _resize(array, self.size, interpolation)
        spare = [self.size[axis] - array.shape[axis] for axis in (0, 1)]
        y, x = (max(0, -room) // 2 for room in spare)
        part = array[y : y + self.size[0], x : x + self.size[1]]
        return _pad(part, self.size, (max(0, spare[0]) // 2, max(0, spare[1]) // 2), fill)


def fill_of(image: np.ndarray) -> list[float]:
    """`FILL` in the range of the image: [0, 255] of bytes, [0, 1] of floats as albumentations has them."""
    return [value / 255 if image.dtype == np.float32 else float(value) for value in FILL]


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    resized = cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
    return resized.reshape(*size, *array.shape[2:])  # OpenCV drops a channel axis of one


def _pad(array: np.ndarray, size: tuple[int, int], corner: tuple[int, int], fill: list[float]) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    below = size[0] - array.shape[0] - corner[0], size[1] - array.shape[1] - corner[1]
    padded = cv2.copyMakeBorder(
        array, corner[0], below[0], corner[1], below[1], cv2.BORDER_CONSTANT, value=[*fill, 0, 0, 0][:4]
    )
    return padded.reshape(*size, *array.shape[2:])

"""Image and target together: seeded, filled with 255, never a label that was not there.

Any albumentations transform can be named in `augment/*.yaml`. `SegmentationTransform` makes all of them safe for
targets in one place: what a geometric transform uncovers becomes `IGNORE_INDEX`, class indices are resampled by nearest
neighbor only, and a transform that still invents a label stops the run.
"""

from __future__ import annotations

import os
import random
from typing import Any, Literal

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version when imported
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform, DualTransform

from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import IGNORE_INDEX, PositiveFloat, Size, height_width

FILL = (124, 116, 104)
"""What padding looks like: ImageNet's mean color, which is near zero after normalization."""
NEAREST = cv2.INTER_NEAREST_EXACT
"""By pixel centers, as the image is resized; OpenCV's INTER_NEAREST shifts a halved target by half a source pixel."""


class SegmentationTransform:
    """Applies named albumentations transforms, in order, to an image (H, W, C) and its target (H, W) uint8.

    The random numbers of one call come from its `seed` tuple alone, whatever was called before. All transforms draw
    from one stream: albumentations' own `set_random_seed` would give each the same numbers, tying flips to rotations.
    """

    def __init__(self, steps: dict[str, Any]) -> None:
        self.steps: dict[str, BasicTransform | BaseCompose] = {}
        for name, step in steps.items():
            if not isinstance(step, BasicTransform | BaseCompose):
                raise ConfigError(
                    f"augment.transforms.{name} is a {type(step).__name__}",
                    expected="an albumentations transform (`_target_: albumentations.…`)",
                )
            self.steps[name] = step
            protect_target(step)

    def __call__(
        self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        python_random = random.Random(int(generator.integers(2**63)))
        deep = image.dtype == np.float32  # albumentations wants floats in [0, 1]; ours are in [0, 255]
        if deep:
            image = image / np.float32(255)
        for name, step in self.steps.items():
            step.set_random_state(generator, python_random)
            known = labels_in(target)
            result = step(image=image, mask=target)
            image, target = result["image"], result["mask"]
            self._refuse_new_labels(name, known, target)
        if deep:
            image = image * np.float32(255)
        return np.ascontiguousarray(image), np.ascontiguousarray(target)

    def _refuse_new_labels(self, name: str, known: np.ndarray, target: np.ndarray) -> None:
        if target.dtype != np.uint8:
            raise DataError(
                f"augment.transforms.{name} turned the target into {target.dtype}",
                expected="uint8 class indices, which no transform may change",
                fix="use a transform that leaves masks alone, or one that resamples them by nearest neighbor",
            )
        invented = np.flatnonzero(labels_in(target) & ~known)
        invented = invented[invented != IGNORE_INDEX]
        if len(invented):
            raise DataError(
                f"augment.transforms.{name} invented the labels {listed(invented)}",
                expected="only labels that the target had before, or 255",
                fix=f"remove it with '~augment.transforms.{name}', or set its mask interpolation to nearest",
            )


def labels_in(target: np.ndarray) -> np.ndarray:
    """Which of the 256 values occur in a uint8 target, as booleans."""
    return cv2.calcHist([target], [0], None, [256], [0, 256]).ravel() > 0


def protect_target(step: BasicTransform | BaseCompose) -> None:
    """Makes a transform, and those inside it, fill targets with 255 and resample them by nearest neighbor."""
    for inner in getattr(step, "transforms", []):
        protect_target(inner)
    if getattr(step, "fill_mask", None) is not None:  # None: it leaves the mask alone, as dropout does
        step.fill_mask = IGNORE_INDEX
    if hasattr(step, "mask_interpolation"):
        step.mask_interpolation = cv2.INTER_NEAREST


class RandomScaleCrop(DualTransform):
    """Scales by a factor drawn uniformly from `scale_range`, pads to `size` where smaller, crops `size` at random.

    The recipe of the FCN-to-DeepLab line. Aspect ratio is kept; padding is `FILL` in the image, 255 in the target.
    """

    def __init__(self, *, size: Size, scale_range: list[PositiveFloat], p: float = 1.0) -> None:
        super().__init__(p=p)
        if len(scale_range) != 2 or scale_range[0] > scale_range[1]:
            raise ConfigError(f"augment.scale_range={scale_range}", expected="[smallest, largest], e.g. [0.5, 2.0]")
        self.size = height_width(size)
        self.scale_range = scale_range

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(*self.scale_range)
        scaled = max(1, round(height * scale)), max(1, round(width * scale))
        # Padding is split at random too, so that a small image may lie anywhere in the crop.
        spare = [self.size[axis] - scaled[axis] for axis in (0, 1)]
        offset = [self.py_random.randint(min(0, room), max(0, room)) for room in spare]
        return {"scaled": scaled, "offset": offset}

    def apply(self, img: np.ndarray, scaled: tuple[int, int], offset: list[int], **params: Any) -> np.ndarray:
        fill = _fill_of(img)
        return self._place(_resize(img, scaled, cv2.INTER_LINEAR), offset, fill)

    def apply_to_mask(self, mask: np.ndarray, scaled: tuple[int, int], offset: list[int], **params: Any) -> np.ndarray:
        return self._place(_resize(mask, scaled, NEAREST), offset, [IGNORE_INDEX])

    def _place(self, array: np.ndarray, offset: list[int], fill: list[float]) -> np.ndarray:
        """Puts `array` at `offset` on a canvas of `size`: a negative offset cuts, a positive one pads."""
        (height, width), (y, x) = self.size, offset
        part = array[max(0, -y) : max(0, -y) + height, max(0, -x) : max(0, -x) + width]
        return _pad(part, self.size, (max(0, y), max(0, x)), fill)


class Fit(DualTransform):
    """Brings every image to `size` without randomness: `resize` (aspect ratio not kept) or `pad`.

    `pad` centers the image on the canvas and cuts what does not fit; padding is `FILL`, and 255 in the target.
    """

    def __init__(self, *, size: Size, mode: Literal["resize", "pad"] = "resize") -> None:
        super().__init__(p=1.0)
        self.size = height_width(size)
        self.mode = mode

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        fill = _fill_of(img)
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


def _fill_of(image: np.ndarray) -> list[float]:
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

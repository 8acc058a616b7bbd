"""Image and target together: seeded, filled with 255, never a label that was not there.

Any albumentations transform can be named in `augment/*.yaml`. `SegmentationTransform` makes all of them safe for
targets in one place: what a geometric transform uncovers becomes `IGNORE_INDEX`, class indices are resampled by nearest
neighbor only, and a transform that still invents a label stops the run.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version when imported
from albumentations import Blur, GaussianBlur, MotionBlur
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform, DualTransform

from segtrain.data.color import ColorMatrix, chained, color_matrix, mean_color, painted
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import IGNORE_INDEX, PositiveFloat, Size, height_width

FILL = (124, 116, 104)
"""What padding looks like: ImageNet's mean color, which is near zero after normalization."""
NEAREST = cv2.INTER_NEAREST_EXACT
"""By pixel centers, as the image is resized; OpenCV's INTER_NEAREST shifts a halved target by half a source pixel."""
BLURS = (Blur, GaussianBlur, MotionBlur)
"""Means of neighbors with weights that add up to 1: before or after a matrix on colors they give the same."""
_SHIFT = 0.05

Unfinished = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class SegmentationTransform:
    """Applies named albumentations transforms, in order, to an image (H, W, C) and its target (H, W) uint8.

    The random numbers of one call come from its `seed` tuple alone, whatever was called before. All transforms draw
    from one stream: albumentations' own `set_random_seed` would give each the same numbers, tying flips to rotations.

    A `ColorMatrix` is handed on as a matrix instead of being applied, where every later step moves pixels (a
    DualTransform), blurs them linearly (`BLURS`) or is a `ColorMatrix` itself: these commute with a matrix on colors,
    up to rounding, clamping and the color of what they fill in, which the matrix then changes too. Before any other
    step it is applied at its place.
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
        self.deferred = _deferred(self.steps)

    def __call__(
        self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        image, target, color = self.unfinished(image, target, seed)
        return image if color is None else painted(image, color), target

    def unfinished(self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Unfinished:
        """(image, target, color): all steps done but the deferred ones, whose matrix `color` (C, C + 1) float64 is.

        `color` is for values in [0, 255]; None: there is nothing left to do.
        """
        finished = self._run(image, target, seed)
        # Once per sample; which step was at fault is found by running them again.
        if _has_new_labels(target, finished[1]):
            self._run(image, target, seed, watched=True)
            raise DataError(
                f"augment.transforms invented labels: one of {listed(list(self.steps))}",
                expected="only labels that the target had before, or 255, and the same result from the same seed",
                fix="leave the steps out one by one, with '~augment.transforms.NAME', to find which",
            )
        return finished

    def _run(
        self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int], watched: bool = False
    ) -> Unfinished:
        generator = np.random.default_rng(seed)
        python_random = random.Random(int(generator.integers(2**63)))
        deep = image.dtype == np.float32  # albumentations wants floats in [0, 1]; ours are in [0, 255]
        if deep:
            image = image / np.float32(255)
        color: np.ndarray | None = None
        for name, step in self.steps.items():
            step.set_random_state(generator, python_random)
            if name in self.deferred:
                color = _with_matrix(step, image, color)  # type: ignore[arg-type]
                continue
            known = labels_in(target) if watched else None
            result = step(image=image, mask=target)
            image, target = result["image"], result["mask"]
            self._refuse_new_labels(name, known, target)
        if deep:
            image = image * np.float32(255)
        return np.ascontiguousarray(image), np.ascontiguousarray(target), color

    def _refuse_new_labels(self, name: str, known: np.ndarray | None, target: np.ndarray) -> None:
        if target.dtype != np.uint8:
            raise DataError(
                f"augment.transforms.{name} turned the target into {target.dtype}",
                expected="uint8 class indices, which no transform may change",
                fix="use a transform that leaves masks alone, or one that resamples them by nearest neighbor",
            )
        if known is None:
            return
        invented = np.flatnonzero(labels_in(target) & ~known)
        invented = invented[invented != IGNORE_INDEX]
        if len(invented):
            raise DataError(
                f"augment.transforms.{name} invented the labels {listed(invented)}",
                expected="only labels that the target had before, or 255",
                fix=f"remove it with '~augment.transforms.{name}', or set its mask interpolation to nearest",
            )


def _deferred(steps: dict[str, BasicTransform | BaseCompose]) -> frozenset[str]:
    """The names of the ColorMatrix steps that nothing but what commutes with them comes after."""
    found = []
    for name, step in reversed(steps.items()):
        if isinstance(step, ColorMatrix):
            found.append(name)
        elif not _commutes(step):
            break
    return frozenset(found)


def _commutes(step: BasicTransform | BaseCompose) -> bool:
    if isinstance(step, BaseCompose):
        return all(_commutes(inner) for inner in step.transforms)
    return isinstance(step, DualTransform) or type(step) in BLURS  # a MedianBlur is a Blur, and not linear


def _with_matrix(step: ColorMatrix, image: np.ndarray, color: np.ndarray | None) -> np.ndarray | None:
    """`color` and then what `step` draws for the image that `color` has yet to be applied to."""
    if not step.should_apply():
        return color
    mean = mean_color(image) * (255 if image.dtype == np.float32 else 1)
    if color is not None:
        mean = color[:, :-1] @ mean + color[:, -1]
    return chained(color, color_matrix(mean, **step.get_params()))


def _has_new_labels(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether `after` holds a label other than 255 that `before` does not; both uint8."""
    # What a sixteenth of the pixels hold is nearly always all there is; a histogram of every pixel takes ten times
    # as long and is needed only where something is not among it.
    for seen in (np.ascontiguousarray(before[::4, ::4]), before):
        foreign = np.where(labels_in(seen), np.uint8(0), np.uint8(1))
        foreign[IGNORE_INDEX] = 0
        if not cv2.countNonZero(cv2.LUT(after, foreign)):
            return False
    return True


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
    Only the part of the image that the crop shows is scaled. The target is what scaling all of it would give; the image
    differs by a shift of at most 1/20 of a pixel along each axis (see `Span`) and by rounding.
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
        rows, columns = (
            Span.of(length, to, max(0, -at), min(to, side))
            for length, to, at, side in zip((height, width), scaled, offset, self.size, strict=True)
        )
        return {"rows": rows, "columns": columns, "corner": (max(0, offset[0]), max(0, offset[1]))}

    def apply(self, img: np.ndarray, rows: Span, columns: Span, corner: tuple[int, int], **params: Any) -> np.ndarray:
        window = img[rows.first : rows.last, columns.first : columns.last]
        if rows.scale != 1 or columns.scale != 1:
            # Without a size, OpenCV keeps these factors as they are instead of those that fit the window.
            window = cv2.resize(window, None, fx=columns.scale, fy=rows.scale, interpolation=cv2.INTER_LINEAR)
        part = window[rows.skip : rows.skip + rows.count, columns.skip : columns.skip + columns.count]
        return _pad(part.reshape(rows.count, columns.count, *img.shape[2:]), self.size, corner, _fill_of(img))

    def apply_to_mask(
        self, mask: np.ndarray, rows: Span, columns: Span, corner: tuple[int, int], **params: Any
    ) -> np.ndarray:
        vertical, horizontal = rows.nearest(), columns.nearest()
        if rows.scale < 1:  # whole rows are copied fastest: shrunk first, they are fewer, enlarged last
            part = mask.take(vertical, 0, mode="clip").take(horizontal, 1, mode="clip")
        else:
            window = mask[vertical[0] : vertical[-1] + 1].take(horizontal, 1, mode="clip")
            part = window.take(vertical - vertical[0], 0, mode="clip")
        return _pad(part, self.size, corner, [IGNORE_INDEX])


@dataclass(frozen=True)
class Span:
    """One axis of a crop from a scaled image: which source pixels to scale, and which of the result to keep.

    Scaling source pixels `first` to `last - 1` by `scale` and keeping `count` from `skip` on gives the `count` pixels
    from `start` on of the whole axis scaled, whose `length` pixels become `scaled`, moved by at most `_SHIFT` of a
    scaled pixel: `first` is chosen so that `first * scale` is that close to a whole number.
    """

    length: int
    scaled: int
    start: int
    count: int
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
        first = next(at for at in range(needed, -1, -1) if _off_grid(at * scaled, length) <= _SHIFT * length)
        last = min(length, -(-(start + count + 1) * length // scaled) + 1)
        skip = start - (2 * first * scaled + length) // (2 * length)
        return cls(length, scaled, start, count, first, last, skip)

    @property
    def scale(self) -> float:
        return self.scaled / self.length

    def nearest(self) -> np.ndarray:
        """(count,) int64: the source pixel that holds the center of each pixel kept; exact, from whole numbers."""
        return (2 * np.arange(self.start, self.start + self.count) + 1) * self.length // (2 * self.scaled)


def _off_grid(position: int, unit: int) -> int:
    """How far `position` is from a multiple of `unit`."""
    rest = position % unit
    return min(rest, unit - rest)


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

"""Image and target together: seeded, filled with 255, never a label that was not there.

Any albumentations transform can be named in `augment/*.yaml`. `SegmentationTransform` makes all of them safe for
targets in one place: what a geometric transform uncovers becomes `IGNORE_INDEX`, class indices are resampled by nearest
neighbor only, and a transform that still invents a label stops the run.
"""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version when imported
from albumentations import (
    D4,
    Affine,
    Blur,
    CenterCrop,
    Crop,
    ElasticTransform,
    GaussianBlur,
    GridDistortion,
    HorizontalFlip,
    LongestMaxSize,
    MotionBlur,
    OpticalDistortion,
    PadIfNeeded,
    Perspective,
    RandomCrop,
    RandomResizedCrop,
    RandomRotate90,
    RandomScale,
    Resize,
    Rotate,
    SafeRotate,
    ShiftScaleRotate,
    SmallestMaxSize,
    Transpose,
    VerticalFlip,
)
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform

from segtrain.data.color import ColorMatrix, chained, color_matrix, mean_color, painted
from segtrain.data.crops import FILL as FILL
from segtrain.data.crops import CropAndFlip
from segtrain.data.crops import Fit as Fit
from segtrain.data.crops import RandomScaleCrop as RandomScaleCrop  # where configs name them
from segtrain.data.elastic import ElasticGrid, IgnoreBorder, MirrorCrop
from segtrain.data.seeding import Stream
from segtrain.data.seeding import streams as streams  # for transforms of other targets
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import IGNORE_INDEX

BLURS = (Blur, GaussianBlur, MotionBlur)
"""Means of neighbors with weights that add up to 1: before or after a matrix on colors they give the same."""
SPATIAL = (
    *(RandomScaleCrop, Fit, ElasticGrid, MirrorCrop, IgnoreBorder),
    *(HorizontalFlip, VerticalFlip, Transpose, D4, RandomRotate90, RandomCrop, CenterCrop, Crop, PadIfNeeded, Resize),
    *(RandomScale, LongestMaxSize, SmallestMaxSize, RandomResizedCrop, Rotate, SafeRotate, Affine, ShiftScaleRotate),
    *(Perspective, ElasticTransform, GridDistortion, OpticalDistortion),
)
"""They move pixels or mix neighbors by weights: before or after a matrix on colors they give the same but for fills."""
COPIERS = (RandomScaleCrop, Fit, HorizontalFlip, VerticalFlip)
"""They copy labels from pixel to pixel: none can appear that was not there, and none need be looked for."""

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
        self.steps = protected(steps)
        self.stream = Stream()
        self.deferred = deferrable(self.steps)
        self.joined = _joined(self.steps)
        self.trusted = all(name in self.deferred or type(step) in COPIERS for name, step in self.steps.items())

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
        if not self.trusted and _has_new_labels(target, finished[1]):
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
        self.stream.start(seed)
        deep = image.dtype == np.float32  # albumentations wants floats in [0, 1]; ours are in [0, 255]
        if deep:
            image = image / np.float32(255)
        color: np.ndarray | None = None
        for name, step in (self.steps if watched else self.joined).items():
            step.set_random_state(self.stream.numpy, self.stream.python)
            if name in self.deferred:
                color = with_matrix(step, image, color)  # type: ignore[arg-type]
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


def protected(steps: dict[str, Any]) -> dict[str, BasicTransform | BaseCompose]:
    """The same steps, once each is known to be a transform, with their targets protected.

    Raises:
        ConfigError: a step is something else.
    """
    for name, step in steps.items():
        if not isinstance(step, BasicTransform | BaseCompose):
            raise ConfigError(
                f"augment.transforms.{name} is a {type(step).__name__}",
                expected="an albumentations transform (`_target_: albumentations.…`)",
            )
        protect_target(step)
    return dict(steps)


def deferrable(steps: dict[str, BasicTransform | BaseCompose]) -> frozenset[str]:
    """The names of the ColorMatrix steps that nothing but what commutes with them comes after."""
    found = []
    for name, step in reversed(steps.items()):
        if isinstance(step, ColorMatrix):
            found.append(name)
        elif not _commutes(step):
            break
    return frozenset(found)


def _joined(steps: dict[str, BasicTransform | BaseCompose]) -> dict[str, BasicTransform | BaseCompose | CropAndFlip]:
    """The steps by name, each RandomScaleCrop and the flip right after it as one."""
    found: dict[str, BasicTransform | BaseCompose | CropAndFlip] = {}
    before = ""
    for name, step in steps.items():
        crop = found.get(before)
        if type(step) is RandomScaleCrop:
            found[name] = CropAndFlip(step)
        elif type(step) is HorizontalFlip and isinstance(crop, CropAndFlip) and crop.flip is None:
            crop.flip = step
            continue  # another flip after this one is a step of its own
        else:
            found[name] = step
        before = name
    return found


def _commutes(step: BasicTransform | BaseCompose) -> bool:
    if isinstance(step, BaseCompose):
        return all(_commutes(inner) for inner in step.transforms)
    return type(step) in (
        *SPATIAL,
        *BLURS,
    )  # no subclasses: a MedianBlur is a Blur, and not linear


def with_matrix(step: ColorMatrix, image: np.ndarray, color: np.ndarray | None) -> np.ndarray | None:
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

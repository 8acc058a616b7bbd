"""Image and objects together: seeded, one mask per object, boxes always tight around what is left of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from segtrain.data.color import painted
from segtrain.data.seeding import Stream
from segtrain.data.transforms import COPIERS, deferrable, protected, with_matrix
from segtrain.errors import DataError, listed
from segtrain.instances import Instances
from segtrain.types import IGNORE_INDEX

Unfinished = tuple[np.ndarray, Instances, np.ndarray | None]


class InstanceTransform:
    """Applies named albumentations transforms, in order, to an image (H, W, C) and each of its objects' masks.

    Every mask goes through the steps as a target of `SegmentationTransform` does, on the same random numbers, so masks
    that overlap still do. What a step uncovers belongs to no object. An object of which nothing is left is dropped, and
    an image may end without any. The boxes are tight around the new masks and `area` counts their pixels; labels, ids
    and crowds stay. A `ColorMatrix` is handed on as in `SegmentationTransform`.

    Raises:
        ConfigError: a step is no albumentations transform.
    """

    def __init__(self, steps: dict[str, Any]) -> None:
        self.steps = protected(steps)
        self.deferred = deferrable(self.steps)
        self.stream = Stream()

    def __call__(
        self, image: np.ndarray, target: Instances, seed: tuple[int, int, int]
    ) -> tuple[np.ndarray, Instances]:
        image, target, color = self.unfinished(image, target, seed)
        return image if color is None else painted(image, color), target

    def unfinished(self, image: np.ndarray, target: Instances, seed: tuple[int, int, int]) -> Unfinished:
        """(image, target, color): all steps done but the deferred ones, whose matrix `color` (C, C + 1) float64 is.

        `color` is for values in [0, 255]; None: there is nothing left to do.

        Raises:
            DataError: a step gave a mask values that no mask has, or another size than the image's.
        """
        self.stream.start(seed)
        deep = image.dtype == np.float32  # albumentations wants floats in [0, 1]; ours are in [0, 255]
        if deep:
            image = image / np.float32(255)
        # Albumentations has no way to say that there are no masks: an empty one stands for them, and is cut off below.
        masks = target.masks.numpy() if len(target) else np.zeros((1, *target.size), np.uint8)
        color: np.ndarray | None = None
        for name, step in self.steps.items():
            step.set_random_state(self.stream.numpy, self.stream.python)
            if name in self.deferred:
                color = with_matrix(step, image, color)  # type: ignore[arg-type]
                continue
            result = step(image=image, masks=masks)
            image, masks = result["image"], np.asarray(result["masks"])
            if type(step) not in COPIERS:
                _refuse_blends(name, image, masks)
        if deep:
            image = image * np.float32(255)
        return np.ascontiguousarray(image), _moved(target, masks[: len(target)]), color


def _moved(target: Instances, masks: np.ndarray) -> Instances:
    """The objects with new masks (N, H, W), 255 where a step uncovered nothing; without those that are gone."""
    new = torch.from_numpy(np.equal(masks, 1).view(np.uint8))
    found = Instances.of(new, target.labels, crowd=target.crowd, ids=target.ids)
    there = (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all(1)
    return found if there.all() else found.keep(there)  # to keep all would copy every mask


def _refuse_blends(name: str, image: np.ndarray, masks: np.ndarray) -> None:
    if masks.shape[1:] != image.shape[:2]:
        raise DataError(
            f"augment.transforms.{name} made masks of {listed(masks.shape[1:])} "
            f"of an image of {listed(image.shape[:2])} (height, width)",
            expected="masks of the image's size",
            fix=f"remove it with '~augment.transforms.{name}'",
        )
    if masks.dtype != np.uint8 or ((masks > 1) & (masks != IGNORE_INDEX)).any():
        raise DataError(
            f"augment.transforms.{name} gave masks values between an object and none",
            expected="0, 1, or 255 where it uncovers nothing",
            fix=f"remove it with '~augment.transforms.{name}', or set its mask interpolation to nearest",
        )

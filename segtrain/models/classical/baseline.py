"""What the methods without training share: pixels in, foreground out, and which side is the foreground."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.models.segmentation import SegmentationModel
from segtrain.types import NumClasses

Foreground = Literal["center", "bright", "dark"]
LOGIT = 10.0
"""Of the class that was chosen; the other has 0. A rule gives no probability: its softmax is 1 up to 5e-5."""
ROUNDING = 1e-3
"""How far from [0, 1] interpolation and rounding may lead."""


class Baseline(SegmentationModel, ABC):
    """Foreground and background by a rule; no parameters, nothing to train, the same result every time.

    A subclass implements `foreground_of`. Class 1 is the foreground. Images come in as image / 255, that is with
    `normalize.mean` 0 and `normalize.std` 1, because rules are about gray values and colors as they are.

    Args:
        num_classes: must be 2.
        in_channels: 3 for RGB, 1 for gray.
        foreground: which side is the foreground. `center`: the one with fewer pixels on the image's border (the
            brighter one, if they are even); `bright` or `dark`: that one.

    Raises:
        ConfigError: more classes than background and foreground.
    """

    logit: Tensor

    def __init__(self, *, num_classes: NumClasses, in_channels: int = 3, foreground: Foreground = "center") -> None:
        if num_classes != 2:
            raise ConfigError(
                f"{type(self).__name__} tells 2 classes apart, the data have {num_classes}",
                where="model.num_classes",
                expected="background (class 0) and foreground (class 1)",
                fix="evaluate it on such data (it needs no training), e.g.\n"
                "python -m segtrain evaluate model=otsu data=portrait data.root=DIR\n"
                "python -m segtrain evaluate model=otsu data=pet data.target=foreground data.root=DIR",
            )
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.foreground = foreground
        # A buffer, so that a module without parameters still has a device, and can be measured as any other.
        self.register_buffer("logit", torch.tensor(LOGIT), persistent=False)

    @abstractmethod
    def foreground_of(self, image: np.ndarray) -> np.ndarray:
        """Image (H, W, 1|3) uint8 RGB -> (H, W) bool, true for class 1; all false where nothing stands out."""

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Image / 255 (B, C, H, W) -> `{"out": (B, 2, H, W)}`, `LOGIT` for the class that was chosen.

        Raises:
            ConfigError: values outside of [0, 1].
        """
        if image.is_meta:  # only its size is asked for
            return {"out": image.new_empty(image.shape[0], 2, *image.shape[2:])}
        low, high = float(image.min()), float(image.max())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ConfigError(
                f"{type(self).__name__} was given values from {low:.2f} to {high:.2f}",
                where="model.normalize",
                expected="image / 255, from 0 to 1",
                fix="leave model.normalize as in configs/model/otsu.yaml; for gray images mean=[0.0] and std=[1.0]",
            )
        pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        masks = [self.foreground_of(one) for one in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
        chosen = torch.from_numpy(np.stack(masks)).to(image.device)
        return {"out": torch.stack([~chosen, chosen], 1) * self.logit}

    def choose(self, bright: np.ndarray) -> np.ndarray:
        """The brighter side of an image (H, W) bool, or the other one: whichever is the foreground."""
        if self.foreground == "center":
            border = np.concatenate([bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]])
            return ~bright if 2 * int(border.sum()) > border.size else bright
        return bright if self.foreground == "bright" else ~bright


def gray_of(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 1|3) uint8 -> luma (H, W) uint8, by the weights of ITU-R BT.601."""
    return image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def disk(radius: int) -> np.ndarray:
    """Structuring element (2r + 1, 2r + 1) uint8: the pixels at most `radius` from the middle one."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)


def scikit(module: str, user: str) -> Any:
    """A module of scikit-image, which only some of these methods need."""
    try:
        return importlib.import_module(f"skimage.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{user} needs scikit-image, which is not installed",
            expected=f"the module '{error.name}'",
            fix="pip install -e '.[classical]'",
        ) from error

"""The training pipeline in the order in which it is usually written, for the same augmentation as `augment=basic`.

The whole image is scaled, padded and cropped; color is drawn and pixels are normalized in the worker; float32 images
and int64 targets leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from segtrain.data.transforms import FILL
from segtrain.types import IGNORE_INDEX

Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


def pipeline(crop: tuple[int, int], scale_range: tuple[float, float] = (0.5, 2.0)) -> albumentations.Compose:
    """Image and mask -> float32 (3, *crop) and the target as a tensor of the mask's type."""
    low, high = scale_range
    return albumentations.Compose(
        [
            albumentations.RandomScale(scale_limit=(low - 1, high - 1), p=1.0, interpolation=cv2.INTER_LINEAR),
            albumentations.PadIfNeeded(*crop, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX),
            albumentations.RandomCrop(*crop),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, p=0.8),
            albumentations.Normalize(),
            ToTensorV2(),
        ]
    )


class NaiveDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples of `read` through `pipeline`; `repeat` times as many as there are."""

    def __init__(self, read: Read, count: int, crop: tuple[int, int], repeat: int = 1) -> None:
        self.read = read
        self.count = count
        self.repeat = repeat
        self.pipeline = pipeline(crop)

    def __len__(self) -> int:
        return self.count * self.repeat

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.read(index % self.count)
        done: dict[str, Any] = self.pipeline(image=image, mask=mask)
        return done["image"], done["mask"].to(torch.int64)


class OpenCvFiles:
    """Reads pairs of files with OpenCV, as most pipelines do; palette masks by their indices."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.pairs[index]
        colors = cv2.imread(image)
        assert colors is not None
        return cv2.cvtColor(colors, cv2.COLOR_BGR2RGB), np.array(
            Image.open(mask)
        )  # OpenCV would give a palette's colors

"""What all generated datasets share: samples that follow from a seed, and the forms that are drawn into them."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import cv2
import numpy as np

from segtrain.data.images import ImageDataset
from segtrain.types import PositiveInt, Record, Seed

Target = TypeVar("Target")


class GeneratedImages(ImageDataset[Target], Generic[Target]):
    """Square images without files; a subclass draws them, each from `seeds_of` its record alone.

    Args:
        train_images, val_images: samples per split.
        size: side of the images in pixels.
        data_seed: another seed is another dataset.
        shared: as in `ImageDataset`.
    """

    def __init__(
        self,
        *,
        train_images: PositiveInt = 320,
        val_images: PositiveInt = 64,
        size: PositiveInt = 96,
        data_seed: Seed = 0,
        **shared: Any,
    ) -> None:
        self.images = {"train": train_images, "val": val_images}
        self.size = size
        self.data_seed = data_seed
        super().__init__(**shared)

    def find_records(self) -> list[Record]:
        return [Record(f"{self.split}/{i:05d}", extra={"index": i}) for i in range(self.images[self.split])]

    def seeds_of(self, record: Record) -> list[int]:
        """Data seed, split and number."""
        return [self.data_seed, self.splits.index(self.split), record.extra["index"]]

    def in_channels(self, image: np.ndarray) -> np.ndarray:
        """RGB (H, W, 3) uint8 -> (H, W, C), grey where `channels` is 1."""
        return image if self.channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def draw_form(form: str, rng: np.random.Generator, size: int, radius: int, center: np.ndarray) -> np.ndarray:
    """A disc, square, triangle or ring around `center` (x, y), turned at random: (size, size) uint8, 1 where it is."""
    mask = np.zeros((size, size), np.uint8)
    if form in ("disc", "ring"):
        cv2.circle(mask, center.tolist(), radius, 1, -1)
        if form == "ring" and radius > 1:  # a hole would leave next to nothing of a smaller one
            cv2.circle(mask, center.tolist(), radius // 2, 0, -1)
        return mask
    corners = {"square": 4, "triangle": 3}[form]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask


def rgb_of(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in [0, 180), OpenCV's half degrees, saturation and value in [0, 255] -> an RGB color (3,) uint8."""
    hsv = np.array([[[hue, saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]

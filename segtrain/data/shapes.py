"""`shapes`: a generated dataset, so that the first run needs no download.

Each image is a textured background with overlapping discs, squares, triangles and rings. A class has a usual hue but
any shape may have any, so that color helps, as in photographs, and form decides. Rare classes are rare on purpose, and
every border carries a void line of 255 as PASCAL VOC's do. A sample depends on (data seed, split, index) alone.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.generated import GeneratedImages, draw_form, rgb_of
from segtrain.errors import ConfigError, listed
from segtrain.types import IGNORE_INDEX, Record

Target = TypeVar("Target")

# How often a shape is drawn: class imbalance as real data have it.
FREQUENCY = {"disc": 0.38, "square": 0.27, "triangle": 0.20, "ring": 0.15}
HUE = {"disc": 0, "square": 110, "triangle": 60, "ring": 28}  # usual hue, OpenCV's half degrees
ODD_HUE = 0.05  # share of shapes of any hue


class Scene(NamedTuple):
    """One picture: `image` (size, size, C) uint8, and its `shapes`, the hindmost first.

    A shape is its class's name and its mask (size, size) uint8, 1 also where shapes in front of it hide it.
    """

    image: np.ndarray
    shapes: list[tuple[str, np.ndarray]]


class DrawnShapes(GeneratedImages[Target], Generic[Target]):
    """Generated images (size, size, C); what is said of the shapes in them, a subclass decides.

    Args:
        shared: as in `GeneratedImages`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        unknown = [name for name in FREQUENCY if name not in self.classes[1:]]
        if unknown:
            raise ConfigError(
                f"data.classes has no {listed(unknown)}",
                where="data.classes",
                expected=f"a background and then {listed(FREQUENCY)}",
                fix="leave data.classes as configs/data/shapes.yaml has it",
            )

    def draw(self, record: Record) -> Scene:
        """The picture of one record, from (data seed, split, index) alone."""
        rng = np.random.default_rng(self.seeds_of(record))
        image = _background(rng, self.size)
        shapes = []
        for _ in range(rng.integers(3, 7)):
            name = str(rng.choice(list(FREQUENCY), p=list(FREQUENCY.values())))
            mask = _draw(name, rng, self.size)
            _paint(image, mask, _color(name, rng), rng)
            shapes.append((name, mask))
        noise = rng.normal(0, 8, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
        return Scene(self.in_channels(image), shapes)


class Shapes(DrawnShapes[np.ndarray], SegmentationDataset):
    """`background, disc, square, triangle, ring`, with void borders."""

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        scene = self.draw(record)
        target = np.zeros((self.size, self.size), np.uint8)
        border = np.zeros_like(target)
        for name, mask in scene.shapes:
            target[mask > 0] = self.classes.index(name)
            outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
            border[mask > 0] = 0  # a shape on top hides the borders below it
            border[outline > 0] = 1
        target[border > 0] = IGNORE_INDEX
        return scene.image, target

    def read_target(self, record: Record) -> np.ndarray:
        return self.load(record)[1]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = (rng.uniform(40, 215, (4, 4, 1)) + rng.uniform(-25, 25, (4, 4, 3))).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _draw(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    radius = int(rng.uniform(0.14, 0.28) * size)
    return draw_form(name, rng, size, radius, rng.integers(radius // 2, size - radius // 2, 2))


def _color(name: str, rng: np.random.Generator) -> np.ndarray:
    """An RGB color (3,) float32 of the class's usual hue, or now and then of any."""
    hue = rng.uniform(0, 180) if rng.random() < ODD_HUE else rng.normal(HUE[name], 6) % 180
    return rgb_of(hue, rng.uniform(110, 255), rng.uniform(110, 255)).astype(np.float32)


def _paint(image: np.ndarray, mask: np.ndarray, color: np.ndarray, rng: np.random.Generator) -> None:
    stripes = np.sin(np.arange(image.shape[1]) * rng.uniform(0.2, 1.0))[None, :, None] * rng.uniform(0, 30)
    textured = np.broadcast_to(color + stripes, image.shape)
    image[mask > 0] = textured[mask > 0]

"""`shapes`: a generated dataset, so that the first run needs no download.

Each image is a textured background with overlapping discs, squares, triangles and rings. A class has a usual hue but
any shape may have any, so that color helps, as in photographs, and form decides. Rare classes are rare on purpose, and
every border carries a void line of 255 as PASCAL VOC's do. A sample depends on (data seed, split, index) alone.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import ImageDataset
from segtrain.errors import ConfigError, listed
from segtrain.types import IGNORE_INDEX, PositiveInt, Record, Seed

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


class DrawnShapes(ImageDataset[Target], Generic[Target]):
    """Generated images (size, size, C); what is said of the shapes in them, a subclass decides.

    Args:
        train_images, val_images: samples per split.
        size: side of the square images in pixels.
        data_seed: another seed is another dataset.
    """

    def __init__(
        self,
        *,
        train_images: PositiveInt = 320,
        val_images: PositiveInt = 64,
        size: PositiveInt = 96,
        data_seed: Seed = 0,
        **shared: object,
    ) -> None:
        self.images = {"train": train_images, "val": val_images}
        self.size = size
        self.data_seed = data_seed
        super().__init__(**shared)  # type: ignore[arg-type]
        unknown = [name for name in FREQUENCY if name not in self.classes[1:]]
        if unknown:
            raise ConfigError(
                f"data.classes has no {listed(unknown)}",
                where="data.classes",
                expected=f"a background and then {listed(FREQUENCY)}",
                fix="leave data.classes as configs/data/shapes.yaml has it",
            )

    def find_records(self) -> list[Record]:
        return [Record(f"{self.split}/{i:05d}", extra={"index": i}) for i in range(self.images[self.split])]

    def draw(self, record: Record) -> Scene:
        """The picture of one record, from (data seed, split, index) alone."""
        rng = np.random.default_rng([self.data_seed, self.splits.index(self.split), record.extra["index"]])
        image = _background(rng, self.size)
        shapes = []
        for _ in range(rng.integers(3, 7)):
            name = str(rng.choice(list(FREQUENCY), p=list(FREQUENCY.values())))
            mask = _draw(name, rng, self.size)
            _paint(image, mask, _color(name, rng), rng)
            shapes.append((name, mask))
        noise = rng.normal(0, 8, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if self.channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        return Scene(image, shapes)


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
    mask = np.zeros((size, size), np.uint8)
    radius = int(rng.uniform(0.14, 0.28) * size)
    center = rng.integers(radius // 2, size - radius // 2, 2)
    if name in ("disc", "ring"):
        cv2.circle(mask, center.tolist(), radius, 1, -1)
        if name == "ring":
            cv2.circle(mask, center.tolist(), radius // 2, 0, -1)
        return mask
    corners = {"square": 4, "triangle": 3}[name]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask


def _color(name: str, rng: np.random.Generator) -> np.ndarray:
    """An RGB color (3,) float32 of the class's usual hue, or now and then of any."""
    hue = rng.uniform(0, 180) if rng.random() < ODD_HUE else rng.normal(HUE[name], 6) % 180
    hsv = np.array([[[hue, rng.uniform(110, 255), rng.uniform(110, 255)]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _paint(image: np.ndarray, mask: np.ndarray, color: np.ndarray, rng: np.random.Generator) -> None:
    stripes = np.sin(np.arange(image.shape[1]) * rng.uniform(0.2, 1.0))[None, :, None] * rng.uniform(0, 30)
    textured = np.broadcast_to(color + stripes, image.shape)
    image[mask > 0] = textured[mask > 0]

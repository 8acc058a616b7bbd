"""Generated inputs that cost what real ones cost: label maps of regions, images whose files are as large as photos'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from segtrain.data.labels import voc_palette
from segtrain.types import IGNORE_INDEX


@dataclass(frozen=True)
class Profile:
    """What the files of a dataset look like: (width, height), classes, the crop that is trained on, the file's kind."""

    name: str
    size: tuple[int, int]
    classes: int
    crop: int
    suffix: str
    noise: float
    """Standard deviation of the sensor noise in gray levels: it decides how well a file compresses."""


PROFILES = {
    "voc": Profile("VOC-like 500x375 JPEG", (500, 375), 21, 512, ".jpg", 7.0),
    "cityscapes": Profile("Cityscapes-like 2048x1024 PNG", (2048, 1024), 19, 768, ".png", 1.0),
}


def label_map(rng: np.random.Generator, size: tuple[int, int], classes: int, regions: int = 8) -> np.ndarray:
    """Classes (H, W) uint8 in a few regions of curved borders, 255 along them; size is (width, height)."""
    chosen = rng.permutation(classes)[: min(classes, regions)].astype(np.uint8)
    coarse = rng.random((len(chosen), 6, 8), dtype=np.float32)
    best = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one in coarse]).argmax(0)
    target: np.ndarray = chosen[best]
    edges = cv2.morphologyEx(target, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    target[edges] = IGNORE_INDEX
    return target


def photo(rng: np.random.Generator, target: np.ndarray, noise: float) -> np.ndarray:
    """An image (H, W, 3) uint8 of the regions of `target`: a color and a texture each, light and shade, noise."""
    height, width = target.shape
    colors = rng.integers(30, 226, (256, 3)).astype(np.float32)
    image: np.ndarray = cv2.GaussianBlur(colors[target], (0, 0), 1.0)
    for cells, strength in ((8, 40.0), (40, 20.0), (160, 10.0)):
        rough = rng.normal(0, strength, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        image += cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, noise, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_folder(root: Path, profile: Profile, count: int) -> list[tuple[Path, Path]]:
    """Writes `count` training images with palette masks as `data=folder` reads them, and one more for validation.

    Returns:
        the paths (image, mask) of the training split.
    """
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    palette = [value for color in voc_palette(256) for value in color]
    for number in range(count + 1):
        target = label_map(rng, profile.size, profile.classes)
        image = Image.fromarray(photo(rng, target, profile.noise))
        mask = Image.fromarray(target)
        mask.putpalette(palette)
        pair = root / "images" / f"{number:03d}{profile.suffix}", root / "masks" / f"{number:03d}.png"
        image.save(pair[0], quality=92)  # PNG, which loses nothing, has no use for it
        mask.save(pair[1])
        pairs.append(pair)
    for split, part in (("train", pairs[:count]), ("val", pairs[count:])):
        (root / f"{split}.txt").write_text("".join(f"{image.stem}\n" for image, _ in part), encoding="utf-8")
    return pairs[:count]

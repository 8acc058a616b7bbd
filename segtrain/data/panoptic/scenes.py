"""Generated scenes: sky, ground and water by their texture, and objects before them that hide one another.

A scene depends on its seeds alone. Sky and water share hues, as they do in photographs: gradients, grain and ripples
tell them apart. Objects are of four forms, each with a usual hue that any of them may have now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segtrain.data.generated import draw_form, rgb_of

STUFF = ("sky", "ground", "water")
FORMS = ("disc", "square", "triangle", "ring")
HUE = {"disc": 0, "square": 150, "triangle": 28, "ring": 130}  # usual hue, OpenCV's half degrees; 50 to 115 is stuff's
ODD_HUE = 0.05  # share of objects of any hue
VISIBLE = 0.4
"""Every object shows at least this share of itself, so that truth names nothing that cannot be seen."""
TRIES = 10


@dataclass(frozen=True)
class Scene:
    """`image` (size, size, 3) uint8 RGB; `stuff` (size, size) uint8 indices into `STUFF`, also behind objects;
    `masks` (N, size, size) bool, what is seen of each object, apart from one another; `forms`: their names;
    `areas` (N,) int64, pixels of each with what is hidden."""

    image: np.ndarray
    stuff: np.ndarray
    masks: np.ndarray
    forms: tuple[str, ...]
    areas: np.ndarray


def scene(size: int, seeds: Sequence[int]) -> Scene:
    """The scene of these seeds; 1 to 6 objects."""
    rng = np.random.default_rng(list(seeds))
    stuff = _regions(rng, size)
    image = _textures(rng, size)[stuff, np.arange(size)[:, None], np.arange(size)]
    areas: list[int] = []
    seen: list[np.ndarray] = []
    forms: list[str] = []
    for _ in range(rng.integers(1, 7)):
        for _ in range(TRIES):
            form = str(rng.choice(FORMS))
            mask = _form(form, rng, size)
            if all((one & ~mask).sum() >= VISIBLE * area for one, area in zip(seen, areas, strict=True)):
                seen = [one & ~mask for one in seen]
                seen.append(mask)
                areas.append(int(mask.sum()))
                forms.append(form)
                stripes = np.sin(np.arange(size) * rng.uniform(0.2, 1.0))[:, None] * rng.uniform(0, 25)
                image[mask] = np.broadcast_to(_color(form, rng) + stripes, image.shape)[mask]
                break
    noisy = image + rng.normal(0, 5, image.shape)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), stuff, np.stack(seen), tuple(forms), np.array(areas))


def _regions(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sky above a wavy horizon, ground below it, and often a lake in the ground or a sea that cuts across it."""
    y, x = np.mgrid[:size, :size] / size
    stuff = (y > rng.uniform(0.3, 0.55) + _wave(rng, x[0])).astype(np.uint8)
    if rng.random() < 0.7:
        if rng.random() < 0.5:
            wet = y > rng.uniform(0.7, 0.85) + _wave(rng, x[0])
        else:
            middle, radius = rng.uniform([0.75, 0.2], [0.9, 0.8]), rng.uniform([0.08, 0.2], [0.15, 0.4])
            wet = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1
        stuff[wet & (stuff == STUFF.index("ground"))] = STUFF.index("water")
    return stuff


def _wave(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return 0.05 * np.sin(2 * np.pi * (x * rng.uniform(0.5, 2) + rng.random()))


def _textures(rng: np.random.Generator, size: int) -> np.ndarray:
    """(3, size, size, 3) float64: what each kind of stuff would look like all over the image."""
    down, across = (np.mgrid[:size, :size] / size)[..., None]
    blue = _rgb(rng.uniform(95, 115), rng.uniform(90, 140), rng.uniform(150, 220))
    clouds = cv2.resize(rng.uniform(0, 60, (4, 4)), (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    sky = blue + 60 * down + clouds
    grain = cv2.blur(rng.normal(0, 60, (size, size)), (2, 2))[..., None]
    ground = _rgb(rng.uniform(50, 65), rng.uniform(90, 160), rng.uniform(80, 150)) + grain
    deep = _rgb(rng.uniform(90, 115), rng.uniform(90, 160), rng.uniform(110, 190))
    ripples = np.sin(2 * np.pi * (down * rng.uniform(8, 14) + 0.05 * np.sin(2 * np.pi * across * rng.uniform(1, 4))))
    return np.stack([sky, ground, deep + 28 * ripples])


def _form(form: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A mask (size, size) bool of at least one pixel."""
    radius = max(1, int(rng.uniform(0.08, 0.2) * size))
    center = rng.integers(radius, max(radius + 1, size - radius), 2)
    return draw_form(form, rng, size, radius, center).astype(bool)


def _color(form: str, rng: np.random.Generator) -> np.ndarray:
    hue = rng.uniform(0, 180) if rng.random() < ODD_HUE else rng.normal(HUE[form], 5) % 180
    return _rgb(hue, rng.uniform(130, 255), rng.uniform(120, 255))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return rgb_of(hue, saturation, value).astype(np.float64)

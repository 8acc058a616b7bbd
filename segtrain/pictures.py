"""Labels as pictures: palettes, overlays, error maps, the confusion matrix. All arrays are RGB uint8 (H, W, 3)."""

from __future__ import annotations

import cv2
import numpy as np

from segtrain.types import IGNORE_INDEX

VOID = (224, 224, 192)
"""PASCAL VOC's color of unlabelled pixels."""
WRONG = (230, 30, 30)
SMALLEST_TILE = 192
"""Height in pixels that small tiles are enlarged towards."""


def colorize(indices: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    """Class indices (H, W) -> their colors; `IGNORE_INDEX` becomes `VOID`."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = VOID
    return table[indices]


def overlay(image: np.ndarray, indices: np.ndarray, palette: list[list[int]], opacity: float = 0.55) -> np.ndarray:
    """The image (H, W, 1|3) with class colors laid over it; a class whose color is black leaves it clear."""
    return _laid_over(to_rgb(image), colorize(indices, palette), opacity)


def mistakes(image: np.ndarray, target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image (H, W, 1|3) dimmed, wrong pixels in red, unlabelled ones in `VOID`: nobody judges those."""
    picture = to_rgb(image) // 3
    picture[prediction != target] = WRONG
    picture[target == IGNORE_INDEX] = VOID
    return picture


def panel(image: np.ndarray, target: np.ndarray, prediction: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    """Input, truth, prediction and errors side by side with captions."""
    tiles = {
        "input": to_rgb(image),
        "truth": overlay(image, target, palette, 0.7),
        "prediction": overlay(image, prediction, palette, 0.7),
        "errors": mistakes(image, target, prediction),
    }
    # Small images are enlarged by a whole factor, so that single pixels stay visible.
    factor = max(1, SMALLEST_TILE // image.shape[0])
    tiles = {name: tile.repeat(factor, axis=0).repeat(factor, axis=1) for name, tile in tiles.items()}
    return np.concatenate([captioned(tile, name) for name, tile in tiles.items()], axis=1)


def confusion_picture(counts: np.ndarray, classes: list[str], cell: int = 34) -> np.ndarray:
    """Confusion matrix (C, C), rows = target: each row scaled to percent, darker is more."""
    size = len(classes)
    margin = 20 + 8 * max(len(name) for name in classes)
    picture = np.full((margin + cell * size + 10, margin + cell * size + 10, 3), 255, np.uint8)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, name in enumerate(classes):
        _write(picture, name, (6, margin + row * cell + cell // 2 + 4))
        for column in range(size):
            x, y = margin + column * cell, margin + row * cell
            value = float(share[row, column])
            shade = int(255 - 200 * value)
            color = (shade, shade, 255) if row == column else (255, shade, shade)
            cv2.rectangle(picture, (x, y), (x + cell - 2, y + cell - 2), color, -1)
            if value >= 0.005:
                _write(picture, f"{100 * value:.0f}", (x + 6, y + cell // 2 + 4))
    turned = np.ascontiguousarray(np.rot90(picture, -1))  # names above the columns, written sideways
    for column, name in enumerate(classes):
        row = margin + column * cell + cell // 2 + 4
        _write(turned, name, (turned.shape[1] - margin + 6, row))
    return np.ascontiguousarray(np.rot90(turned))


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 1|3), uint8 or float32 in [0, 255], as uint8 RGB."""
    image = np.clip(image, 0, 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image)


def _laid_over(image: np.ndarray, colors: np.ndarray, opacity: float) -> np.ndarray:
    blended = cv2.addWeighted(image, 1 - opacity, colors, opacity, 0)
    clear = (colors == 0).all(-1)
    blended[clear] = image[clear]
    return blended


def captioned(tile: np.ndarray, name: str) -> np.ndarray:
    """The tile (H, W, 3) under a bar with its name, between white margins."""
    bar = np.full((18, tile.shape[1], 3), 255, np.uint8)
    _write(bar, name, (4, 13))
    return np.pad(np.concatenate([bar, tile]), ((0, 0), (1, 1), (0, 0)), constant_values=255)


def _write(picture: np.ndarray, text: str, corner: tuple[int, int]) -> None:
    cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1, cv2.LINE_AA)

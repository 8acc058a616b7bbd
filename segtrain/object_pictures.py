"""Objects as pictures: a shade of its own for each, its outline, its box, its name and score. RGB uint8 (H, W, 3)."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from torch import Tensor

from segtrain.instances import Detections, Instances
from segtrain.pictures import SMALLEST_TILE, captioned, to_rgb

TURN = 0.381966
"""The golden angle as a share of a turn: any number of shades in a row differ from their neighbors."""


def shade(color: list[int], number: int) -> tuple[int, int, int]:
    """A variant of a class's color for its `number`-th object: another brightness, and a little of another hue."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    turn = number * TURN % 1
    lightness = min(0.75, max(0.35, lightness)) * (0.75 + 0.5 * turn)
    varied = colorsys.hls_to_rgb((hue + 0.12 * (turn - 0.5)) % 1, min(0.85, lightness), max(0.55, saturation))
    return tuple(round(255 * value) for value in varied)  # type: ignore[return-value]


def with_objects(
    image: np.ndarray,
    objects: Detections | Instances,
    classes: list[str],
    palette: list[list[int]],
    opacity: float = 0.55,
) -> np.ndarray:
    """The image (H, W, 1|3) with its objects laid over it, the likeliest on top; crowds are outlined alone."""
    picture = to_rgb(image)
    scores = objects.scores.tolist() if isinstance(objects, Detections) else [None] * len(objects)
    crowd = objects.crowd.tolist() if isinstance(objects, Instances) else [False] * len(objects)
    labels, masks = objects.labels.tolist(), objects.masks.cpu().numpy()
    colors = [shade(palette[label], labels[:place].count(label)) for place, label in enumerate(labels)]
    for place in reversed(range(len(labels))):
        mask = masks[place] > 0
        if not crowd[place]:
            tinted = picture[mask] * (1 - opacity) + np.array(colors[place]) * opacity
            picture[mask] = tinted.round().astype(np.uint8)
        found, _ = cv2.findContours(masks[place].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, colors[place], 1)
    for place in reversed(range(len(labels))):
        _framed(
            picture, objects.boxes[place], _name(classes[labels[place]], scores[place], crowd[place]), colors[place]
        )
    return picture


def object_panel(
    image: np.ndarray, truth: Instances, found: Detections, classes: list[str], palette: list[list[int]]
) -> np.ndarray:
    """Input, truth and prediction side by side with captions."""
    # Small images are enlarged by a whole factor before they are drawn on, so that names can be read.
    factor = max(1, SMALLEST_TILE // image.shape[0])
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    tiles = {
        "input": to_rgb(large),
        "truth": with_objects(large, _enlarged(truth, factor), classes, palette),
        "prediction": with_objects(large, _enlarged(found, factor), classes, palette),
    }
    return np.concatenate([captioned(tile, name) for name, tile in tiles.items()], axis=1)


def _enlarged(objects: Instances | Detections, factor: int) -> Detections | Instances:
    masks = objects.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if isinstance(objects, Detections):
        return Detections(objects.boxes * factor, objects.labels, objects.scores, masks)
    return Instances(masks, objects.boxes * factor, objects.labels, objects.crowd, objects.area, objects.ids)


def _name(name: str, score: float | None, crowd: bool) -> str:
    return name + (f" {score:.2f}" if score is not None else "") + (" (crowd)" if crowd else "")


def _framed(picture: np.ndarray, box: Tensor, name: str, color: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), color, 1)
    (width, height), base = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    left = max(0, min(x0, picture.shape[1] - width - 4))
    top = y0 - height - base - 2 if y0 - height - base - 2 >= 0 else y0
    cv2.rectangle(picture, (left, top), (left + width + 3, top + height + base + 1), color, -1)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    ink = (255, 255, 255) if dark else (20, 20, 20)
    cv2.putText(picture, name, (left + 2, top + height + 1), cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, 1, cv2.LINE_AA)

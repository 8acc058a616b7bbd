"""Objects as pictures: a shade of its own for each, its outline, its box, its name and score. RGB uint8 (H, W, 3)."""

from __future__ import annotations

import colorsys
from collections import Counter

import cv2
import numpy as np

from segtrain.instances import Detections, Instances
from segtrain.metrics.matching import Matches, match
from segtrain.pictures import SMALLEST_TILE, captioned, to_rgb

TURN = 0.381966
"""The golden angle as a share of a turn: any number of shades in a row differ from their neighbors."""
FULL_HEIGHT = 480
"""Height in pixels that letters and lines of one pixel are made for; they grow with larger pictures."""
SMALLEST_NAMED = 160
"""Pixels of the shorter side from which a picture has names; letters that can be read would hide a smaller one."""
LARGEST_NAME = 0.25
"""The share of its object's box that a name may be as large as: many small objects would be hidden by their names."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
Color = tuple[int, int, int]


def shade(color: list[int], number: int) -> Color:
    """A variant of a class's color for its `number`-th object: another brightness, and a little of another hue."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    turn = number * TURN % 1
    lightness = min(0.75, max(0.35, lightness)) * (0.75 + 0.5 * turn)
    varied = colorsys.hls_to_rgb((hue + 0.12 * (turn - 0.5)) % 1, min(0.85, lightness), max(0.55, saturation))
    return tuple(round(255 * value) for value in varied)  # type: ignore[return-value]


def shades(labels: list[int], palette: list[list[int]]) -> list[Color]:
    """One color per object: of its class, another one for each object of a class."""
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        colors.append(shade(palette[label], seen[label]))
        seen[label] += 1
    return colors


def shades_of_found(found: Detections, truth: Instances, matches: Matches, palette: list[list[int]]) -> list[Color]:
    """One color per detection: that of the true object it is, else one that no true object of its class has."""
    labels, true_labels = found.labels.tolist(), truth.labels.tolist()
    true_colors = shades(true_labels, palette)
    known = {pair.detection: true_colors[pair.truth] for pair in matches.pairs}
    fresh = Counter(true_labels)
    colors = []
    for place, label in enumerate(labels):
        if place not in known:
            known[place] = shade(palette[label], fresh[label])
            fresh[label] += 1
        colors.append(known[place])
    return colors


def with_objects(
    image: np.ndarray,
    objects: Detections | Instances,
    classes: list[str],
    palette: list[list[int]],
    opacity: float = 0.55,
    colors: list[Color] | None = None,
) -> np.ndarray:
    """The image (H, W, 1|3) with its objects laid over it, the smaller on top; crowds are outlined alone.

    Names stand where there is room: not in pictures below `SMALLEST_NAMED`, nor at objects below `LARGEST_NAME`'s size.

    `colors`: one per object; without them those of `shades`.
    """
    picture = to_rgb(image)
    scores = objects.scores.tolist() if isinstance(objects, Detections) else [None] * len(objects)
    crowd = objects.crowd.tolist() if isinstance(objects, Instances) else [False] * len(objects)
    labels, masks, boxes = objects.labels.tolist(), objects.masks.cpu().numpy(), objects.boxes.tolist()
    colors = shades(labels, palette) if colors is None else colors
    width = max(1, round(picture.shape[0] / FULL_HEIGHT))
    for place in largest_first(masks):
        mask = masks[place] > 0
        if not crowd[place]:
            tinted = picture[mask] * (1 - opacity) + np.array(colors[place]) * opacity
            picture[mask] = tinted.round().astype(np.uint8)
        cv2.drawContours(picture, outlines(mask), -1, colors[place], width)
    for place in reversed(range(len(labels))):
        cv2.rectangle(picture, *_corners(boxes[place]), colors[place], width)
    _write_names(
        picture,
        boxes,
        [_name(classes[label], score, group) for label, score, group in zip(labels, scores, crowd, strict=True)],
        colors,
    )
    return picture


def largest_first(masks: np.ndarray) -> list[int]:
    """The order in which to paint masks (N, H, W) so that none hides a smaller one; of equal ones the first on top."""
    return [int(place) for place in np.argsort((masks > 0).sum((1, 2)), kind="stable")[::-1]]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The edges of a mask (H, W) bool, those of its holes too, as OpenCV's lists of points."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return list(found)


def object_panel(
    image: np.ndarray, truth: Instances, found: Detections, classes: list[str], palette: list[list[int]]
) -> np.ndarray:
    """Input, truth and prediction side by side with captions; an object that was found has one color in both."""
    colors = shades_of_found(found, truth, match(found, truth, score=0), palette)
    # Small images are enlarged by a whole factor before they are drawn on, so that names can be read.
    factor = max(1, SMALLEST_TILE // image.shape[0])
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    tiles = {
        "input": to_rgb(large),
        "truth": with_objects(large, _enlarged(truth, factor), classes, palette),
        "prediction": with_objects(large, _enlarged(found, factor), classes, palette, colors=colors),
    }
    return np.concatenate([captioned(tile, name) for name, tile in tiles.items()], axis=1)


def _enlarged(objects: Instances | Detections, factor: int) -> Detections | Instances:
    masks = objects.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if isinstance(objects, Detections):
        return Detections(objects.boxes * factor, objects.labels, objects.scores, masks)
    return Instances(masks, objects.boxes * factor, objects.labels, objects.crowd, objects.area, objects.ids)


def _name(name: str, score: float | None, crowd: bool) -> str:
    return name + (f" {score:.2f}" if score is not None else "") + (" (crowd)" if crowd else "")


def _corners(box: list[float]) -> tuple[tuple[int, int], tuple[int, int]]:
    x0, y0, x1, y1 = (round(value) for value in box)
    return (x0, y0), (x1 - 1, y1 - 1)


def _write_names(picture: np.ndarray, boxes: list[list[float]], names: list[str], colors: list[Color]) -> None:
    """Names at their boxes, the likeliest first; one that would cover another, or that is too large for its object or
    the picture, is left out: its box is there still."""
    if min(picture.shape[:2]) < SMALLEST_NAMED:
        return
    taken: list[tuple[int, int, int, int]] = []
    size = 0.4 * max(1.0, picture.shape[0] / FULL_HEIGHT)
    stroke = max(1, round(size / 0.5))
    for box, name, color in zip(boxes, names, colors, strict=True):
        (width, height), base = cv2.getTextSize(name, FONT, size, stroke)
        if (width + 4) * (height + base + 2) > LARGEST_NAME * (box[2] - box[0]) * (box[3] - box[1]):
            continue
        x0, y0 = round(box[0]), round(box[1])
        left = max(0, min(x0, picture.shape[1] - width - 4))
        above = y0 - height - base - 2
        top = above if above >= 0 else max(0, y0)
        place = left, top, left + width + 3, top + height + base + 1
        if any(_meet(place, other) for other in taken):
            continue
        taken.append(place)
        cv2.rectangle(picture, place[:2], place[2:], color, -1)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
        ink = (255, 255, 255) if dark else (20, 20, 20)
        cv2.putText(picture, name, (left + 2, top + height + 1), FONT, size, ink, stroke, cv2.LINE_AA)


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]

"""The images of an evaluation whose objects went worst, kept with pictures small enough for a report."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segtrain.gallery import WIDTH, photo
from segtrain.instances import Detections, Instances
from segtrain.metrics.matching import Matches, match
from segtrain.metrics.objects import JudgedObjects, ObjectMetric
from segtrain.object_pictures import Color, largest_first, outlines, shades, shades_of_found
from segtrain.pictures import to_rgb
from segtrain.types import Fraction, PositiveInt

OUTCOMES = ("found", "missed", "invented")
OUTCOME_COLORS = {
    "found": (0, 158, 115),
    "missed": (86, 180, 233),
    "invented": (213, 94, 0),
    "crowd": (153, 153, 153),
}
"""Bluish green, sky blue and vermillion of Okabe and Ito, and a gray: told apart by color-blind eyes too."""
OUTLINE = 255
"""The color index of edges; objects have those from 1 on."""
MOST_TAGS = 40
LETTERS = 1 / 28
"""Height of a tag's letters as a share of the picture's width."""


@dataclass(frozen=True)
class Tag:
    """Words on a picture, centered on (x, y), shares of its width and height."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class WorstObjects:
    """One image whose objects went wrong.

    `quality` is that of `segtrain.metrics.matching.Matches`; `counts` the number of objects found, missed and invented,
    `missed` and `invented` their class indices, and `classes` those of all true objects and detections. `input` is a
    JPEG; `truth`, `prediction` and `outcomes` are PNGs to lay over it, clear where no object is.
    """

    name: str
    index: int
    quality: float
    height: int
    width: int
    classes: list[int]
    counts: dict[str, int]
    missed: list[int]
    invented: list[int]
    input: bytes
    truth: bytes
    prediction: bytes
    outcomes: bytes
    truth_tags: list[Tag]
    prediction_tags: list[Tag]

    @property
    def place(self) -> tuple[float, str, int]:
        """Sorts the worst first; equal qualities by name, so that no order of images shows."""
        return self.quality, self.name, self.index


class ObjectGallery(ObjectMetric):
    """Keeps the `count` images of the lowest quality; one with no object, true or found, has none and is passed over.

    Memory holds `count` images at most; pictures are drawn only for those that enter.

    Args:
        classes: names in index order, the background first.
        palette: one RGB triple per class.
        count: how many images to keep.
        iou: least IoU of masks at which a detection is an object.
        score: detections below take no part.
    """

    def __init__(
        self,
        classes: list[str],
        palette: list[list[int]],
        *,
        count: PositiveInt = 24,
        iou: Fraction = 0.5,
        score: Fraction = 0.5,
    ) -> None:
        self.classes = classes
        self.palette = palette
        self.count = count
        self.iou = iou
        self.score = score
        self.kept: list[WorstObjects] = []

    def update(self, judged: JudgedObjects) -> None:
        found = judged.detections.keep(judged.detections.scores >= self.score)
        matches = match(found, judged.truth, iou=self.iou, score=self.score)
        if math.isnan(matches.quality):
            return
        place = (matches.quality, judged.record.name, judged.index)
        if len(self.kept) == self.count and place > self.kept[-1].place:
            return
        self.merge([self._drawn(judged, found.cpu(), matches)])

    def state(self) -> list[WorstObjects]:
        return self.kept

    def merge(self, state: list[WorstObjects]) -> None:
        self.kept = sorted([*self.kept, *state], key=lambda image: image.place)[: self.count]

    def compute(self) -> dict[str, Any]:
        """`worst`: the images from the worst on, without their pictures."""
        return {
            "worst": [
                {
                    "name": image.name,
                    "quality": image.quality,
                    **image.counts,
                    "height": image.height,
                    "width": image.width,
                    "classes": [self.classes[index] for index in image.classes],
                }
                for image in self.kept
            ]
        }

    def worst(self) -> list[WorstObjects]:
        """The images with their pictures, from the worst on."""
        return list(self.kept)

    def _drawn(self, judged: JudgedObjects, found: Detections, matches: Matches) -> WorstObjects:
        truth = _in_main_memory(judged.truth)
        height, width = truth.size
        labels, true_labels = found.labels.tolist(), truth.labels.tolist()
        numbers = (len(matches.pairs), len(matches.missed), len(matches.invented))
        shown, true = _scaled(found.masks.numpy(), width), _scaled(truth.masks.numpy(), width)
        crowd = truth.crowd.numpy()
        return WorstObjects(
            name=judged.record.name,
            index=judged.index,
            quality=matches.quality,
            height=height,
            width=width,
            classes=sorted({*labels, *true_labels}),
            counts=dict(zip(OUTCOMES, numbers, strict=True)),
            missed=[true_labels[place] for place in matches.missed],
            invented=[labels[place] for place in matches.invented],
            input=photo(to_rgb(judged.image.cpu().numpy())),
            truth=shapes(true, shades(true_labels, self.palette), crowd),
            prediction=shapes(shown, shades_of_found(found, truth, matches, self.palette), np.zeros(len(found), bool)),
            outcomes=outcomes(shown, true, matches, crowd),
            truth_tags=tags(true, [self._word(label) for label in true_labels]),
            prediction_tags=tags(shown, self._words(labels, found.scores.tolist())),
        )

    def _word(self, label: int) -> str:
        """What to call an object: its class, or nothing where there is no other."""
        return self.classes[label] if len(self.classes) > 2 else ""

    def _words(self, labels: list[int], scores: list[float]) -> list[str]:
        return [f"{self._word(label)} {score:.2f}".strip() for label, score in zip(labels, scores, strict=True)]


def _in_main_memory(truth: Instances) -> Instances:
    """Waits for the copy, which `Instances.to` does not: what follows reads it at once."""
    return Instances(**{field.name: getattr(truth, field.name).cpu() for field in fields(truth)})


def _scaled(masks: np.ndarray, width: int) -> np.ndarray:
    """Masks (N, H, W) uint8 -> bool, of at most `WIDTH` columns, or enlarged by a whole factor towards them.

    Edges are drawn on these: on an image of 64 columns they would cover the objects.
    """
    if width <= WIDTH:
        factor = WIDTH // width
        return (masks > 0).repeat(factor, axis=1).repeat(factor, axis=2)
    size = (WIDTH, max(1, round(masks.shape[1] * WIDTH / width)))
    small = [cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA) for mask in masks]
    # What is thinner than a pixel still shows.
    kept = [share >= 0.5 if (share >= 0.5).any() else share > 0 for share in small]
    return np.stack(kept) if kept else np.zeros((0, size[1], size[0]), bool)


def shapes(masks: np.ndarray, colors: list[Color], crowd: np.ndarray) -> bytes:
    """Masks (N, h, w) bool in their colors with white edges, the smaller on top; crowds have an edge alone. A PNG."""
    indices, table = np.zeros(masks.shape[1:], np.uint8), np.zeros((256, 4), np.uint8)
    table[OUTLINE] = 255, 255, 255, 255
    for place in largest_first(masks):
        index = 1 + place % (OUTLINE - 1)
        table[index] = *colors[place], 255
        if not crowd[place]:
            indices[masks[place]] = index
        cv2.drawContours(indices, outlines(masks[place]), -1, OUTLINE, 1)
    return _png(indices, table)


def outcomes(found: np.ndarray, true: np.ndarray, matches: Matches, crowd: np.ndarray) -> bytes:
    """Objects found, missed and invented as a PNG to lay over the image.

    Each outcome has its color and its pattern, for eyes that see no colors: found plain, missed striped, invented
    dotted. White edges are those of the true objects that were found; crowds and what lies on them have a gray edge.

    Args:
        found: masks (D, h, w) bool of the detections.
        true: masks (G, h, w) bool of the true objects.
        matches: places in both.
        crowd: (G,) bool.
    """
    indices, table = np.zeros(true.shape[1:], np.uint8), np.zeros((256, 4), np.uint8)
    fills = {"found": 1, "missed": 2, "invented": 3}
    edges = {"found": 4, "missed": 5, "invented": 6, "crowd": 7}
    for kind, index in fills.items():
        table[index] = *OUTCOME_COLORS[kind], 150
    for kind, index in edges.items():
        table[index] = *OUTCOME_COLORS[kind], 255
    table[OUTLINE] = 255, 255, 255, 230
    pairs = matches.pairs
    drawn = {
        "crowd": [*true[crowd], *(found[place] for place in matches.on_crowds)],
        "found": [found[pair.detection] for pair in pairs],
        "missed": [true[place] for place in matches.missed],
        "invented": [found[place] for place in matches.invented],
    }
    # What is wrong lies over what is right, and edges over all.
    for kind, index in fills.items():
        for mask in drawn[kind]:
            indices[mask & _pattern(kind, mask.shape)] = index
    for pair in pairs:
        cv2.drawContours(indices, outlines(true[pair.truth]), -1, OUTLINE, 1)
    for kind, masks in drawn.items():
        for mask in masks:
            cv2.drawContours(indices, outlines(mask), -1, edges[kind], 1 if kind in ("crowd", "found") else 2)
    return _png(indices, table)


def _pattern(kind: str, size: tuple[int, ...]) -> np.ndarray:
    row, column = np.ogrid[: size[0], : size[1]]
    if kind == "missed":
        return (row + column) % 8 < 4
    if kind == "invented":
        return (row % 6 < 4) & (column % 6 < 4)
    return np.ones(size, bool)


def tags(masks: np.ndarray, words: list[str]) -> list[Tag]:
    """Words in the middle of their masks (N, h, w) bool: at most `MOST_TAGS`, the largest first, none upon another.

    Masks of fewer pixels than a letter get none, nor do those whose words are empty.
    """
    height, width = masks.shape[1:]
    line = LETTERS * width
    taken: list[tuple[float, float, float]] = []
    placed: list[Tag] = []
    for place in np.argsort(-masks.sum((1, 2)), kind="stable").tolist():
        if len(placed) == MOST_TAGS or masks[place].sum() < line**2:
            break
        if not words[place]:
            continue
        x, y = _middle(masks[place])
        half = 0.33 * line * len(words[place])
        x = min(max(x, half), max(half, width - half))
        y = min(max(y, 0.7 * line), height - 0.7 * line)
        if all(abs(y - other[1]) > 1.2 * line or abs(x - other[0]) > half + other[2] for other in taken):
            taken.append((x, y, half))
            placed.append(Tag(x / width, y / height, words[place]))
    return placed


def _middle(mask: np.ndarray) -> tuple[float, float]:
    """The point (x, y) of a mask (h, w) bool that is farthest from its edge."""
    framed = np.pad(mask.astype(np.uint8), 1)
    row, column = np.unravel_index(int(cv2.distanceTransform(framed, cv2.DIST_L2, 3).argmax()), framed.shape)
    return float(column) - 0.5, float(row) - 0.5


def _png(indices: np.ndarray, table: np.ndarray) -> bytes:
    """Color indices (h, w) and their RGBA (256, 4) -> a PNG with a palette."""
    picture = Image.fromarray(indices, mode="L")
    picture.putpalette(np.ascontiguousarray(table[:, :3]).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=table[:, 3].tobytes())
    return file.getvalue()

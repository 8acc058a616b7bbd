"""The worst images of an evaluation, kept with pictures small enough for a report."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segtrain.metrics.anatomy import KINDS, error_kinds
from segtrain.metrics.base import ImageMetric, Judged
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.pictures import VOID
from segtrain.types import IGNORE_INDEX, PositiveInt

KIND_COLORS = {
    "boundary_slip": (240, 228, 66),
    "class_confusion": (204, 121, 167),
    "missed_region": (86, 180, 233),
    "invented_region": (213, 94, 0),
}
"""Yellow, reddish purple, sky blue and vermillion of Okabe and Ito: told apart by color-blind eyes too."""
WIDTH = 480
"""Pictures are at most this many pixels wide: four of them fill a screen."""


@dataclass(frozen=True)
class WorstImage:
    """One image that went wrong.

    `miou` is the mean IoU over the classes in this image's target or prediction, `errors` its wrong pixels by kind and
    `classes` the indices of those classes. `input` is a JPEG; `truth`, `prediction` and `error_kinds` are PNGs of the
    same size to lay over it, clear where the class color is black and where the prediction is right.
    """

    name: str
    index: int
    miou: float
    pixel_accuracy: float
    height: int
    width: int
    classes: list[int]
    errors: dict[str, int]
    input: bytes
    truth: bytes
    prediction: bytes
    error_kinds: bytes

    @property
    def place(self) -> tuple[float, str, int]:
        """Sorts the worst first; equal scores by name, so that no order of images shows."""
        return self.miou, self.name, self.index


class Gallery(ImageMetric):
    """Keeps the `count` images of the lowest mIoU; an image without a labelled pixel has none and is passed over.

    Memory holds `count` images at most; pictures are drawn only for those that enter.

    Args:
        classes: names in index order.
        palette: one RGB triple per class.
        count: how many images to keep.
    """

    def __init__(self, classes: list[str], palette: list[list[int]], *, count: PositiveInt = 24) -> None:
        self.classes = classes
        self.palette = palette
        self.count = count
        self.kept: list[WorstImage] = []

    def update(self, judged: Judged) -> None:
        matrix = ConfusionMatrix(len(self.palette))
        matrix.update(judged.prediction, judged.target)
        scores = matrix.compute()
        if math.isnan(scores.miou):
            return
        place = (scores.miou, judged.record.name, judged.index)
        if len(self.kept) == self.count and place > self.kept[-1].place:
            return
        classes = [index for index, iou in enumerate(scores.iou) if not math.isnan(iou)]
        self.merge([self._drawn(judged, scores.miou, scores.pixel_accuracy, classes)])

    def state(self) -> list[WorstImage]:
        return self.kept

    def merge(self, state: list[WorstImage]) -> None:
        self.kept = sorted([*self.kept, *state], key=lambda image: image.place)[: self.count]

    def compute(self) -> dict[str, Any]:
        """`worst`: the images from the worst on, without their pictures."""
        return {
            "worst": [
                {
                    "name": image.name,
                    "miou": image.miou,
                    "pixel_accuracy": image.pixel_accuracy,
                    "height": image.height,
                    "width": image.width,
                    "classes": [self.classes[index] for index in image.classes],
                    "errors": image.errors,
                }
                for image in self.kept
            ]
        }

    def worst(self) -> list[WorstImage]:
        """The images with their pictures, from the worst on."""
        return list(self.kept)

    def _drawn(self, judged: Judged, miou: float, pixel_accuracy: float, classes: list[int]) -> WorstImage:
        height, width = judged.target.shape
        kinds = error_kinds(judged.target, judged.prediction)
        counts = np.bincount(kinds.ravel(), minlength=256)
        return WorstImage(
            name=judged.record.name,
            index=judged.index,
            miou=miou,
            pixel_accuracy=pixel_accuracy,
            height=height,
            width=width,
            classes=classes,
            errors={kind: int(counts[value]) for kind, value in KINDS.items()},
            input=photo(judged.image),
            truth=labels(judged.target, self.palette),
            prediction=labels(judged.prediction, self.palette),
            error_kinds=labels(kinds, [[0, 0, 0], *(list(KIND_COLORS[kind]) for kind in KINDS)]),
        )


def photo(image: np.ndarray) -> bytes:
    """Image (H, W, 3) uint8 RGB as a JPEG of at most `WIDTH` columns."""
    return _encoded(Image.fromarray(_narrowed(image, cv2.INTER_AREA)), "JPEG", quality=82)


def labels(indices: np.ndarray, palette: list[list[int]]) -> bytes:
    """Indices (H, W) as a palette PNG of at most `WIDTH` columns: black colors clear, `IGNORE_INDEX` in `VOID`."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    alpha = np.where((colors == 0).all(1), 0, 255).astype(np.uint8)
    colors[IGNORE_INDEX], alpha[IGNORE_INDEX] = VOID, 255
    picture = Image.fromarray(_narrowed(indices, cv2.INTER_NEAREST), mode="L")
    picture.putpalette(colors.tobytes())
    return _encoded(picture, "PNG", transparency=alpha.tobytes())


def _narrowed(picture: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = picture.shape[:2]
    if width <= WIDTH:
        return np.ascontiguousarray(picture)
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()

"""Counts of pixels and objects per class, which add up over the frames of a video and the images of a folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from segtrain.prediction.files import Legend
from segtrain.prediction.results import added


class ObjectTally:
    """One array (2C + 1,) int64: pixels per class, pixels of nobody, objects per class.

    Args:
        legend: names the classes.
        things: the names of those that have objects.
    """

    def __init__(self, legend: Legend, things: Collection[str]) -> None:
        self.legend = legend
        self.things = things

    def count(self, labels: np.ndarray | None, objects: Sequence[int]) -> np.ndarray:
        """The array of class indices (H, W) uint8, 255 of nobody, and of the classes of objects; None: no pixels."""
        pixels = self.legend.counts(np.zeros((0, 0), np.uint8) if labels is None else labels)
        return np.concatenate([pixels, np.bincount(np.array(objects, np.int64), minlength=self._classes)])

    def areas(self, counts: np.ndarray) -> np.ndarray:
        """Pixels per class, and in the last place those of nobody."""
        return counts[: self._classes + 1]

    def objects(self, counts: np.ndarray) -> dict[str, int]:
        """Objects by the name of their class."""
        named = zip(self.legend.classes, counts[self._classes + 1 :].tolist(), strict=True)
        return {name: number for name, number in named if name in self.things}

    def line(self, counts: np.ndarray) -> dict[str, Any]:
        """What the journal says of an image."""
        areas = {name: int(area) for name, area in zip(self.legend.classes, counts, strict=False)}
        return {"areas": areas, "counts": self.objects(counts)}

    def summary(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Sums over images by their journal lines."""
        named = {
            "pixels": added(lines, "areas", self.legend.classes),
            "objects": added(lines, "counts", [*self.things]),
        }
        return {"images": len(lines), **named}

    @property
    def _classes(self) -> int:
        return len(self.legend.classes)

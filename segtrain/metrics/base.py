"""What a metric that looks at whole images is given, and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segtrain.types import Record


@dataclass(frozen=True)
class Judged:
    """One image of an evaluation with what the network says of it, at the image's own size.

    `logits` (C, H, W) float32, on the network's device; `prediction` and `target` (H, W) uint8, 255 in the target where
    unlabelled; `image` (H, W, 3) uint8 RGB; `index` is the image's position in the dataset.
    """

    logits: Tensor
    prediction: np.ndarray
    target: np.ndarray
    image: np.ndarray
    record: Record
    index: int


class ImageMetric(Protocol):
    """Takes in images one by one, on one rank or several, in any order; the result does not depend on either."""

    def update(self, judged: Judged) -> None:
        """Takes in one image."""

    def state(self) -> Any:
        """All that was taken in, for another process: what pickle can carry."""

    def merge(self, state: Any) -> None:
        """Adds the state of another rank's metric."""

    def compute(self) -> dict[str, Any]:
        """The scores by name: plain numbers, lists and dicts."""


class SummedMetric(ImageMetric):
    """A metric of nothing but `sums` over images, by name: those of two ranks are added up.

    They are whole numbers, so that no order of images or ranks changes the last digit.
    """

    sums: dict[str, np.ndarray]

    def state(self) -> dict[str, np.ndarray]:
        return self.sums

    def merge(self, state: dict[str, np.ndarray]) -> None:
        for name, sums in state.items():
            self.sums[name] += sums

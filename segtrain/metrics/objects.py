"""What a metric that looks at the objects of whole images is given, and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from segtrain.instances import Detections, Instances
from segtrain.types import Record


@dataclass(frozen=True)
class JudgedObjects:
    """One image of an evaluation with what the network finds in it.

    `image` (H, W, C) as the dataset gives it; `detections` and `truth` on the network's device; `index` is the image's
    position in the dataset.
    """

    image: Tensor
    detections: Detections
    truth: Instances
    record: Record
    index: int


class ObjectMetric(Protocol):
    """Takes in images one by one, as `segtrain.metrics.base.ImageMetric` does."""

    def update(self, judged: JudgedObjects) -> None:
        """Takes in one image."""

    def state(self) -> Any:
        """All that was taken in, for another process: what pickle can carry."""

    def merge(self, state: Any) -> None:
        """Adds the state of another rank's metric."""

    def compute(self) -> dict[str, Any]:
        """The scores by name: plain numbers, lists and dicts."""

"""Panoptic segmentation: a semantic and an instance network's answers merged into one segment per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segtrain import distributed
from segtrain.metrics.panoptic import PanopticQuality
from segtrain.panoptic import Panoptic, PanopticBatch
from segtrain.pictures import captioned, to_rgb
from segtrain.postprocess.panoptic import map_classes, merge
from segtrain.segment_pictures import with_segments
from segtrain.tasks.instance import InstanceTask
from segtrain.tasks.semantic import SemanticTask
from segtrain.tracking import percent
from segtrain.types import Fraction, NonNegativeInt, Record

SEMANTIC, INSTANCE = "semantic", "instance"
"""Names of the two networks in the module that holds both."""


@dataclass(frozen=True)
class JudgedSegments:
    """One image of an evaluation with what the networks make of it; `image` (H, W, C) as the dataset gives it."""

    image: Tensor
    prediction: Panoptic
    truth: Panoptic
    record: Record
    index: int


class SegmentMetric(Protocol):
    """Takes in images one by one, as `segtrain.metrics.base.ImageMetric` does."""

    def update(self, judged: JudgedSegments) -> None:
        """Takes in one image."""

    def state(self) -> Any:
        """All that was taken in, for another process: what pickle can carry."""

    def merge(self, state: Any) -> None:
        """Adds the state of another rank's metric."""

    def compute(self) -> dict[str, Any]:
        """The scores by name: plain numbers, lists and dicts."""


class PanopticTask:
    """What prediction and score mean where two networks' answers are merged. Nothing is trained here.

    Args:
        semantic, instance: checkpoints of the two networks, each with its own inference.
        score_threshold: objects below it are left out.
        overlap_threshold: so is an object of which a larger share is covered by surer ones.
        stuff_area_limit: so is stuff on fewer free pixels than this.
        parts: the two networks' tasks, the semantic one first.
        classes: names of the segments' classes in index order.
        palette: one RGB triple per class.
        things: the names of those that are objects.

    Raises:
        ConfigError: neither network knows a class.
    """

    name: ClassVar[str] = "panoptic"
    monitors: ClassVar[dict[str, bool]] = {}
    """None: there is no epoch to choose."""
    columns: ClassVar[dict[str, str]] = {"PQ": "pq", "SQ": "sq", "RQ": "rq"}
    per_class: ClassVar[tuple[str, ...]] = ("pq_per_class",)

    def __init__(
        self,
        *,
        semantic: str | None = None,
        instance: str | None = None,
        score_threshold: Fraction = 0.5,
        overlap_threshold: Fraction = 0.5,
        stuff_area_limit: NonNegativeInt = 4096,
        parts: tuple[SemanticTask, InstanceTask],
        classes: list[str],
        palette: list[list[int]],
        things: list[str],
    ) -> None:
        self.checkpoints = {SEMANTIC: semantic, INSTANCE: instance}
        self.thresholds = {
            "score_threshold": score_threshold,
            "overlap_threshold": overlap_threshold,
            "stuff_area_limit": stuff_area_limit,
        }
        self.semantic, self.instance = parts
        self.classes = classes
        self.palette = palette
        self.things = things
        self.maps = map_classes(classes, things, instance=self.instance.classes, semantic=self.semantic.classes)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> PanopticTask:
        """Moves both parts to the networks' device."""
        self.semantic.to(device, memory_format)
        self.instance.to(device, memory_format)
        return self

    def predict(self, model: nn.Module, image: Tensor) -> list[Panoptic]:
        """Images (B, H, W, C) -> the segments of each; `model` holds both networks by name."""
        labels = self.semantic.predict(model.get_submodule(SEMANTIC), image)
        found = self.instance.predict(model.get_submodule(INSTANCE), image)
        settings: Any = self.thresholds
        return [merge(objects, classes, self.maps, **settings) for objects, classes in zip(found, labels, strict=True)]

    def meter(self, extra: Sequence[SegmentMetric] = (), losses: bool = True) -> PanopticMeter:
        """Counts for one evaluation, and other metrics of single images beside them; there are no losses."""
        return PanopticMeter(self, extra)

    def table(self, scores: dict[str, Any]) -> list[str]:
        """PQ, SQ and RQ per class, and the summary under them."""
        width = max([len(name) for name in self.classes] + [6])
        lines = [f"{'class':<{width}}     PQ     SQ     RQ  kind"]
        for name in self.classes:
            row = [percent(scores[f"{score}_per_class"][name]) for score in ("pq", "sq", "rq")]
            cells = "  ".join(f"{cell:>5}" for cell in row)
            lines.append(f"{name:<{width}}  {cells}  {'thing' if name in self.things else 'stuff'}")
        for kind in ("", "_things", "_stuff"):
            row = [percent(scores[f"{score}{kind}"]) for score in ("pq", "sq", "rq")]
            cells = "  ".join(f"{cell:>5}" for cell in row)
            lines.append(f"{kind.strip('_') or 'all':<{width}}  {cells}")
        return lines

    def panel(self, model: nn.Module, image: np.ndarray, target: Panoptic, device: torch.device) -> np.ndarray:
        """Input, truth and prediction side by side, (H, W, 3) uint8."""
        found = self.predict(model, torch.from_numpy(image)[None].to(device))[0]
        tiles = {
            "input": to_rgb(image),
            "truth": with_segments(image, target, self.palette),
            "prediction": with_segments(image, found, self.palette),
        }
        return np.concatenate([captioned(tile, name) for name, tile in tiles.items()], axis=1)


class PanopticMeter:
    """Panoptic quality of one evaluation.

    Args:
        task: what is evaluated.
        extra: other metrics of single images.
    """

    def __init__(self, task: PanopticTask, extra: Sequence[SegmentMetric] = ()) -> None:
        self.task = task
        self.extra = extra
        self.quality = PanopticQuality(task.classes, task.things)

    def update(self, model: nn.Module, batch: PanopticBatch) -> None:
        found = self.task.predict(model, batch.image)
        for place, (prediction, truth) in enumerate(zip(found, batch.target, strict=True)):
            record = batch.records[place]
            self.quality.update(prediction, truth, record.source)
            for metric in self.extra:
                metric.update(JudgedSegments(batch.image[place], prediction, truth, record, int(batch.index[place])))

    def reduce(self) -> None:
        metrics: list[Any] = [self.quality, *self.extra]
        for metric in metrics:
            for rank, state in enumerate(distributed.gather(metric.state())):
                if rank != distributed.rank():
                    metric.merge(state)

    def scores(self) -> dict[str, Any]:
        return {
            **self.quality.compute(),
            **{name: value for metric in self.extra for name, value in metric.compute().items()},
        }

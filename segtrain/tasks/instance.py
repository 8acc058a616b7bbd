"""Instance segmentation: every object with its class, its box and its own mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segtrain import distributed
from segtrain.errors import ConfigError
from segtrain.inference.instances import InstanceInference
from segtrain.instances import Detections, InstanceBatch, Instances
from segtrain.losses.detection import DetectionLoss
from segtrain.metrics.coco_ap import AveragePrecision
from segtrain.metrics.objects import JudgedObjects, ObjectMetric
from segtrain.normalization import Normalization
from segtrain.object_exports import image_id_of
from segtrain.object_pictures import object_panel
from segtrain.tracking import percent
from segtrain.types import Fraction

SHOWN_FROM = 0.5
"""Pictures show detections of this score and above; what a network is less sure of would cover them."""


class InstanceTask:
    """What loss, prediction and score mean where each object has a mask.

    Args:
        loss: weights of the detector's terms.
        classes: names in index order, the background first.
        palette: one RGB triple per class.
        mean, std: per channel, for images scaled to [0, 1].
        inference: from images to objects.
        boundary_ap: whether evaluations score boundaries too, which takes as long again.
        boundary_ratio: width of a mask's inner band as a share of the image's diagonal.

    Raises:
        ConfigError: the parts are of another kind of task, or pycocotools is missing.
    """

    name: ClassVar[str] = "instance"
    monitors: ClassVar[dict[str, bool]] = {
        "mask_ap": True,
        "mask_ap50": True,
        "box_ap": True,
        "box_ap50": True,
        "loss": False,
    }
    columns: ClassVar[dict[str, str]] = {"maskAP": "mask_ap", "AP50": "mask_ap50", "boxAP": "box_ap"}
    per_class: ClassVar[tuple[str, ...]] = ("mask_ap_per_class", "box_ap_per_class")
    parts: ClassVar[dict[str, tuple[type, str]]] = {
        "loss": (DetectionLoss, "loss=maskrcnn"),
        "inference": (InstanceInference, "inference=instances"),
    }
    """What loss and inference must be, and what to choose."""

    def __init__(
        self,
        *,
        loss: DetectionLoss,
        classes: list[str],
        palette: list[list[int]],
        mean: list[float],
        std: list[float],
        inference: InstanceInference,
        boundary_ap: bool = False,
        boundary_ratio: Fraction = 0.02,
    ) -> None:
        for name, part in (("loss", loss), ("inference", inference)):
            kind, fix = self.parts[name]
            if not isinstance(part, kind):
                raise ConfigError(f"task=instance with {name}={type(part).__name__}", fix=fix)
        self.loss = loss
        self.classes = classes
        self.palette = palette
        self.normalize = Normalization(mean, std)
        self.inference = inference
        self.boundary_ap = boundary_ap
        self.boundary_ratio = boundary_ratio
        self.average_precision()  # tells what is missing before anything is trained

    def to(self, device: torch.device, memory_format: torch.memory_format) -> InstanceTask:
        """Moves normalization to the model's device."""
        self.normalize.to(device, memory_format)
        return self

    def average_precision(self) -> AveragePrecision:
        """COCO's scores at zero."""
        return AveragePrecision(classes=self.classes, boundary=self.boundary_ap, boundary_ratio=self.boundary_ratio)

    def counts(self, batch: InstanceBatch) -> Tensor:
        """The number of images: every term is a mean over a batch's."""
        return torch.full((1,), float(len(batch)), device=self.normalize.device)

    def losses(self, model: nn.Module, batch: InstanceBatch, counts: Tensor | None) -> dict[str, Tensor]:
        """The detector's terms by name and their weighted sum under `loss`, as this batch's share of a step."""
        found = model(self.inputs(batch), [self._lesson(target) for target in batch.target])
        share = 1.0 if counts is None else len(batch) / counts[0]
        return {name: value * share for name, value in self.loss(found).items()}

    def inputs(self, batch: InstanceBatch) -> list[Tensor]:
        """The images (C, H, W) float32, normalized."""
        colors = [None] * len(batch) if batch.color is None else batch.color.split(1)
        return [self.normalize(image[None], color)[0] for image, color in zip(batch.image, colors, strict=True)]

    def _lesson(self, target: Instances) -> dict[str, Tensor]:
        """What is learned of an image: its objects, without the crowds that nobody took apart."""
        kept = ~target.crowd
        return {"boxes": target.boxes[kept], "labels": target.labels[kept], "masks": target.masks[kept]}

    def predict(self, model: nn.Module, image: Tensor) -> list[Detections]:
        """Images (B, H, W, C) -> the objects in each, at the images' size."""
        seen = self.inference.see(model, list(self.normalize(image)))
        return self.inference.detect(model, seen)

    def meter(self, extra: Sequence[ObjectMetric] = (), losses: bool = True) -> InstanceMeter:
        """Counts for one evaluation, and other metrics of single images beside them."""
        return InstanceMeter(self, extra, losses)

    def table(self, scores: dict[str, Any]) -> list[str]:
        """AP of masks and boxes and the number of objects per class, and the summary under them."""
        width = max([len(name) for name in self.classes[1:]] + [5])
        lines = [f"{'class':<{width}}  maskAP  boxAP  objects"]
        for name in self.classes[1:]:
            row = percent(scores["mask_ap_per_class"][name]), percent(scores["box_ap_per_class"][name])
            lines.append(f"{name:<{width}}  {row[0]:>6}  {row[1]:>5}  {scores['instances_per_class'][name]:>7}")
        for kind in ("mask", "box", *(["boundary"] if self.boundary_ap else [])):
            named = (f"{name} {percent(scores[f'{kind}_{key}'])}" for name, key in SUMMARY.items())
            lines.append(f"{kind:<8} {'   '.join(named)}")
        return lines

    def panel(self, model: nn.Module, image: np.ndarray, target: Instances, device: torch.device) -> np.ndarray:
        """Input, truth and prediction side by side, (H, W, 3) uint8."""
        found = self.predict(model, torch.from_numpy(image)[None].to(device))[0].cpu()
        return object_panel(image, target, found.keep(found.scores >= SHOWN_FROM), self.classes, self.palette)


SUMMARY = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR100": "ar100",
}


class InstanceMeter:
    """COCO's scores and loss sums of one evaluation.

    Losses are computed one image at a time with the proposals that are drawn for it: the same draw for an image in
    every evaluation, from its place in the dataset.

    Args:
        task: what is evaluated.
        extra: other metrics of single images.
        losses: whether to compute losses, which takes another pass through the heads.
    """

    def __init__(self, task: InstanceTask, extra: Sequence[ObjectMetric] = (), losses: bool = True) -> None:
        self.task = task
        self.extra = extra
        self.with_losses = losses
        self.precision = task.average_precision()
        self.totals = torch.zeros(len(task.loss.weights) + 1, dtype=torch.float64)
        self.images = torch.zeros(1, dtype=torch.float64)

    def update(self, model: nn.Module, batch: InstanceBatch) -> None:
        task, inference = self.task, self.task.inference
        inputs = task.inputs(batch)
        for place, image in enumerate(inputs):
            truth, index = batch.target[place], int(batch.index[place])
            seen = inference.see(model, [image], [task._lesson(truth)] if self.with_losses else None)
            found = inference.detect(model, seen)[0]
            number = image_id_of(batch.records[place])
            # Equal scores of two images are told apart by COCO's numbers of images, and so they are here.
            self.precision.update(found, truth, number if isinstance(number, int) else index)
            for metric in self.extra:
                metric.update(JudgedObjects(batch.image[place], found, truth, batch.records[place], index))
            if self.with_losses:
                with torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
                    torch.manual_seed(index)
                    terms = task.loss(inference.losses(model, seen))
                self.totals += torch.stack(list(terms.values())).cpu().double()
            self.images += 1

    def reduce(self) -> None:
        for sums in (self.totals, self.images):
            distributed.sum_(sums)
        metrics: list[Any] = [self.precision, *self.extra]
        for metric in metrics:
            for rank, state in enumerate(distributed.gather(metric.state())):
                if rank != distributed.rank():
                    metric.merge(state)

    def scores(self) -> dict[str, Any]:
        means = (self.totals / self.images.clamp(min=1)).tolist()
        return {
            "loss": means[-1] if self.with_losses else math.nan,
            **({"losses": dict(zip(self.task.loss.weights, means, strict=False))} if self.with_losses else {}),
            **self.precision.compute(),
            **{name: value for metric in self.extra for name, value in metric.compute().items()},
        }

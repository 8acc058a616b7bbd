"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segtrain import distributed
from segtrain.losses.combine import SegmentationLoss
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.types import Batch

Inference = Callable[[nn.Module, Tensor], Tensor]


class SemanticTask:
    """What loss, prediction and score mean where each pixel has one class.

    Args:
        loss: weighted terms on `outputs["out"]` and `outputs["aux"]`.
        classes: names in index order.
        palette: one RGB triple per class.
        mean, std: per channel, for images scaled to [0, 1].
        inference: (model, normalized image) -> logits at the image's size.
    """

    name = "semantic"
    monitors: ClassVar[dict[str, bool]] = {
        "miou": True,
        "mean_accuracy": True,
        "pixel_accuracy": True,
        "loss": False,
    }
    """Scores that can choose the best epoch, and whether higher is better."""

    def __init__(
        self,
        *,
        loss: SegmentationLoss,
        classes: list[str],
        palette: list[list[int]],
        mean: list[float],
        std: list[float],
        inference: Inference,
    ) -> None:
        self.loss = loss
        self.classes = classes
        self.palette = palette
        self.mean = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std).view(1, -1, 1, 1) * 255
        self.inference = inference
        self.memory_format = torch.contiguous_format

    def to(self, device: torch.device, memory_format: torch.memory_format) -> SemanticTask:
        """Moves class weights and normalization to the model's device; images will have the model's layout."""
        self.loss.to(device)
        self.memory_format = memory_format
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def normalize(self, image: Tensor) -> Tensor:
        """Image (B, H, W, C) uint8 or float32 in [0, 255] -> network input (B, C, H, W) float32."""
        channels_first = image.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format)
        return (channels_first - self.mean) / self.std

    def counts(self, batch: Batch) -> Tensor:
        """What each loss term is divided by, from the target alone; summed over a step by the trainer."""
        return self.loss.counts(batch.target.long())

    def losses(self, model: nn.Module, batch: Batch, counts: Tensor) -> dict[str, Tensor]:
        """The loss terms of one batch by name, their weighted sum under `loss`."""
        outputs = model(self.normalize(batch.image))
        return self.loss(outputs, batch.target.long(), counts)

    def predict(self, model: nn.Module, image: Tensor) -> Tensor:
        """Image (B, H, W, C) -> class indices (B, H, W) uint8 at the image's size."""
        return self.logits(model, image).max(1).indices.to(torch.uint8)

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Image (B, H, W, C) -> logits (B, num_classes, H, W) at the image's size."""
        return self.inference(model, self.normalize(image))

    def meter(self) -> SemanticMeter:
        """Counts for one evaluation."""
        return SemanticMeter(self)


class SemanticMeter:
    """Confusion matrix and loss sums of one evaluation; memory does not grow with the number of images."""

    def __init__(self, task: SemanticTask) -> None:
        self.task = task
        self.confusion = ConfusionMatrix(len(task.classes))
        self.totals = torch.zeros(len(task.loss.terms), dtype=torch.float64)
        self.counts = torch.zeros_like(self.totals)

    def update(self, model: nn.Module, batch: Batch) -> None:
        logits = self.task.logits(model, batch.image)
        target = batch.target.long()
        counts = self.task.loss.counts(target)
        terms = self.task.loss({"out": logits}, target, torch.ones_like(counts))
        self.totals += torch.stack([terms[name] for name in self.task.loss.terms]).double().cpu()
        self.counts += counts.double().cpu()
        # `max` and not `argmax`: same labels, several times faster along a strided channel axis on the CPU.
        self.confusion.update(logits.max(1).indices.to(torch.uint8), batch.target)

    def reduce(self) -> None:
        for sums in (self.confusion.counts, self.totals, self.counts):
            distributed.add_up(sums, self.task.mean.device)

    def scores(self) -> dict[str, Any]:
        found = self.confusion.compute()
        terms = self.totals / self.counts.clamp(min=1e-12)
        weights = torch.tensor([term.weight for term in self.task.loss.terms.values()], dtype=torch.float64)
        names = self.task.classes
        return {
            "loss": float((terms * weights).sum()),
            "miou": found.miou,
            "mean_accuracy": found.mean_accuracy,
            "pixel_accuracy": found.pixel_accuracy,
            "iou": dict(zip(names, found.iou, strict=True)),
            "accuracy": dict(zip(names, found.accuracy, strict=True)),
            "pixels": dict(zip(names, found.pixels, strict=True)),
            "classes_counted": found.classes_counted,
            "confusion": self.confusion.counts.tolist(),
        }

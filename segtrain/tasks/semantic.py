"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segtrain import distributed
from segtrain.errors import ConfigError
from segtrain.inference.base import ImageInference
from segtrain.inference.outputs import outputs_of, refuse_too_large, wrong_outputs
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.detection import DetectionLoss
from segtrain.metrics.base import ImageMetric, Judged
from segtrain.metrics.confusion import ABSENT, ConfusionMatrix
from segtrain.normalization import Normalization
from segtrain.pictures import panel, to_rgb
from segtrain.tracking import percent
from segtrain.types import Batch
from segtrain.upsampling import upsampled_labels
from segtrain.windows import Band

Inference = Callable[[nn.Module, Tensor], Tensor]
Refine = Callable[[Tensor, Tensor], Tensor]


class SemanticTask:
    """What loss, prediction and score mean where each pixel has one class.

    Args:
        loss: weighted terms on `outputs["out"]` and `outputs["aux"]`.
        classes: names in index order.
        palette: one RGB triple per class.
        mean, std: per channel, for images scaled to [0, 1].
        inference: (model, normalized image) -> logits at the image's size; one with a method `refine`, as a
            `segtrain.inference.ImageInference` has, is then given the image itself and these logits.
    """

    name = "semantic"
    monitors: ClassVar[dict[str, bool]] = {
        "miou": True,
        "mean_accuracy": True,
        "pixel_accuracy": True,
        "loss": False,
    }
    """Scores that can choose the best epoch, and whether higher is better."""
    columns: ClassVar[dict[str, str]] = {"mIoU": "miou", "mAcc": "mean_accuracy", "pixAcc": "pixel_accuracy"}
    per_class: ClassVar[tuple[str, ...]] = ("iou",)

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
        if not callable(inference):
            raise ConfigError(
                f"task=semantic with {type(inference).__name__}, which finds objects",
                where="inference",
                expected="an inference that gives every pixel a class",
                fix="inference=whole, slide or tile",
            )
        if isinstance(loss, DetectionLoss):
            raise ConfigError(
                f"task=semantic with {type(loss).__name__}, a loss of objects",
                where="loss",
                expected="a loss that judges pixels",
                fix="loss=ce, or another whose terms are of pixels or regions",
            )
        self.loss = loss
        self.classes = classes
        self.palette = palette
        self.normalize = Normalization(mean, std)
        """Image (B, H, W, C) uint8 or float32 in [0, 255] -> network input (B, C, H, W) float32."""
        self.inference = inference

    def to(self, device: torch.device, memory_format: torch.memory_format) -> SemanticTask:
        """Moves class weights and normalization to the model's device; images will have the model's layout."""
        self.loss.to(device)
        self.normalize.to(device, memory_format)
        return self

    def counts(self, batch: Batch) -> Tensor:
        """What each loss term is divided by, from the target alone; summed over a step by the trainer."""
        return self.loss.counts(batch.target.long())

    def losses(self, model: nn.Module, batch: Batch, counts: Tensor | None) -> dict[str, Tensor]:
        """The loss terms of one batch by name, their weighted sum under `loss`; `counts` as in `Task`.

        Raises:
            ConfigError: the batch is too small for batch normalization, or the network breaks its contract.
        """
        try:
            outputs = outputs_of(model, self.normalize(batch.image, batch.color), resize=self.loss.resolution == "full")
        except ValueError as error:
            # Where in the network an image shrinks to one value, only the network knows, and torch finds it.
            if "more than 1 value per channel" not in str(error):
                raise
            raise _too_small(batch.image) from error
        for logits in outputs.values():
            self._check_channels(logits)
        return self.loss(outputs, batch.target.long(), counts)

    def predict(self, model: nn.Module, image: Tensor) -> Tensor:
        """Image (B, H, W, C) -> class indices (B, H, W) uint8 at the image's size."""
        if isinstance(self.inference, ImageInference):
            if not self.inference.streams():
                refuse_too_large(self.inference, image, len(self.classes))
            native = self.inference.native(model, image, self.normalize)
            if native is not None:
                logits, align_corners = native
                self._check_channels(logits)
                return upsampled_labels(logits, image.shape[1:3], align_corners)
        labels = torch.empty(image.shape[:3], dtype=torch.uint8, device=image.device)
        for first, last, logits in self.bands(model, image):
            labels[:, first:last] = logits.max(1).indices
        return labels

    def bands(self, model: nn.Module, image: Tensor) -> Iterator[Band]:
        """Image (B, H, W, C) -> (first row, row after the last, logits (B, num_classes, rows, W)), top to bottom.

        Windows of one view come as rows that are done, so that a huge image needs no logits of its size; any other
        protocol gives one band.

        Raises:
            ConfigError: the protocol must hold all logits at once, and they are too many.
        """
        if isinstance(self.inference, ImageInference) and self.inference.streams():
            for first, last, logits in self.inference.bands(model, image, self.normalize):
                self._check_channels(logits)
                yield first, last, logits
        else:
            refuse_too_large(self.inference, image, len(self.classes))
            yield 0, image.shape[1], self.logits(model, image)

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Image (B, H, W, C) -> logits (B, num_classes, H, W) at the image's size."""
        logits = self.inference(model, self.normalize(image))
        self._check_channels(logits)
        # A plain function of a user's own has nothing to refine with.
        refine: Refine = getattr(self.inference, "refine", _unrefined)
        return refine(image, logits)

    def meter(self, extra: Sequence[ImageMetric] = (), losses: bool = True) -> SemanticMeter:
        """Counts for one evaluation, and other metrics of whole images beside them; see `SemanticMeter`."""
        return SemanticMeter(self, extra, losses)

    def table(self, scores: dict[str, Any]) -> list[str]:
        """IoU, accuracy and share of pixels per class, and the summary under them."""
        width = max([len(name) for name in scores["iou"]] + [5])
        lines = [f"{'class':<{width}}    IoU    acc  pixels"]
        for name, iou in scores["iou"].items():
            row = [percent(iou), percent(scores["accuracy"][name]), percent(scores["pixels"][name])]
            lines.append(f"{name:<{width}}  {row[0]:>5}  {row[1]:>5}  {row[2]:>5}%")
        lines.append(
            f"mIoU {percent(scores['miou'])} over {scores['classes_counted']} of {len(scores['iou'])} classes   "
            f"mean accuracy {percent(scores['mean_accuracy'])}   pixel accuracy {percent(scores['pixel_accuracy'])}"
        )
        return lines

    def panel(self, model: nn.Module, image: np.ndarray, target: np.ndarray, device: torch.device) -> np.ndarray:
        """Input, truth, prediction and errors side by side, (H, W, 3) uint8."""
        prediction = self.predict(model, torch.from_numpy(image)[None].to(device))
        return panel(image, target, prediction[0].cpu().numpy(), self.palette)

    def _check_channels(self, logits: Tensor) -> None:
        # Too few end in a device-side assert; too many train in silence and fail at the first validation.
        if logits.shape[1] != len(self.classes):
            found = f"the model's logits are {tuple(logits.shape)}, the data have {len(self.classes)} classes"
            raise wrong_outputs(found, len(self.classes))


def _unrefined(image: Tensor, logits: Tensor) -> Tensor:
    return logits


def _too_small(image: Tensor) -> ConfigError:
    batch, height, width = image.shape[:3]
    return ConfigError(
        f"a batch of {batch} with crops of {height}x{width} leaves batch normalization one value per channel",
        where="data.crop_size, data.batch_size",
        expected="at least 2 values per channel wherever the model normalizes",
        fix="data.batch_size=2 or more, a larger data.crop_size, or model.freeze_bn=true",
    )


class SemanticMeter:
    """Confusion matrix and loss sums of one evaluation; memory does not grow with the number of images.

    Losses are computed one image at a time, so that no number depends on the batch size: a mean over pixels is
    that of all images together, a loss of regions (Dice, Tversky, Lovász) is the mean of the images' own, and OHEM
    keeps its hardest pixels per image. In training these two look at a whole batch.

    Args:
        task: what is evaluated.
        extra: other metrics of whole images.
        losses: whether to compute losses, which need logits at the images' size.
    """

    def __init__(self, task: SemanticTask, extra: Sequence[ImageMetric] = (), losses: bool = True) -> None:
        self.task = task
        self.extra = extra
        self.losses = losses
        self.confusion = ConfusionMatrix(len(task.classes))
        # On the device until the end, so that nobody waits; in float64, which MPS has not.
        device = torch.device("cpu") if task.normalize.device.type == "mps" else task.normalize.device
        self.totals = torch.zeros(len(task.loss.terms), dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.totals)

    def update(self, model: nn.Module, batch: Batch) -> None:
        if not self.losses and not self.extra:
            self.confusion.update(self.task.predict(model, batch.image), batch.target)
            return
        logits = self.task.logits(model, batch.image)
        if self.losses:
            self._add_losses(logits, batch.target.long())
        # `max` and not `argmax`: same labels, several times faster along a strided channel axis on the CPU.
        prediction = logits.max(1).indices.to(torch.uint8)
        self.confusion.update(prediction, batch.target)
        if self.extra:
            self._judge(batch, logits, prediction)

    def _add_losses(self, logits: Tensor, target: Tensor) -> None:
        loss, totals, counts = self.task.loss, [], []
        for one, truth in zip(logits.split(1), target.split(1), strict=True):
            counts.append(loss.counts(truth))
            terms = loss({"out": one}, truth, torch.ones_like(counts[-1]))
            totals.append(torch.stack([terms[name] for name in loss.terms]))
        self.totals += torch.stack(totals).to(self.totals.device).double().sum(0)
        self.counts += torch.stack(counts).to(self.totals.device).double().sum(0)

    def _judge(self, batch: Batch, logits: Tensor, prediction: Tensor) -> None:
        """Shows each image to the other metrics."""
        images, targets, predictions = (part.cpu().numpy() for part in (batch.image, batch.target, prediction))
        for position, record in enumerate(batch.records):
            judged = Judged(
                logits=logits[position].float(),
                prediction=predictions[position],
                target=targets[position],
                image=to_rgb(images[position]),
                record=record,
                index=int(batch.index[position]),
            )
            for metric in self.extra:
                metric.update(judged)

    def reduce(self) -> None:
        for sums in (self.confusion.counts, self.totals, self.counts):
            distributed.sum_(sums)
        for metric in self.extra:
            for rank, state in enumerate(distributed.gather(metric.state())):
                if rank != distributed.rank():
                    metric.merge(state)

    def scores(self) -> dict[str, Any]:
        found = self.confusion.compute()
        terms = (self.totals / self.counts.clamp(min=1e-12)).cpu()
        weights = torch.tensor([term.weight for term in self.task.loss.terms.values()], dtype=torch.float64)
        names = self.task.classes
        return {
            "loss": float((terms * weights).sum()) if self.losses else math.nan,
            "miou": found.miou,
            "mean_accuracy": found.mean_accuracy,
            "pixel_accuracy": found.pixel_accuracy,
            "fw_iou": found.fw_iou,
            "mean_dice": found.mean_dice,
            "mean_precision": found.mean_precision,
            "mean_recall": found.mean_recall,
            "miou_conventions": {name: self.confusion.miou(name) for name in ABSENT},
            "iou": dict(zip(names, found.iou, strict=True)),
            "accuracy": dict(zip(names, found.accuracy, strict=True)),
            "dice": dict(zip(names, found.dice, strict=True)),
            "precision": dict(zip(names, found.precision, strict=True)),
            "recall": dict(zip(names, found.recall, strict=True)),
            "pixels": dict(zip(names, found.pixels, strict=True)),
            "classes_counted": found.classes_counted,
            "confusion": self.confusion.counts.tolist(),
            **{name: value for metric in self.extra for name, value in metric.compute().items()},
        }

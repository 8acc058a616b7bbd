"""Losses on the overlap of whole regions: Dice, Tversky, Lovász. All lie in [0, 1].

Sums run over all pixels of the call (a whole micro-batch), so that a class is not noise where one image
holds few of its pixels. Classes that the target lacks are left out of the mean (`Lovasz(classes="all")` keeps
them). Each call counts 1: over several micro-batches or ranks the loss is the mean of theirs, not the loss of
their union.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtrain.losses.base import Loss, labelled
from segtrain.types import IGNORE_INDEX, NonNegativeFloat, PositiveFloat

BITS_OF_ONE = 0x3F800000
"""Float32 1.0 as an integer. From 0 to 1, floats are in the order of their bits."""


class RegionLoss(Loss):
    """A loss of all pixels of a call together. One call counts 1, also where nothing is labelled."""

    def count(self, target: Tensor) -> Tensor:
        """1 per call."""
        return torch.ones((), device=target.device)


class Tversky(RegionLoss):
    """One minus the Tversky index of softmax probabilities, mean over the classes in the target.

    The index is `(TP + smooth) / (TP + alpha FP + beta FN + smooth)` (Salehi et al. 2017). `alpha` = `beta` =
    0.5 is Dice; both 1 is the Jaccard index.

    Args:
        alpha: cost of false positives.
        beta: cost of false negatives; above `alpha` it favors recall.
        smooth: in pixels; damps the classes of few pixels.
    """

    def __init__(
        self,
        *,
        alpha: NonNegativeFloat = 0.3,
        beta: NonNegativeFloat = 0.7,
        smooth: PositiveFloat = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.smooth = smooth

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        hits, false_alarms, misses, present = soft_overlaps(logits, target)
        cost = self.alpha * false_alarms + self.beta * misses
        # One minus the index, written so that no digits cancel near 0.
        losses = cost / (hits + cost + self.smooth)
        return (losses * present).sum() / present.sum().clamp(min=1)


class Dice(Tversky):
    """One minus the soft Dice overlap, mean over the classes in the target.

    The overlap is `2 (TP + smooth) / (P + T + 2 smooth)`, P the sum of probabilities and T the pixels of a
    class: Milletari et al. 2016, section 3, without their squares.

    Args:
        smooth: in pixels; damps the classes of few pixels.
    """

    def __init__(self, *, smooth: PositiveFloat = 1.0, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(alpha=0.5, beta=0.5, smooth=smooth, weight=weight)


def soft_overlaps(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Soft counts per class over the labelled pixels, each (C,).

    Returns:
        true positives, false positives, false negatives (in pixels, at least 0), and which classes the target
        has.
    """
    valid = labelled(target)
    classes = target.masked_fill(~valid, 0)
    probs = logits.softmax(1)
    true_probs = probs.gather(1, classes.unsqueeze(1)).squeeze(1)
    hits = class_sums(true_probs * valid, classes, probs.shape[1])
    pixels = class_sums(valid.float(), classes, probs.shape[1])
    predicted = (probs * valid.unsqueeze(1)).sum((0, 2, 3))
    # Separately rounded sums can differ by less than nothing.
    return hits, (predicted - hits).clamp(min=0), (pixels - hits).clamp(min=0), pixels > 0


def class_sums(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Sum of `values` (B, H, W) over the pixels of each class: (num_classes,)."""
    # Row by row first: one running float32 sum over millions of pixels would lose the small ones.
    rows = values.new_zeros(values.shape[0] * values.shape[1], num_classes)
    return rows.scatter_add(1, classes.flatten(0, 1), values.flatten(0, 1)).sum(0)


class Lovasz(RegionLoss):
    """Lovász-Softmax, a convex surrogate of one minus the mean IoU (Berman et al. 2018).

    The mean over classes of the Jaccard loss's Lovász extension, taken at the pixels' errors in probability.

    Args:
        classes: `present` for the classes in the target, as the paper has it; `all` for every class, where an
            absent one costs its highest probability.
    """

    def __init__(self, *, classes: Literal["present", "all"] = "present", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        # Waits for the device, but saves the sort of every class that is not there.
        pixels = torch.bincount(target.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        present = pixels.nonzero().flatten().tolist()
        if not present:
            return (logits * 0).sum()
        # One past the last class if the target is: an error then, not a class that nobody counts.
        every = range(max(logits.shape[1], present[-1] + 1))
        classes = present if self.classes == "present" else every
        return LovaszExtension.apply(logits.softmax(1), target, classes)


class LovaszExtension(torch.autograd.Function):
    """Mean over `classes` of the Jaccard loss's Lovász extension at probs (B, C, H, W), target (B, H, W).

    The extension is linear as long as no two errors swap ranks, so its gradient is made of the slopes that
    the forward pass finds anyway. To keep only those takes one tensor like `probs`, however many the classes.
    """

    @staticmethod
    def forward(ctx: Any, probs: Tensor, target: Tensor, classes: list[int] | range) -> Tensor:
        valid = labelled(target).flatten()
        gradient = torch.zeros_like(probs)
        total = probs.new_zeros(())
        # Class by class: a row of integers is radix-sorted, six times faster than many rows of floats.
        for index in classes:
            foreground = target == index
            errors = torch.where(foreground, 1 - probs[:, index], probs[:, index])
            slopes = jaccard_slopes(errors.flatten(), foreground.flatten(), valid).view(target.shape)
            total += (errors * slopes).sum()
            gradient[:, index] = torch.where(foreground, -slopes, slopes)
        ctx.save_for_backward(gradient)
        ctx.num_classes = len(classes)
        return total / len(classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * (grad / ctx.num_classes), None, None


def jaccard_slopes(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """How much the Jaccard loss grows at each pixel, as pixels turn wrong one by one from the worst.

    Berman et al. 2018, algorithm 1. The growth is in closed form: near 1 the losses before and after differ
    by less than float32 can tell.

    Args:
        errors: (N,) float32 in [0, 1].
        foreground: (N,) whether the pixel is of the class.
        valid: (N,) whether the pixel is labelled, as one at least is; slope 0 where not.
    """
    # Falling errors as rising keys. What is not labelled comes last: it moves no rank, and when its turn comes
    # the intersection is empty and the loss grows no more.
    keys = (BITS_OF_ONE - errors.view(torch.int32)).masked_fill(~valid, torch.iinfo(torch.int32).max)
    order = keys.sort(stable=True).indices
    turned = foreground[order]
    lost = turned.cumsum(0, dtype=torch.int32)
    rank = torch.arange(1, len(order) + 1, device=errors.device, dtype=torch.int32)
    intersection = (lost[-1] - lost).float()
    union = (lost[-1] + rank - lost).float()
    slopes = torch.where(turned, 1 / union, intersection / (union * (union - 1).clamp(min=1)))
    # With no foreground at all, the first wrong pixel takes the loss from 0 to 1.
    slopes[0] = torch.where(lost[-1] == 0, 1.0, slopes[0])
    return torch.empty_like(errors).scatter_(0, order, slopes)

"""Losses that are a mean over pixels: cross-entropy and its hard-example and focal forms."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.losses.base import Loss, labelled
from segtrain.types import IGNORE_INDEX, Fraction, NonNegativeFloat, PositiveInt


class PixelLoss(Loss):
    """A weighted mean over the labelled pixels; each weighs 1, or as its class where class weights are set.

    The count is the weight of the labelled pixels, in float32: exact up to 2^24 pixels per call.
    """

    class_weights: Tensor | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Not persistent: the weights follow from config and data, so a checkpoint must load without them.
        self.register_buffer("class_weights", None, persistent=False)

    def use_class_weights(self, weights: Tensor) -> None:
        """Weighs each pixel by `weights[its class]`; weights (C,), none negative."""
        self.class_weights = weights.float()

    def pixel_weights(self, target: Tensor) -> Tensor:
        """The weight of each pixel, 0 where unlabelled: float32, the target's shape."""
        if self.class_weights is None:
            return labelled(target).float()
        table = F.pad(self.class_weights, (0, IGNORE_INDEX + 1 - len(self.class_weights)))
        return table[target]

    def count(self, target: Tensor) -> Tensor:
        """The number of labelled pixels, or the sum of their weights."""
        if self.class_weights is None:
            return labelled(target).sum().float()
        return self.pixel_weights(target).sum()

    def cross_entropies(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Each pixel's -log of its true class's probability, 0 where unlabelled: the target's shape."""
        # Summed by the caller: the CUDA kernel that sums by itself adds in no fixed order.
        return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none", **options)


class CrossEntropy(PixelLoss):
    """Softmax cross-entropy, equal to torch's `reduction="mean"` with the same weights and smoothing.

    Args:
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7).
    """

    def __init__(self, *, label_smoothing: Fraction = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_smoothing = label_smoothing

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        # Torch weighs here, not `pixel_weights`: under smoothing every class's part has a weight of its own.
        return self.cross_entropies(
            logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing
        ).sum()


class OhemCrossEntropy(PixelLoss):
    """Cross-entropy of the hard pixels only: online hard example mining (Shrivastava et al. 2016), per pixel.

    A pixel is hard where its true class has a probability of at most `threshold`. Where fewer than `min_kept`
    are hard, the `min_kept` hardest labelled pixels of the call are kept, or all if there are fewer. Ties are
    kept together, so that the order of pixels does not matter. Class weights play no part in the choice.

    The sum over the kept pixels is divided by the count of *all* labelled pixels: at threshold 1 this is
    cross-entropy, and easy pixels make the loss small instead of making the rest loud.

    Args:
        threshold: highest true-class probability that is hard.
        min_kept: pixels kept per call, which is one micro-batch on one rank.
    """

    def __init__(self, *, threshold: Fraction = 0.7, min_kept: PositiveInt = 100_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.min_kept = min_kept

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.cross_entropies(logits, target)
        hard = losses.detach() >= self.lowest_kept(losses.detach().flatten())
        return (losses * self.pixel_weights(target) * hard).sum()

    def lowest_kept(self, losses: Tensor) -> Tensor:
        """The lowest loss that is hard: the threshold's, or the `min_kept`-th highest where that is lower."""
        # Unlabelled pixels have loss 0 and rank last, so they need not be counted on the device first: where
        # the rank falls among them, 0 is the answer, and all labelled pixels are kept.
        hardest = losses.topk(min(self.min_kept, len(losses)), sorted=False).values
        return hardest.min().clamp(max=-math.log(self.threshold) if self.threshold > 0 else math.inf)


class Focal(PixelLoss):
    """Focal loss in its softmax form: `-alpha_t (1 - p_t)^gamma log p_t`, p_t the true class's probability.

    Lin et al. 2017, eq. 5. With `gamma` 0 and no `alpha` it is cross-entropy.

    Args:
        gamma: how fast well-classified pixels lose weight.
        alpha: weight of every class but class 0, which weighs `1 - alpha`: for data whose class 0 is the
            background. None: all alike. It scales the sum and not the count.
    """

    def __init__(self, *, gamma: NonNegativeFloat = 2.0, alpha: Fraction | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma
        self.alpha = alpha

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.cross_entropies(logits, target)
        # 1 - p_t without cancellation; the floor keeps the power's gradient finite at p_t = 1 for gamma < 1.
        missing = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        weights = self.pixel_weights(target)
        if self.alpha is not None:
            weights = weights * torch.where(target == 0, 1 - self.alpha, self.alpha)
        return (losses * missing**self.gamma * weights).sum()

"""What all losses share: a sum over what was labelled, divided by a count that the target alone decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.types import IGNORE_INDEX, NonNegativeFloat


class Loss(nn.Module):
    """`total(logits, target) / count(target)`, computed in float32.

    The count is apart from the total so that a trainer can add up the counts of all micro-batches and ranks
    of a step and pass the sum: the mean is then over the whole step, however unevenly its labels are spread.

    Args:
        weight: this term's share in a weighted sum of losses; the loss itself does not apply it.
    """

    def __init__(self, *, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def count(self, target: Tensor) -> Tensor:
        """What the total is divided by: a float32 scalar on the target's device."""
        raise NotImplementedError(f"{type(self).__name__} must say what it is a mean over")

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The differentiable sum, a scalar; zero with a zero gradient where nothing is labelled."""
        raise NotImplementedError(f"{type(self).__name__} must say what it sums")

    def forward(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """The loss, a float32 scalar.

        Args:
            logits: (B, C, H, W), any float dtype.
            target: (B, H, W) int64, classes in [0, C) or `IGNORE_INDEX`.
            count: what to divide by; None: this target's own count. Where it is zero the loss is zero, yet
                connected to the logits: backward works on a batch without labels.

        Raises:
            ConfigError: the logits are not at the target's size.
        """
        if logits.shape[:1] + logits.shape[2:] != target.shape:
            raise ConfigError(
                f"the model's logits are {tuple(logits.shape)}, the target is {tuple(target.shape)}",
                where=type(self).__name__,
                expected="logits (B, C, H, W) for a target (B, H, W)",
                fix="resize the logits to the input's size in the model's forward",
            )
        # Half precision overflows in exp and in sums over pixels; float32 costs little beside the network.
        with torch.autocast(logits.device.type, enabled=False):
            total = self.total(logits.float(), target)
        count = self.count(target) if count is None else count
        return total / count.masked_fill(count == 0, torch.inf)


def labelled(target: Tensor) -> Tensor:
    """Which pixels have a class: boolean, the target's shape."""
    return target != IGNORE_INDEX

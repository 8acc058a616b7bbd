"""Losses as they are usually written: one-hot targets, full sorts, a float sort per class. Slow, and easy to check.

Each takes logits (B, C, H, W) and a target (B, H, W) int64 with 255 where unlabelled, and is equal to the loss of the
same name in `segtrain.losses` at its default arguments.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.types import IGNORE_INDEX


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Torch's own mean over the labelled pixels."""
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)


def ohem(logits: Tensor, target: Tensor, threshold: float = 0.7, min_kept: int = 100_000) -> Tensor:
    """The sum over the hard pixels, found by a sort of all, over the number of labelled ones."""
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")[target != IGNORE_INDEX]
    falling = losses.sort(descending=True).values
    kept = max(int((falling >= -math.log(threshold)).sum()), min(min_kept, len(falling)))
    return falling[:kept].sum() / len(falling)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """All classes' focal terms, of which the one-hot target leaves one per pixel."""
    probs, truth, valid = _one_hot(logits, target)
    terms = -((1 - probs) ** gamma) * logits.log_softmax(1) * truth
    return terms.sum() / valid.sum()


def dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft overlap of one-hot targets, mean over the classes in the target."""
    probs, truth, valid = _one_hot(logits, target)
    probs = probs * valid
    overlap = (probs * truth).sum((0, 2, 3))
    sizes = probs.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    losses = 1 - (2 * overlap + 2 * smooth) / (sizes + 2 * smooth)
    return losses[truth.sum((0, 2, 3)) > 0].mean()


def tversky(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> Tensor:
    """One minus the Tversky index of one-hot targets, mean over the classes in the target."""
    probs, truth, valid = _one_hot(logits, target)
    probs = probs * valid
    hits = (probs * truth).sum((0, 2, 3))
    false_alarms = (probs * (1 - truth) * valid).sum((0, 2, 3))
    misses = ((1 - probs) * truth).sum((0, 2, 3))
    losses = 1 - (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)
    return losses[truth.sum((0, 2, 3)) > 0].mean()


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász-Softmax class by class: sort the errors, weigh them by the growth of the Jaccard loss."""
    flat = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    valid = target.flatten() != IGNORE_INDEX
    probs, labels = flat[valid], target.flatten()[valid]
    found = []
    for index in range(logits.shape[1]):
        foreground = (labels == index).float()
        if foreground.sum() == 0:
            continue
        errors, order = (foreground - probs[:, index]).abs().sort(descending=True)
        turned = foreground[order]
        intersection = turned.sum() - turned.cumsum(0)
        union = turned.sum() + (1 - turned).cumsum(0)
        jaccard = 1 - intersection / union
        growth = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        found.append(errors @ growth)
    return torch.stack(found).mean()


def _one_hot(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and one-hot truth (B, C, H, W), and which pixels are labelled (B, 1, H, W)."""
    valid = (target != IGNORE_INDEX).unsqueeze(1)
    classes = target.masked_fill(target == IGNORE_INDEX, 0)
    truth = F.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).float() * valid
    return logits.softmax(1), truth, valid.float()

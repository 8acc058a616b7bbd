"""Windows over an image: where they begin, and the rows that no later window will touch, as soon as they are final.

Rows come from top to bottom and cover the image once. What is held meanwhile is one row of windows, (B, C, window
height, image width), whatever the image's height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Band = tuple[int, int, Tensor]
"""First row, row after the last one, and their logits (B, num_classes, rows, W) float32."""

ROWS = 64
"""Rows that are turned into logits at once: the temporary tensors of a division and a logarithm stay small."""


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, the last one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def averaged_bands(
    probs_of: Callable[[int, int], Tensor],
    image: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Iterator[Band]:
    """Log of the mean of the windows' probabilities, each pixel divided by how often it is seen.

    Args:
        probs_of: (top row, left column) -> probabilities (B, num_classes, *window).
        image: height and width, at least the window's.
        window, stride: height and width; the stride at most the window.
    """
    height, width = image
    tops, lefts = (starts(*lengths) for lengths in zip(image, window, stride, strict=True))
    # Two axes of counts, and not their product: that would have the image's size.
    rows: Tensor | None = None
    total = columns = torch.empty(0)
    for top, following in pairwise([*tops, height]):
        for left in lefts:
            probs = probs_of(top, left)
            if rows is None:
                total = probs.new_zeros(*probs.shape[:2], window[0], width)
                rows, columns = _seen(height, tops, window[0], probs), _seen(width, lefts, window[1], probs)
            total[..., left : left + window[1]] += probs
        assert rows is not None
        for first in range(top, following, ROWS):
            last = min(first + ROWS, following)
            yield (
                first,
                last,
                log_probs(total[..., first - top : last - top, :] / torch.outer(rows[first:last], columns)),
            )
        _move_up(total, following - top)


def _seen(length: int, begins: Iterable[int], window: int, like: Tensor) -> Tensor:
    """In how many windows each position of an axis lies."""
    counts = like.new_zeros(length)
    for begin in begins:
        counts[begin : begin + window] += 1
    return counts


def _move_up(total: Tensor, rows: int) -> None:
    """Drops the first rows of (B, C, H, W) in place; zeros come in from below."""
    kept = total.shape[-2] - rows
    # A copy, because the two ranges may overlap.
    total[..., :kept, :] = total[..., rows:, :].clone()
    total[..., kept:, :] = 0


def log_probs(probs: Tensor) -> Tensor:
    """Logits of these probabilities; finite where one is 0."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def stacked(bands: Iterable[Band], height: int) -> Tensor:
    """All bands as one tensor (B, num_classes, height, W)."""
    whole: Tensor | None = None
    for first, last, logits in bands:
        if whole is None:
            whole = logits.new_empty(*logits.shape[:2], height, logits.shape[-1])
        whole[..., first:last, :] = logits
    assert whole is not None
    return whole

"""From a network's own grid to labels at the image's size, without ever holding logits of that size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.models.layers import resize_logits

CHUNK = 8
"""Classes that a GPU compares at once: few launches, and still a fraction of all logits."""


def upsampled_labels(native: Tensor, size: Iterable[int], align_corners: bool = False) -> Tensor:
    """Logits (B, C, h, w) -> the labels (B, H, W) uint8 that `resize_logits(native, size, …).max(1).indices` gives.

    Where two classes are equal but for the last bit, rounding decides, and may do so otherwise.

    Class after class is resized and compared with the best so far, one image at a time: beside the labels, two planes
    of one image are held (on a GPU `CHUNK` planes), however many classes there are. Classes that cannot win anywhere in
    an image are passed over on the CPU, where asking costs nothing.
    """
    height, width = size
    labels = torch.empty(native.shape[0], height, width, dtype=torch.uint8, device=native.device)
    for one, out in zip(native.split(1), labels.split(1), strict=True):
        if native.shape[-2:] == (height, width):
            out.copy_(one.max(1).indices)
        else:
            _compare(one, out, align_corners)
    return labels


def _compare(native: Tensor, labels: Tensor, align_corners: bool) -> None:
    """Writes the labels (1, H, W) of one image's logits (1, C, h, w)."""
    best: Tensor | None = None
    for classes in _chunks(native):
        planes = resize_logits(native[:, classes], labels.shape[-2:], align_corners)
        values, places = planes.max(1) if len(classes) > 1 else (planes[:, 0], None)
        if best is None:
            best = values
            labels.copy_(classes[0] if places is None else places + classes[0])
            continue
        # Only where larger: of equal logits the first class has it, as with `max`.
        better = values > best
        if places is None:
            labels.masked_fill_(better, int(classes[0]))
        else:
            torch.where(better, (places + classes[0]).to(torch.uint8), labels, out=labels)
        torch.maximum(best, values, out=best)


def _chunks(native: Tensor) -> Iterator[Tensor]:
    """Class indices that are compared together; those of one chunk follow one another."""
    every = torch.arange(native.shape[1], device=native.device)
    if native.device.type != "cpu":
        yield from every.split(CHUNK)
    else:
        yield from every[possible_classes(native)].split(1)


def possible_classes(native: Tensor) -> Tensor:
    """Which classes (C,) may be the largest at some point between the grid points of one image's logits (1, C, h, w).

    A bilinear value lies between the least and the largest of its cell's four corners. So a class cannot win in a cell
    where its largest corner is below another class's least.
    """
    values = native.float()
    cell = min(2, native.shape[-2]), min(2, native.shape[-1])
    most = F.max_pool2d(values, cell, stride=1)
    least = -F.max_pool2d(-values, cell, stride=1)
    # Rounding may carry an interpolated value past its corners: a few units in the last place of its own type.
    slack = 8 * torch.finfo(native.dtype).eps * values.abs().amax()
    # Written so that a class that is not a number stays in.
    return ~(most + slack < least.amax(1, keepdim=True)).all(dim=-1).all(dim=-1).squeeze(0)

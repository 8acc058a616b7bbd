"""From a network's own grid to labels at the image's size, without ever holding logits of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from segtrain.models.layers import resize_logits

CHUNK = 8
"""Classes that a GPU compares at once: few launches, and still a fraction of all logits."""
BAND = 2**16
"""Pixels of one thread's band of rows on the CPU: the four planes of it that are in use stay in a core's L2 cache."""


@torch.no_grad()
def upsampled_labels(native: Tensor, size: Iterable[int], align_corners: bool = False) -> Tensor:
    """Logits (B, C, h, w) -> the labels (B, H, W) uint8 that `resize_logits(native, size, …).max(1).indices` gives.

    Where two classes are equal but for the last bit, rounding decides, and may do so otherwise.

    One image at a time, class after class is resized and compared with the best so far. On the CPU that is done in
    bands of rows: beside the labels some MiB are held (per thread four planes of `BAND` pixels, and the band's logits
    at the network's height and the image's width; 5 MiB for 19 classes at 1024x2048, where all logits are 152), and
    classes that cannot win anywhere in a band are passed over.
    On a GPU, and where logits are no float32, up to `CHUNK` planes of one image are held.
    """
    height, width = size
    labels = torch.empty(native.shape[0], height, width, dtype=torch.uint8, device=native.device)
    if not len(native):
        return labels
    for one, out in zip(native.split(1), labels.split(1), strict=True):
        if native.shape[-2:] == (height, width):
            out.copy_(one.max(1).indices)
        elif native.device.type != "cpu":  # where asking whether all is finite would wait for it
            _compare(one, out, align_corners)
        elif not bool(one.isfinite().all()):  # masked classes or a network that diverged: what `max` makes of them
            out.copy_(resize_logits(one, (height, width), align_corners).max(1).indices)
        elif native.dtype == torch.float32:
            _compare_bands(one, out, align_corners)
        else:
            _compare(one, out, align_corners)
    return labels


def _compare(native: Tensor, labels: Tensor, align_corners: bool) -> None:
    """Writes the labels (1, H, W) of one image's logits (1, C, h, w)."""
    best: Tensor | None = None
    # On the CPU torch rounds otherwise where there are three planes, and bfloat16 shows it: one plane, or all of them.
    chunk = CHUNK if native.device.type != "cpu" or native.shape[1] <= CHUNK else 1
    for start in range(0, native.shape[1], chunk):
        values, places = resize_logits(native[:, start : start + chunk], labels.shape[-2:], align_corners).max(1)
        found = (places + start).to(torch.uint8)
        if best is None:
            best = values
            labels.copy_(found)
            continue
        # Only where larger: of equal logits the first class has it, and the first that is no number, as with `max`.
        torch.where((values <= best) | best.isnan(), labels, found, out=labels)
        torch.maximum(best, values, out=best)


def _compare_bands(native: Tensor, labels: Tensor, align_corners: bool) -> None:
    """The same for float32 on the CPU, without `max` over classes, `where` and masks, all of which are slow there."""
    height, width = labels.shape[-2:]
    upper, lower, weights = _source_rows(native.shape[-2], height, align_corners)
    for rows in torch.arange(height).split(max(1, BAND * torch.get_num_threads() // width)):
        first, last = int(upper[rows[0]]), int(lower[rows[-1]]) + 1
        band = native[:, :, first:last]
        classes = possible_classes(band).nonzero().flatten()
        # As a batch of single planes, which are rounded alike however many they are.
        wide = resize_logits(band[0, classes].unsqueeze(1), (last - first, width), align_corners)[:, 0]
        between = partial(_between, upper=upper[rows] - first, lower=lower[rows] - first, weights=weights[:, rows])
        labels[0, rows[0] : rows[-1] + 1] = _largest(between, wide, classes.tolist())


def _largest(between: Callable[[Tensor], Tensor], wide: Tensor, classes: list[int]) -> Tensor:
    """The class (R, W), as float32, whose plane of `wide` (classes, r, W) is the largest once it has all rows."""
    best = between(wide[0])
    found = torch.full_like(best, classes[0])
    for number, plane in zip(classes[1:], wide[1:], strict=True):
        values = between(plane)
        larger = torch.maximum(best, values)
        # 1 where this class beats those before it, 0 elsewhere, in memory that is free now. Classes come in order, so
        # that the last to win has the largest number.
        torch.maximum(found, best.lt_(values).mul_(number), out=found)
        best = larger
    return found


def _between(plane: Tensor, upper: Tensor, lower: Tensor, weights: Tensor) -> Tensor:
    """Rows between those of `plane` (r, W), added in the order in which torch rounds when it resizes both ways."""
    values = plane.index_select(0, lower).mul_(weights[1])
    return values.addcmul_(plane.index_select(0, upper), weights[0])


def _source_rows(source: int, target: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The two of `source` rows that each of `target` rows lies between, and their weights (2, target, 1).

    Torch does not say which they are; a resized unit matrix shows them to the bit.
    """
    shares = resize_logits(torch.eye(source)[None, None], (target, source), align_corners)[0, 0]
    upper = (shares > 0).int().argmax(1)
    lower = (upper + 1).clamp(max=source - 1)
    weights = torch.stack([shares.gather(1, one.unsqueeze(1)) for one in (upper, lower)])
    weights[1, upper == lower] = 0  # below the last row is only that row
    return upper, lower, weights


def possible_classes(native: Tensor) -> Tensor:
    """Which classes (C,) may be the largest at some point between the grid points of one image's logits (1, C, h, w).

    A bilinear value lies between the least and the largest of its cell's four corners. So a class cannot win in a cell
    where its largest corner is below another class's least.
    """
    values = native.float()
    most, least = _over_cells(values, torch.maximum), _over_cells(values, torch.minimum)
    # Rounding may carry an interpolated value past its corners: a few units in the last place of its own type.
    slack = 8 * torch.finfo(native.dtype).eps * values.abs().amax()
    # Written so that a class that is not a number stays in.
    return ~(most + slack < least.amax(1, keepdim=True)).flatten(2).all(2).squeeze(0)


def _over_cells(values: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest or least of each cell's corners; `max_pool2d` takes fifty times as long."""
    for axis in (-2, -1):
        cells = max(1, values.shape[axis] - 1)
        values = pick(values.narrow(axis, 0, cells), values.narrow(axis, -cells, cells))
    return values

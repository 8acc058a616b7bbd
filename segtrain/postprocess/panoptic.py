"""A semantic and an instance network's answers merged into one segment per pixel.

The heuristic of Kirillov et al. 2019, "Panoptic Segmentation" (arXiv 1801.00868, section 7), with the limit on small
stuff that panopticapi's `combine_semantic_and_instance_predictions` adds: objects are laid down by falling score, each
on the pixels that are still free; stuff fills what remains.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import ConfigError, listed
from segtrain.instances import Detections
from segtrain.panoptic import Panoptic, Segment
from segtrain.types import Fraction, NonNegativeInt


@dataclass(frozen=True)
class ClassMaps:
    """Which class of one panoptic list the classes of two networks are.

    `things`: label of the instance network -> class index; `stuff`: class index of the semantic network -> class
    index. What is not in them has no place in the panoptic list, and its pixels go to whatever else claims them.
    """

    things: dict[int, int]
    stuff: dict[int, int]


def map_classes(
    classes: Sequence[str], things: Collection[str], *, instance: Sequence[str], semantic: Sequence[str]
) -> ClassMaps:
    """The two networks' classes matched by name to the panoptic `classes`, of which `things` are objects.

    Args:
        instance: names in the instance network's order; the first is its background.
        semantic: names in the semantic network's order.

    Raises:
        ConfigError: a thing that is not in `classes` or that the instance network does not know, or stuff that the
            semantic network does not know.
    """
    strange = [name for name in things if name not in classes]
    if strange:
        raise ConfigError(
            f"things that are no classes: {listed(strange)}", where="things", expected=f"some of {listed(classes, 200)}"
        )
    known = {"instance": list(instance)[1:], "semantic": list(semantic)}
    for kind, wanted in (
        ("instance", [name for name in classes if name in things]),
        ("semantic", [name for name in classes if name not in things]),
    ):
        absent = [name for name in wanted if name not in known[kind]]
        if absent:
            raise _unknown(absent, kind, known)
    return ClassMaps(
        things={n: classes.index(name) for n, name in enumerate(instance) if n and name in classes and name in things},
        stuff={n: classes.index(name) for n, name in enumerate(semantic) if name in classes and name not in things},
    )


def _unknown(absent: list[str], kind: str, known: dict[str, list[str]]) -> ConfigError:
    other, word = ("semantic", "things") if kind == "instance" else ("instance", "stuff")
    there = [name for name in absent if name in known[other]]
    told = f"; the {other} network knows {listed(there)}, but finds no {word}" if there else ""
    return ConfigError(
        f"the {kind} network does not know the {word} {listed(absent)}{told}",
        expected=f"{word} among its classes: {listed(known[kind], 20)}",
        fix="train it on these classes, or leave them out of data.classes"
        + (", or change data.things" if there else ""),
    )


def merge(
    detections: Detections,
    labels: Tensor | np.ndarray,
    maps: ClassMaps,
    *,
    score_threshold: Fraction = 0.5,
    overlap_threshold: Fraction = 0.5,
    stuff_area_limit: NonNegativeInt = 4096,
) -> Panoptic:
    """Detections and class indices (H, W) of one image as segments with ids from 1 in the order they were laid down.

    Args:
        detections: what the instance network found, in any order; equal scores keep theirs.
        labels: the semantic network's class per pixel.
        maps: see `map_classes`.
        score_threshold: objects below it are left out.
        overlap_threshold: so is an object of which a larger share of its pixels is taken by ones before it.
        stuff_area_limit: so is stuff on fewer free pixels than this; no stuff has none.

    Raises:
        ValueError: masks and `labels` have different sizes.
    """
    known = torch.tensor(list(maps.things), dtype=torch.int64, device=detections.labels.device)
    # Masks are most of the memory: only those that can count leave the device.
    found = detections.keep((detections.scores >= score_threshold) & torch.isin(detections.labels, known)).cpu()
    classes = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    if tuple(found.masks.shape[1:]) != classes.shape:
        raise ValueError(f"masks of {tuple(found.masks.shape[1:])} pixels, class indices of {classes.shape}")
    merged = Panoptic(np.zeros(classes.shape, np.int32), [])
    masks = found.masks.numpy() != 0
    for number in torch.argsort(found.scores, descending=True, stable=True).tolist():
        category = maps.things[int(found.labels[number])]
        _lay(merged, masks[number], category, float(found.scores[number]), overlap_threshold)
    _fill(merged, classes, maps.stuff, max(stuff_area_limit, 1))
    return merged


def _lay(merged: Panoptic, mask: np.ndarray, category: int, score: float, overlap_threshold: float) -> None:
    """Gives an object its free pixels, unless too few of its pixels are free."""
    area = int(np.count_nonzero(mask))
    free = mask & (merged.ids == 0)
    left = int(np.count_nonzero(free))
    # An object that is wholly covered has no pixel to be a segment of, whatever the threshold.
    if not left or (area - left) / area > overlap_threshold:
        return
    merged.segments.append(Segment(len(merged.segments) + 1, category, thing=True, score=score))
    merged.ids[free] = len(merged.segments)


def _fill(merged: Panoptic, classes: np.ndarray, stuff: dict[int, int], limit: int) -> None:
    """Gives each class of stuff the pixels that no object took, where they are at least `limit`."""
    free = merged.ids == 0
    areas = np.bincount(classes[free].ravel())
    for label, area in enumerate(areas.tolist()):
        if label in stuff and area >= limit:
            merged.segments.append(Segment(len(merged.segments) + 1, stuff[label], thing=False))
            merged.ids[free & (classes == label)] = len(merged.segments)

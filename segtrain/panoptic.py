"""One segment per pixel: every object by itself, every kind of stuff as one; in truth and in predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import DataError, listed
from segtrain.instances import Instances
from segtrain.types import IGNORE_INDEX, Record

VOID = 0
"""The segment id of pixels that belong to nothing."""
ID_END = 256**3
"""Ids are below this, so that three bytes of a PNG hold one."""


@dataclass(frozen=True)
class Segment:
    """One object, or one image's pixels of one kind of stuff.

    Attributes:
        id: its value in `Panoptic.ids`, in [1, 2^24).
        category: class index.
        thing: whether it is an object, of which there may be several; else it is stuff.
        crowd: a group of objects that nobody took apart; only truth has such.
        score: of a predicted object, in [0, 1].
    """

    id: int
    category: int
    thing: bool
    crowd: bool = False
    score: float | None = None


@dataclass
class Panoptic:
    """An image (H, W) cut into segments that never overlap.

    `ids` (H, W) int32 holds one segment's id per pixel, 0 where nothing is (void). Every other id has one entry in
    `segments` and every entry has at least one pixel; `positions` checks that.
    """

    ids: np.ndarray
    segments: list[Segment]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.ids.shape[0], self.ids.shape[1]

    def positions(self, where: object | None = None) -> np.ndarray:
        """(H, W) int32: 0 for void, else 1 + the segment's place in `segments`.

        Raises:
            DataError: ids and segments are not the same set, or an id is out of range; `where` is named.
        """
        listed_ids = [segment.id for segment in self.segments]
        twice = sorted({one for one in listed_ids if listed_ids.count(one) > 1})
        if twice:
            raise DataError(f"several segments have the id {listed(twice)}", where=where, expected="one entry per id")
        wrong = [one for one in listed_ids if not VOID < one < ID_END]
        if wrong:
            raise DataError(
                f"segments have the id {listed(wrong)}", where=where, expected=f"ids from 1 to {ID_END - 1}; 0 is void"
            )
        table = np.zeros(max(listed_ids, default=0) + 1, np.int32)  # zeros cost nothing until they are touched
        table[listed_ids] = np.arange(1, len(listed_ids) + 1)
        known = (self.ids >= 0) & (self.ids < len(table))
        found = table[np.where(known, self.ids, 0)]
        self._compare(found, np.unique(self.ids[(found == 0) & (self.ids != VOID)]), where)
        return found

    def _compare(self, found: np.ndarray, strange: np.ndarray, where: object | None) -> None:
        if len(strange):
            raise DataError(
                f"pixels have segment ids that the list of segments has not: {listed(strange.tolist())}",
                where=where,
                expected="an entry for every id but 0, which is void",
                fix="write image and list again from one source",
            )
        areas = np.bincount(found.ravel(), minlength=len(self.segments) + 1)[1:]
        empty = [segment.id for segment, area in zip(self.segments, areas, strict=True) if not area]
        if empty:
            raise DataError(
                f"segments are listed that no pixel has: {listed(empty)}",
                where=where,
                expected="at least one pixel for every entry",
                fix="write image and list again from one source",
            )

    def labels(self) -> np.ndarray:
        """(H, W) uint8 class indices, 255 where void or a crowd: truth for semantic segmentation."""
        of_segment = [IGNORE_INDEX if segment.crowd else segment.category for segment in self.segments]
        return np.array([IGNORE_INDEX, *of_segment], np.uint8)[self.positions()]

    def instances(self, label_of: Mapping[int, int]) -> Instances:
        """The objects whose class `label_of` (class index here -> label from 1 on) names; stuff and others are not."""
        kept = [segment for segment in self.segments if segment.thing and segment.category in label_of]
        if not kept:
            return Instances.none(*self.size)
        ids = np.array([segment.id for segment in kept], np.int32)
        return Instances.of(
            torch.from_numpy((self.ids == ids[:, None, None]).astype(np.uint8)),
            torch.tensor([label_of[segment.category] for segment in kept]),
            crowd=torch.tensor([segment.crowd for segment in kept]),
            ids=torch.from_numpy(ids.astype(np.int64)),
        )


@dataclass
class PanopticBatch:
    """Images of one size with their segments: `image` (B, H, W, C) uint8, or float32 in [0, 255] above 8 bits."""

    image: Tensor
    target: list[Panoptic]
    index: Tensor
    records: list[Record]

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> PanopticBatch:
        """The images on a device; segments stay in the main memory, where they are compared."""
        return replace(self, image=self.image.to(device, non_blocking=True))

    def pin_memory(self) -> PanopticBatch:
        """Called by the loader's pinning thread when the batch goes to a GPU."""
        return replace(self, image=self.image.pin_memory())


def from_instances(instances: Instances, *, background: int | np.ndarray | None = 0) -> Panoptic:
    """Objects, and stuff on the pixels that no object has, as segments; ids count from 1.

    Where objects overlap, the smaller one lies on top, so that none is hidden by a larger one; crowds lie at the
    bottom. An object of which nothing is left is no segment. `category` is the object's label.

    Args:
        background: the class index of all other pixels, one stuff segment; or class indices (H, W) of stuff, 255
            where void; None: all other pixels are void.
    """
    masks = instances.masks.numpy() != 0
    covered = masks.sum((1, 2))
    order = sorted(range(len(masks)), key=lambda n: (not bool(instances.crowd[n]), -covered[n]))
    owner = np.full(instances.size, -1, np.int32)
    for number in order:
        owner[masks[number]] = number
    left = set(np.unique(owner).tolist())
    ids = np.zeros(instances.size, np.int32)
    segments: list[Segment] = []
    for number in range(len(masks)):
        if number in left:
            label, crowd = int(instances.labels[number]), bool(instances.crowd[number])
            segments.append(Segment(len(segments) + 1, label, thing=True, crowd=crowd))
            ids[owner == number] = len(segments)
    if background is not None:
        stuff = np.full(instances.size, background) if isinstance(background, int) else background
        free = owner < 0
        for category in np.unique(stuff[free]).tolist():
            if category != IGNORE_INDEX:
                segments.append(Segment(len(segments) + 1, category, thing=False))
                ids[free & (stuff == category)] = len(segments)
    return Panoptic(ids, segments)


def colors_of(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) -> (H, W, 3) uint8 as COCO's PNG files have them: id = R + 256 G + 256^2 B."""
    wide = ids.astype(np.uint32)
    return np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], -1).astype(np.uint8)


def ids_of(colors: np.ndarray) -> np.ndarray:
    """The segment ids (H, W) int32 of a picture (H, W, 3) uint8: `colors_of` backwards."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return red + (green << 8) + (blue << 16)

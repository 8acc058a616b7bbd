"""Objects told apart by one number per pixel, as most publishers but COCO store them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segtrain.data.instances.dataset import InstanceDataset
from segtrain.data.reading import read_mask
from segtrain.errors import DataError
from segtrain.instances import Instances
from segtrain.types import Record


@dataclass(frozen=True)
class ObjectMap:
    """The N objects of one image (H, W), none on top of another.

    `numbers` (H, W) holds unsigned integers, `ids` (N,) int64 those that are objects, rising, each with at least one
    pixel; `labels` (N,) int64 are their classes from 1 on, `crowd` (N,) bool as in `Instances`.
    """

    numbers: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class ObjectMapDataset(InstanceDataset):
    """Images whose objects are numbered in a file; a subclass says what the numbers mean."""

    @abstractmethod
    def read_map(self, record: Record) -> ObjectMap:
        """The numbered pixels of one record and which objects they are; needs no image."""

    def read_objects(self, record: Record) -> Instances:
        found = self.read_map(record)
        masks = found.numbers == found.ids.astype(found.numbers.dtype)[:, None, None]
        return Instances.of(
            torch.from_numpy(masks.view(np.uint8)),
            torch.from_numpy(found.labels),
            crowd=torch.from_numpy(found.crowd),
            ids=torch.from_numpy(found.ids),
        )

    def count_objects(self, index: int) -> np.ndarray:
        """How many objects of each class one sample has, crowds left out: (C,) int64. Reads no image."""
        found = self.read_map(self.records[index])
        return np.bincount(found.labels[~found.crowd], minlength=len(self.classes))

    def read_numbers(self, path: Path) -> np.ndarray:
        """The numbers (H, W) of one file, unsigned.

        Raises:
            DataError: no such file, not readable, or not one whole number from 0 on per pixel.
        """
        numbers = read_mask(path, max_pixels=self.max_pixels)
        if numbers.ndim == 3 or numbers.min() < 0:
            kind = "colors" if numbers.ndim == 3 else f"numbers down to {numbers.min()}"
            raise DataError(
                f"objects are told apart by {kind}",
                where=path,
                expected="one number from 0 on per pixel: a grey or palette PNG, of 16 bits beyond 255",
                fix="get the publisher's file again, or export the objects by number",
            )
        return numbers.astype(np.uint32) if numbers.dtype.kind == "i" else numbers


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The different values of unsigned integers of any shape, rising: int64."""
    # Counting is ten times as fast as sorting, where what is counted fits into a table.
    if numbers.dtype.itemsize > 2:
        return np.unique(numbers).astype(np.int64)
    return np.flatnonzero(np.bincount(numbers.ravel()))

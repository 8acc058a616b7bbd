"""A fingerprint of what was evaluated: the pixels and labels themselves, whatever the files are called."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from segtrain.metrics.base import Judged
from segtrain.metrics.objects import JudgedObjects


class DataDigest:
    """SHA-256 over every image and target as they were judged, and over the names of the split.

    Two evaluations with one `data_sha256` judged the same pixels by the same labels, after decoding and label maps;
    with one `split_sha256` they had the same list of names. Grows by 100 bytes per image.
    """

    def __init__(self) -> None:
        self.images: dict[str, str] = {}

    def update(self, judged: Judged) -> None:
        self.add(judged.record.name, judged.image, judged.target)

    def add(self, name: str, *arrays: np.ndarray) -> None:
        """Takes in all that makes one image and its target."""
        found = hashlib.sha256()
        for array in arrays:
            found.update(str((array.shape, str(array.dtype))).encode())
            found.update(np.ascontiguousarray(array).data)
        self.images[name] = found.hexdigest()

    def state(self) -> dict[str, str]:
        return self.images

    def merge(self, state: dict[str, str]) -> None:
        self.images.update(state)

    def compute(self) -> dict[str, Any]:
        return {}

    def digests(self) -> dict[str, str]:
        """`data_sha256` and `split_sha256`; neither depends on the order of evaluation."""
        names = sorted(self.images)
        data = "".join(f"{self.images[name]}  {name}\n" for name in names)
        split = "".join(f"{name}\n" for name in names)
        return {
            "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
            "split_sha256": hashlib.sha256(split.encode()).hexdigest(),
        }


class ObjectDigest(DataDigest):
    """The same of images and their objects: masks, boxes, classes, crowds and the publisher's areas."""

    def update(self, judged: JudgedObjects) -> None:  # type: ignore[override]
        truth = judged.truth
        parts = (judged.image, truth.masks, truth.boxes, truth.labels, truth.crowd, truth.area)
        self.add(judged.record.name, *(part.cpu().numpy() for part in parts))

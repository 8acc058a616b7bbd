"""Samples of one size as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segtrain.errors import DataError, SegtrainError
from segtrain.types import IGNORE_INDEX, Batch, Record


@dataclass(frozen=True)
class Loaded:
    """One sample on its way into a batch."""

    image: np.ndarray
    target: Any
    index: int
    record: Record
    color: np.ndarray | None
    load_seconds: float
    augment_seconds: float


def stacked(samples: Sequence[Loaded]) -> Batch | SegtrainError:
    """Samples with one class per pixel as one batch; a DataError where their sizes differ."""
    sizes = {sample.image.shape for sample in samples}
    if len(sizes) > 1:
        return DataError(
            f"a batch holds images of different sizes: {sorted(sizes)}",
            expected="one size per batch: a crop, or a resize to one size",
            fix="use augment=basic (random crop) or augment=none (resize) with augment.crop_size",
        )
    # An array above 8 bits makes the whole batch float32; both keep the range [0, 255].
    dtype = np.float32 if any(sample.image.dtype == np.float32 for sample in samples) else np.uint8
    return Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples]).astype(dtype, copy=False)),
        target=torch.from_numpy(np.stack([sample.target for sample in samples])),
        index=torch.tensor([sample.index for sample in samples]),
        records=[sample.record for sample in samples],
        color=color_matrices(samples),
        load_seconds=sum(sample.load_seconds for sample in samples),
        augment_seconds=sum(sample.augment_seconds for sample in samples),
        unlabelled=all(sample.target.min() == IGNORE_INDEX for sample in samples),
    )


def color_matrices(samples: Sequence[Loaded]) -> torch.Tensor | None:
    """The color matrices (B, C, C + 1) float32, the identity for samples without one; None: no sample has one."""
    if all(sample.color is None for sample in samples):
        return None
    channels = samples[0].image.shape[2]
    same = np.eye(channels, channels + 1)
    colors = [same if sample.color is None else sample.color for sample in samples]
    return torch.from_numpy(np.stack(colors).astype(np.float32))

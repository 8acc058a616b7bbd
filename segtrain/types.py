"""The few names that every floor shares: what a batch holds and which pixels are nobody's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from annotated_types import Ge, Gt, Interval, Len
from torch import Tensor

IGNORE_INDEX = 255
"""The one target value that no loss and no metric counts."""

# Ranges that a config value must lie in: written on a signature, checked before anything is built.
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""What NumPy's and torch's generators both take, with room to add a rank."""
NumClasses = Annotated[int, Interval(ge=2, le=254)]
Pair = Annotated[list[PositiveInt], Len(2, 2)]
Size = PositiveInt | Pair
"""A square's side, or `[height, width]`."""


def height_width(size: Size) -> tuple[int, int]:
    """`320` -> `(320, 320)`, `[360, 480]` -> `(360, 480)`."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Score(NamedTuple):
    """What a command came to: its score and the score's name; NaN where nothing is scored."""

    value: float = math.nan
    name: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Record:
    """Where one sample comes from: its name within the dataset and the files behind it (none if generated)."""

    name: str
    image: Path | None = None
    target: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What the dataset's publisher lists beside the files, e.g. the breed of a pet."""

    @property
    def source(self) -> str:
        """What to show a person who must find this sample."""
        return str(self.image or self.name)


class _Row(Protocol):
    """A tensor or a list: one thing per sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


Images = TypeVar("Images", bound=_Row)
Targets = TypeVar("Targets", bound=_Row)


@dataclass
class Samples(Generic[Images, Targets]):
    """What every batch to train on holds: B samples, each with the image, target, position and record of its place.

    `index` (B,) int64 positions in the dataset, in the main memory, where they are read; `records` one per sample.
    """

    image: Images
    target: Targets
    index: Tensor
    records: list[Record]
    color: Tensor | None = None
    """(B, C, C + 1) float32: per sample a matrix and a shift on colors in [0, 255] that `image` has yet to go through,
    clamped afterwards; None: `image` is as it should be."""
    load_seconds: float = 0.0
    """What the workers spent on reading these samples, summed over them."""
    augment_seconds: float = 0.0
    """What the workers spent on transforming these samples, summed over them."""
    unlabelled: bool = False
    """Whether no pixel is labelled, so that the batch teaches nothing."""

    def __len__(self) -> int:
        return len(self.image)

    def parts(self, count: int) -> list[Self]:
        """The batch cut into `count` batches (fewer where it is smaller) whose sizes differ by one at most, in order.

        Views of this batch's memory. The seconds stay with the first part, so that their sum is the batch's.
        """
        count = min(count, len(self))
        ends = [len(self) * number // count for number in range(count + 1)]
        return [
            replace(
                self,
                image=self.image[first:last],
                target=self.target[first:last],
                index=self.index[first:last],
                records=self.records[first:last],
                color=None if self.color is None else self.color[first:last],
                load_seconds=0.0 if first else self.load_seconds,
                augment_seconds=0.0 if first else self.augment_seconds,
            )
            for first, last in pairwise(ends)
        ]


@dataclass
class Batch(Samples[Tensor, Tensor]):
    """Samples of one size.

    `image` (B, H, W, C) uint8, or float32 in [0, 255] for sources of more than 8 bits; `target` (B, H, W) uint8,
    `IGNORE_INDEX` where unlabelled.
    """

    def __len__(self) -> int:
        return self.image.shape[0]  # asked at every step, and of a tensor itself it takes longer

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; overlaps with computation where the memory is pinned."""
        image, target = (one.to(device, non_blocking=True) for one in (self.image, self.target))
        color = None if self.color is None else self.color.to(device, non_blocking=True)
        return replace(self, image=image, target=target, color=color)

    def pin_memory(self) -> Batch:
        """Called by the loader's pinning thread when the batch goes to a GPU."""
        color = None if self.color is None else self.color.pin_memory()
        return replace(self, image=self.image.pin_memory(), target=self.target.pin_memory(), color=color)

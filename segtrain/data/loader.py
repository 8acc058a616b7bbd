"""Batches: of training in the order of their sampler, of evaluation each sample once; read here or by workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from torch.utils.data import DataLoader, Dataset

from segtrain import distributed
from segtrain.data.batches import Loaded, stacked
from segtrain.data.caching.cache import is_cached
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import ImageDataset, Unfinished
from segtrain.data.sampler import StepSampler
from segtrain.data.workers import CLOSING, end_workers_with, quiet_worker, raising
from segtrain.errors import DataError, SegtrainError
from segtrain.types import Batch, NonNegativeInt, NumClasses, PositiveInt, Size


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """The keys of a `data` node that are about batches, not about the dataset."""

    num_classes: NumClasses
    crop_size: Size
    val_split: str = "val"
    effective_batch: PositiveInt = 8
    batch_size: PositiveInt | Literal["auto"] = 8
    num_workers: NonNegativeInt = 2
    prefetch: PositiveInt = 2
    cache: Literal["none", "ram", "disk"] = "none"
    cache_dir: Annotated[str, Len(1)] = "outputs/cache"
    scan: PositiveInt | None = 512
    group_by_aspect: bool = False

    @property
    def images(self) -> int:
        """Images per batch of a process; with `auto` they go through the network in as many pieces as must be."""
        return self.effective_batch if self.batch_size == "auto" else self.batch_size


class TrainLoader:
    """Endless epochs of steps; a step is `accumulate` batches per process, and an incomplete last step is dropped.

    Step k of an epoch takes the same samples on 1 or N processes as long as batch_size x accumulate x N is the same.

    Args:
        group_by_aspect: as far as possible, a step's images are all wider than high or all the other way round: images
            of different sizes are padded to the largest, which then costs less.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt = 2,
        prefetch: PositiveInt = 2,
        accumulate: PositiveInt = 1,
        seed: int = 0,
        pin_memory: bool = False,
        group_by_aspect: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.dataset = dataset
        self.samples_per_step = batch_size * accumulate * distributed.world_size()
        self.length = len(dataset)  # type: ignore[arg-type]
        self.steps_per_epoch = self.length // self.samples_per_step
        if self.steps_per_epoch == 0:
            fitting = self.length // (self.samples_per_step // batch_size)
            raise DataError(
                f"the training split has {self.length} images, one step needs {self.samples_per_step}",
                expected="batch_size x accumulate x processes <= images, so that at least one step is made",
                fix=f"set data.batch_size={fitting}" if fitting else "lower trainer.accumulate, or use fewer processes",
            )
        wide = dataset.aspect_ratios() >= 1 if group_by_aspect else None  # type: ignore[attr-defined]
        self.order = StepSampler(self.length, self.steps_per_epoch, batch_size, accumulate, seed, wide)
        self.loader = _loader(dataset, self.order, _collate, num_workers, prefetch, pin_memory)
        end_workers_with(self, self.loader)

    @property
    def cached(self) -> bool:
        """Whether samples come decoded."""
        return isinstance(self.dataset, SegmentationDataset) and is_cached(self.dataset)

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """The batches of steps `first`, `first + 1`, … of an epoch."""
        self.order.epoch, self.order.first = epoch, first
        step: list[Batch] = []
        for batch in raising(self.loader):
            step.append(batch)
            if len(step) == self.accumulate:
                yield step
                step = []

    def trial(self, count: PositiveInt) -> tuple[Batch, float]:
        """A whole batch of the first `count` samples, repeated, and the seconds that one process needs for a sample.

        Raises:
            SegtrainError: of a sample, or where they make no batch.
        """
        samples = _Guarded(self.dataset)
        _ = samples[(0, 0)]  # once more below, timed: the first one loads what the others share
        begun = perf_counter()
        found = [samples[(0, index)] for index in range(min(count, self.length))]
        seconds = (perf_counter() - begun) / len(found)
        batch = _collate(self.dataset, [found[number % len(found)] for number in range(self.batch_size)])
        if isinstance(batch, SegtrainError):
            raise batch
        return batch, seconds


class EvalLoader:
    """Every sample once, in order, whole; process r of N takes samples r, r + N, …, and none is counted twice.

    Yields batches of one image size: neighbors of equal size go together, nothing is padded.
    """

    def __init__(
        self,
        dataset: ImageDataset[Any],
        *,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt = 2,
        prefetch: PositiveInt = 2,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.length = len(dataset)  # type: ignore[arg-type]
        mine = range(distributed.rank(), self.length, distributed.world_size())
        chunks = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
        self.images = len(mine)
        self.loader = _loader(dataset, chunks, _collate_by_size, num_workers, prefetch, pin_memory)
        end_workers_with(self, self.loader)

    def first(self) -> Batch:
        """The first sample alone, read in this process.

        Raises:
            SegtrainError: of the sample.
        """
        sample = _Guarded(self.dataset)[0]
        if isinstance(sample, SegtrainError):
            raise sample
        batch: Batch = _collate(self.dataset, [sample])
        return batch

    def __iter__(self) -> Iterator[Batch]:
        for batches in raising(self.loader):
            yield from batches


def _loader(
    dataset: Dataset[Any], order: Any, collate: Any, num_workers: int, prefetch: int, pin_memory: bool
) -> DataLoader[Any]:
    return DataLoader(
        _Guarded(dataset),
        batch_sampler=order,
        collate_fn=partial(collate, dataset),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=partial(quiet_worker, closing=CLOSING),
        # Without its own generator, each `iter(loader)` draws from the global one and dropout differs after a resume.
        generator=torch.Generator().manual_seed(0),
    )


class _Guarded(Dataset[Any]):
    """Takes samples unfinished where the dataset has them so.

    A user's error is returned as a value: raised in a worker, its text would arrive inside a traceback.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Loaded | SegtrainError:
        try:
            image, target, record, color, load_seconds, augment_seconds = self._sample(key)
        except SegtrainError as error:
            return error
        index = key[1] if isinstance(key, tuple) else key
        return Loaded(image, target, index, record, color, load_seconds, augment_seconds)

    def _sample(self, key: Any) -> Unfinished:
        # A subclass that changes what a sample is by its own `__getitem__` means the loader, too.
        if isinstance(self.dataset, ImageDataset) and _getitem(self.dataset) is ImageDataset.__getitem__:
            return self.dataset.unfinished(key)
        begun = perf_counter()
        image, target, record = self.dataset[key]
        return image, target, record, None, perf_counter() - begun, 0.0


def _getitem(dataset: Dataset[Any]) -> Any:
    return type(dataset).__getitem__


def _collate(dataset: Dataset[Any], samples: Sequence[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, SegtrainError)]
    return errors[0] if errors else getattr(dataset, "collate", stacked)(samples)


def _collate_by_size(dataset: Dataset[Any], samples: Sequence[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, SegtrainError)]
    if errors:
        return errors[0]
    groups = [list(group) for _, group in groupby(samples, key=lambda sample: sample.image.shape)]
    return [_collate(dataset, group) for group in groups]

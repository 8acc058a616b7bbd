"""All samples of a dataset, decoded in parallel and handed on in order."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from segtrain.data.caching.index import Entry
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.faults import together
from segtrain.errors import DataError
from segtrain.types import PositiveInt, Record


class Bar(Protocol):
    """As much of a progress bar as this needs."""

    def update(self, n: int) -> object:
        """Moves on by n."""

    def close(self) -> object:
        """Takes the bar away."""


MakeBar = Callable[[int, str], Bar]


class Decoded(NamedTuple):
    """One sample as arrays in C order, with its checksum and label counts."""

    image: np.ndarray
    target: np.ndarray
    crc: int
    labels: dict[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of image and target."""
        return self.image.nbytes + self.target.nbytes


Put = Callable[[Decoded], tuple[int, int]]
"""Stores a sample; returns its (block, offset)."""


def store_all(dataset: SegmentationDataset, put: Put, bar: MakeBar, threads: PositiveInt) -> list[Entry]:
    """Hands every sample to `put`, in order.

    Raises:
        DataError: samples that cannot be used, all of them in one error.
    """
    entries: list[Entry] = []
    errors: list[tuple[Record, DataError]] = []
    progress = bar(len(dataset), "cache")
    try:
        with closing(_decoded(dataset, threads)) as samples:  # its threads end before what they fill is removed
            for record, sample in samples:
                if isinstance(sample, DataError):
                    errors.append((record, sample))
                elif not errors:  # after a fault the rest is only looked at
                    entries.append(_entry(record, sample, put(sample)))
                progress.update(1)
    finally:
        progress.close()
    if errors:
        raise together(errors, len(dataset), "samples")
    return entries


def _entry(record: Record, sample: Decoded, place: tuple[int, int]) -> Entry:
    height, width, channels = sample.image.shape
    shape = (height, width, channels)
    return Entry(record.name, *place, shape, sample.image.dtype.name, sample.crc, sample.labels)


def _decoded(dataset: SegmentationDataset, threads: int) -> Generator[tuple[Record, Decoded | DataError], None, None]:
    """Decoding releases the GIL, so threads are enough; a `load` of the user's own may not bear them and gets one."""
    ours = type(dataset).load.__module__.partition(".")[0] == "segtrain"
    waiting: deque[tuple[Record, Future[Decoded | DataError]]] = deque()
    pool = ThreadPoolExecutor(threads if ours else 1)
    try:
        for record in dataset.records:
            waiting.append((record, pool.submit(_decode, dataset, record)))
            if len(waiting) > 2 * threads:  # no further ahead: decoded samples wait in memory
                first, sample = waiting.popleft()
                yield first, sample.result()
        for first, sample in waiting:
            yield first, sample.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(dataset: SegmentationDataset, record: Record) -> Decoded | DataError:
    try:
        image, target = dataset.load(record)
        _refuse_odd(dataset, record, image, target)
    except DataError as error:
        return error
    image, target = np.ascontiguousarray(image), np.ascontiguousarray(target)
    crc = zlib.crc32(as_bytes(target), zlib.crc32(as_bytes(image)))
    return Decoded(image, target, crc, _labels(target))


def _refuse_odd(dataset: SegmentationDataset, record: Record, image: np.ndarray, target: np.ndarray) -> None:
    usable = image.dtype in (np.uint8, np.float32) and target.dtype == np.uint8
    if not usable or image.ndim != 3 or image.shape[:2] != target.shape:
        raise DataError(
            f"{type(dataset).__name__}.load gives an image {image.shape} {image.dtype} and a target {target.shape} "
            f"{target.dtype}",
            where=record.source,
            expected="an image (H, W, C) uint8, or float32 in [0, 255], and a target (H, W) uint8",
        )


def _labels(target: np.ndarray) -> dict[int, int]:
    if target.size < 2**24:  # OpenCV counts in float32, and several times faster
        counts = cv2.calcHist([target], [0], None, [256], [0, 256]).ravel()
    else:
        counts = np.bincount(target.ravel(), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, not copied."""
    return array.data.cast("B")

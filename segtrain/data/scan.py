"""Reads the masks before the first step: are they usable, and how common is each class?

The counts feed the class weights; the check turns a label fault into one error that names the files, instead
of a device-side assert or a class that never learns. An image is looked at no further than its header, which says
whether its size is the mask's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from segtrain.data.caching.cache import is_cached
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.faults import together
from segtrain.data.reading import read_size
from segtrain.errors import DataError
from segtrain.types import IGNORE_INDEX, PositiveInt, Record


@dataclass(frozen=True)
class Scan:
    """What the masks of `images` of the dataset's `of` samples hold, in pixels.

    `pixels` (C,) int64 per class; `ignored` unlabelled ones; `pixels_of_images_with_class` (C,) int64 all
    pixels, unlabelled ones too, of the images in which the class occurs: the denominator of median frequency
    balancing (Eigen and Fergus 2015).
    """

    images: int
    of: int
    pixels: np.ndarray
    ignored: int
    pixels_of_images_with_class: np.ndarray

    def shares(self) -> np.ndarray:
        """Each class's share (C,) of all pixels, in [0, 1]; with `ignored_share()` they add up to 1."""
        return self.pixels / max(self._total(), 1)

    def ignored_share(self) -> float:
        """The unlabelled share of all pixels, in [0, 1]."""
        return self.ignored / max(self._total(), 1)

    def _total(self) -> int:
        return int(self.pixels.sum()) + self.ignored


def scan(dataset: SegmentationDataset, limit: PositiveInt | None = None, threads: PositiveInt = 4) -> Scan:
    """Counts the labels of `limit` evenly spaced samples (None: of all); no image is decoded.

    Where the dataset has a cache all counts are known already, and all samples are looked at whatever the limit.

    Raises:
        DataError: masks that cannot be used, or images of other sizes than theirs, all of them in one error; or a
            binary dataset whose masks hold 0 and 255 alone, where 255 means unlabelled.
    """
    indices = evenly(len(dataset), None if is_cached(dataset) else limit)
    # Decoding releases the GIL, so threads are enough; sums of integers do not depend on their order.
    with ThreadPoolExecutor(threads) as pool:
        counted = list(pool.map(partial(_count, dataset), indices))
    errors = [
        (dataset.records[index], count)
        for index, count in zip(indices, counted, strict=True)
        if isinstance(count, DataError)
    ]
    if errors:
        of_masks = all(_is_about_a_mask(*error) for error in errors)
        raise together(errors, len(indices), "masks" if of_masks else "samples")
    found = _sum([count for count in counted if not isinstance(count, DataError)], dataset)
    if _foreground_is_255(found, dataset):
        if len(indices) < len(dataset):
            return scan(dataset, None, threads)  # the sample may have missed a rare class: look at every mask
        raise _binary_error(found, dataset)
    return found


def evenly(count: int, limit: int | None) -> list[int]:
    """`limit` numbers below `count`, evenly spaced; None: all."""
    chosen = count if limit is None else min(limit, count)
    return [i * count // chosen for i in range(chosen)]


def _count(dataset: SegmentationDataset, index: int) -> np.ndarray | DataError:
    try:
        counts = dataset.count_labels(index)
        if not is_cached(dataset):  # what is in a cache was compared when it was built
            _compare_sizes(dataset, dataset.records[index])
    except DataError as error:
        return error
    return counts


def _compare_sizes(dataset: SegmentationDataset, record: Record) -> None:
    """Raises `load`'s own error where the headers of image and mask do not say one size."""
    files = record.image, record.target
    # A `load` of its own may bring the two together in its own way.
    if type(dataset).load is not SegmentationDataset.load or files[0] is None or files[1] is None:
        return
    image = read_size(files[0], upright=dataset.exif == "apply", max_pixels=dataset.max_pixels)
    mask = read_size(files[1], max_pixels=dataset.max_pixels)
    if image != mask:
        dataset.load(record)  # has the last word: a header does not tell everything


def _is_about_a_mask(record: Record, error: DataError) -> bool:
    return record.image is None or not str(error.where or "").startswith(str(record.image))


def _sum(counts: Sequence[np.ndarray], dataset: SegmentationDataset) -> Scan:
    table = np.stack(counts).astype(np.int64)
    classes = table[:, : len(dataset.classes)]
    return Scan(
        images=len(counts),
        of=len(dataset),
        pixels=classes.sum(0),
        ignored=int(table[:, IGNORE_INDEX].sum()),
        pixels_of_images_with_class=((classes > 0) * table.sum(1, keepdims=True)).sum(0),
    )


def _foreground_is_255(found: Scan, dataset: SegmentationDataset) -> bool:
    return (
        len(dataset.classes) == 2
        and found.pixels[1] == 0
        and found.ignored > 0
        and dataset.labels.leaves_255_unlabelled
    )


def _binary_error(found: Scan, dataset: SegmentationDataset) -> DataError:
    return DataError(
        f"every labelled pixel is class 0 ({dataset.classes[0]}) and 255 covers {found.ignored_share():.1%}",
        where=f"{found.images} masks of split '{dataset.split}', e.g. {dataset.records[0].target}",
        expected=f"pixels of class 1 ({dataset.classes[1]}); 255 means unlabelled and is never learned",
        fix="if 255 is the foreground, set data.label_map={0: 0, 255: 1}",
    )

"""`data.cache=disk|ram`: decoded samples in place of files, equal to the byte.

    cache = open_cache(dataset, kind="disk", folder=Path("outputs/cache"), settings=node, say=print, bar=tracker.bar)
    cache.attach(dataset)

On disk one process builds a cache once, and every process that trains on the same data maps it into its memory, where
the system keeps one copy for all. In memory each process of torchrun builds its own, and its workers share it.
"""

from __future__ import annotations

import mmap
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segtrain import distributed
from segtrain.data.caching.building import MakeBar, as_bytes, store_all
from segtrain.data.caching.folders import caches_of, folder_bytes, folder_of, locked, scratch, writing
from segtrain.data.caching.index import SAMPLES, Entry, UnusableCacheError, read_index, write_index
from segtrain.data.caching.key import cache_key, stamps_of
from segtrain.data.caching.room import measure, refuse_full_disk, refuse_full_memory, size_text
from segtrain.data.caching.stores import Memory, SampleFile
from segtrain.data.dataset import SegmentationDataset
from segtrain.errors import ConfigError, DataError
from segtrain.types import PositiveInt

Say = Callable[[str], None]


class SampleCache:
    """The untransformed samples of one dataset, in its order.

    Args:
        entries: where each sample lies, and what it is.
        blocks: the bytes, read-only.
        folder: of a cache on disk.
    """

    def __init__(self, entries: Sequence[Entry], blocks: Sequence[memoryview], folder: Path | None) -> None:
        self.entries = entries
        self.blocks = blocks
        self.folder = folder

    @property
    def nbytes(self) -> int:
        """Bytes of all images and targets."""
        return sum(entry.nbytes for entry in self.entries)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and target (H, W) uint8 of a sample, read-only: nothing can alter the cache by them."""
        entry = self.entries[index]
        block = self.blocks[entry.block]
        image: np.ndarray = np.ndarray(entry.shape, entry.dtype, block, entry.offset)
        return image, np.ndarray(entry.shape[:2], np.uint8, block, entry.offset + image.nbytes)

    def copied(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The same as arrays that may be written to, as those from a file."""
        image, target = self.load(index)
        return image.copy(), target.copy()

    def counts(self, index: int) -> np.ndarray:
        """How often each value occurs in the target of a sample: (256,) int64."""
        counts = np.zeros(256, np.int64)
        for value, count in self.entries[index].labels.items():
            counts[value] = count
        return counts

    def attach(self, dataset: SegmentationDataset) -> None:
        """Makes `dataset` take its samples and label counts from here; it must be the one this was made of.

        A transform gets views, for most of them look at a part of the image alone; without one samples are copies.
        """
        if len(dataset) != len(self.entries):
            raise ValueError(f"a cache of {len(self.entries)} samples does not fit a dataset of {len(dataset)}")
        dataset.source = self.copied if dataset.transform is None else self.load
        dataset.label_counts = self.counts


class DiskCache(SampleCache):
    """Samples in a file; each is checked against its CRC-32 when this process reads it for the first time.

    Raises:
        UnusableCacheError: the folder is damaged, incomplete or of another key.
    """

    folder: Path

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__(read_index(folder, key), [_mapped(folder / SAMPLES)], folder)
        self.checked = np.zeros(len(self.entries), bool)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, target = super().load(index)
        if not self.checked[index]:
            self._check(self.entries[index], image, target)
            self.checked[index] = True
        return image, target

    def _check(self, entry: Entry, image: np.ndarray, target: np.ndarray) -> None:
        if zlib.crc32(as_bytes(target), zlib.crc32(as_bytes(image))) != entry.crc:
            raise DataError(
                f"sample {entry.name} was changed after it was written to the cache",
                where=self.folder,
                expected=f"the CRC-32 {entry.crc:08x}",
                fix=f"delete {self.folder}, and it is built anew; if this comes again, check the disk",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "blocks": None}  # a process that is spawned maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.blocks = [_mapped(self.folder / SAMPLES)]


class MemoryCache(SampleCache):
    """Samples in anonymous memory, which workers forked from this process share; a spawned one cannot."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise ConfigError(
            "data.cache=ram cannot be handed to a worker that is spawned, not forked",
            expected="workers that fork, as on Linux",
            fix="data.cache=disk, or data.num_workers=0",
        )


def open_cache(
    dataset: SegmentationDataset,
    *,
    kind: Literal["ram", "disk"],
    folder: Path,
    settings: Mapping[str, Any],
    say: Say,
    bar: MakeBar,
    threads: PositiveInt = 4,
) -> SampleCache:
    """The dataset's decoded samples; what is not there yet is built.

    Args:
        kind: `disk` keeps them in a folder of their own below `folder`; `ram` for as long as this process lives.
        settings: the dataset's node as plain data; another one is another cache.
        say: gets what happens, line by line.
        bar: makes a progress bar from a total and a name.
        threads: that decode at once.

    Raises:
        DataError: samples that cannot be used, all of them in one error.
        ResourceError: not enough room, or a folder that cannot be written.
        ConfigError: a dataset class whose source cannot be read (disk).
    """
    if kind == "ram":
        return _in_memory(dataset, say, bar, threads)
    stamps = stamps_of(dataset)
    key = cache_key(dataset, settings, stamps)
    home = folder_of(folder.expanduser(), dataset, key)
    found = _opened(home, key)
    if not isinstance(found, DiskCache):
        with locked(home, say):
            found = _opened(home, key)  # another process may have built it meanwhile
            if not isinstance(found, DiskCache):
                _remove_unusable(home, found, say)
                _build(dataset, home, key, stamps, say, bar, threads)
                return DiskCache(home, key)
    say(f"cache    {len(found.entries):,} samples, {size_text(found.nbytes)}, from {home}")
    return found


def is_cached(dataset: SegmentationDataset) -> bool:
    """Whether a cache is attached to the dataset."""
    return isinstance(getattr(dataset.label_counts, "__self__", None), SampleCache)


def _opened(home: Path, key: str) -> DiskCache | UnusableCacheError | None:
    """The cache; why it cannot be used; or None where there is none."""
    if not home.is_dir():
        return None
    try:
        return DiskCache(home, key)
    except UnusableCacheError as error:
        return error


def _remove_unusable(home: Path, fault: UnusableCacheError | None, say: Say) -> None:
    if fault is not None:
        say(f"cache    {home} cannot be used ({fault}): removed, and built anew")
        with writing(home):
            shutil.rmtree(home)


def _build(
    dataset: SegmentationDataset,
    home: Path,
    key: str,
    stamps: Sequence[Sequence[Any]],
    say: Say,
    bar: MakeBar,
    threads: int,
) -> None:
    need = measure(dataset, threads)
    say(f"cache    {len(dataset):,} samples, {need}, to be written to {home}")
    others = caches_of(home.parent, dataset)
    if others:
        size = size_text(sum(folder_bytes(path) for path in others))
        say(f"         {size} in caches of other or older data, kept: {', '.join(map(str, others))}")
    start = time.perf_counter()
    with scratch(home, say) as building:
        refuse_full_disk(need, home)  # what a killed build has left is gone by now
        with SampleFile(building / SAMPLES, home) as file:
            entries = store_all(dataset, file.put, bar, threads)
        with writing(home):
            write_index(building, key, entries, stamps)
    say(f"         built in {time.perf_counter() - start:.1f} s")


def _in_memory(dataset: SegmentationDataset, say: Say, bar: MakeBar, threads: int) -> MemoryCache:
    need = measure(dataset, threads)
    world = distributed.world_size()
    copies = f", a copy in each of {world} processes" if world > 1 else ""
    say(f"cache    {len(dataset):,} samples, {need}, to be held in memory{copies}")
    if distributed.local_rank() == 0:  # the others of this machine may find memory that this one has filled already
        refuse_full_memory(need.nbytes, need.exact)
    start = time.perf_counter()
    memory = Memory(need.nbytes)
    entries = store_all(dataset, memory.put, bar, threads)
    say(f"         built in {time.perf_counter() - start:.1f} s")
    return MemoryCache(entries, [memoryview(block).toreadonly() for block in memory.blocks], None)


def _mapped(path: Path) -> memoryview:
    """The bytes of a file, read-only, in memory that the system shares between processes."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DataError(
            f"the cache cannot be opened: {error.strerror}",
            where=path,
            fix="run again, and it is built anew where it is gone",
        ) from error

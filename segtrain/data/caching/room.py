"""How large a cache will be, and whether there is room for it; known before the first sample is decoded."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from segtrain import distributed
from segtrain.data.caching.index import padded, sample_bytes
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.reading import FORMATS
from segtrain.errors import DataError, ResourceError
from segtrain.types import PositiveInt, Record

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes that `read_image` turns into float32."""
_PROBES = 8
_DISK_MARGIN = 64 * 2**20
_MEMORY_MARGIN = 2**30  # for the model, the workers and their batches


class Need(NamedTuple):
    """Bytes that the decoded samples take; `exact` where the headers of the files told."""

    nbytes: int
    exact: bool

    def __str__(self) -> str:
        return ("" if self.exact else "about ") + size_text(self.nbytes)


def measure(dataset: SegmentationDataset, threads: PositiveInt) -> Need:
    """From the headers of the image files; where a dataset makes its samples in its own way, from a few of them.

    A file that cannot be read counts nothing: building says what is wrong, with all others.
    """
    records = dataset.records
    if type(dataset).load is SegmentationDataset.load:
        with ThreadPoolExecutor(threads) as pool:
            return Need(sum(pool.map(partial(_bytes_by_header, dataset), records)), True)
    count = min(_PROBES, len(records))
    probes = [_bytes_by_loading(dataset, records[i * len(records) // count]) for i in range(count)]
    return Need(sum(probes) * len(records) // count, False)


def _bytes_by_header(dataset: SegmentationDataset, record: Record) -> int:
    assert record.image is not None
    try:
        with Image.open(record.image, formats=FORMATS) as image:
            itemsize = 4 if image.mode in _DEEP else 1
            # Turning an image upright leaves its number of pixels.
            return padded(sample_bytes(image.height, image.width, dataset.channels, itemsize))
    except Image.DecompressionBombError:
        return _bytes_by_loading(dataset, record)  # data.max_pixels may allow it, which Pillow does not know here
    except Exception:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error, …
        return 0


def _bytes_by_loading(dataset: SegmentationDataset, record: Record) -> int:
    try:
        image, target = dataset.load(record)
    except DataError:
        return 0
    return padded(image.nbytes + target.nbytes)


def refuse_full_disk(need: Need, home: Path) -> None:
    """Raises `ResourceError` where the disk of `home` has not that much free."""
    folder = next(parent for parent in home.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    wanted = need.nbytes + need.nbytes // 20 + _DISK_MARGIN
    if free < wanted:
        raise ResourceError(
            f"the cache of decoded samples needs {need}, {size_text(free)} are free",
            where=home,
            expected=f"{size_text(wanted)} free, some to spare included",
            fix="data.cache_dir=DIR on a larger disk, fewer samples by data.limit=N, or data.cache=none",
        )


def refuse_full_memory(nbytes: int, exact: bool = True) -> None:
    """Raises `ResourceError` where `nbytes`, in each process of this machine, are more than what is available."""
    free = available_memory()
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    if free is not None and copies * nbytes + _MEMORY_MARGIN > free:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise ResourceError(
            f"the cache of decoded samples needs {Need(nbytes, exact)} of memory{each}, {size_text(free)} are free",
            expected=f"{size_text(copies * nbytes + _MEMORY_MARGIN)} available, some to spare included",
            fix="data.cache=disk (all processes share it), fewer samples by data.limit=N, or data.cache=none",
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken without swapping, by the machine and by the control groups (containers, job limits).

    None where the system does not say. `root` is the file system's, another one in tests.
    """
    found = [*_of_machine(root), *_of_control_groups(root)]
    return max(0, min(found)) if found else None


def _of_machine(root: Path) -> list[int]:
    lines = _lines(root / "proc/meminfo")
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _of_control_groups(root: Path) -> list[int]:
    """What each group from this process's own up to the top has left; version 2 and version 1 of the interface."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = _VERSION_1 if controllers else _VERSION_2
        inside = Path(path.lstrip("/"))
        found += [_left(base / group, *names) for group in (inside, *inside.parents)]
    return [left for left in found if left is not None]


_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    limits, used = _lines(group / limit), _lines(group / usage)
    if not limits or not used or limits[0] == "max":
        return None
    stat = [line.split() for line in _lines(group / "memory.stat")]
    cached = sum(int(words[1]) for words in stat if words[0] == reclaimable)  # file pages that the kernel gives up
    return int(limits[0]) - int(used[0]) + cached


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # not Linux, or no such group here


def size_text(nbytes: int) -> str:
    """`1.1 GiB`, `320.0 MiB`."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"

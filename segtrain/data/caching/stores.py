"""Where decoded samples are put while a cache is built: a file, or memory that forked workers share."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from segtrain.data.caching.building import Decoded, as_bytes
from segtrain.data.caching.folders import writing
from segtrain.data.caching.index import padded
from segtrain.data.caching.room import refuse_full_memory
from segtrain.errors import ResourceError

_BLOCK = 256 * 2**20


class SampleFile:
    """`samples.bin` while it is written; on the disk when the `with` ends."""

    def __init__(self, path: Path, home: Path) -> None:
        self.home = home
        self.length = 0
        with writing(home):
            self.file = path.open("wb")

    def put(self, sample: Decoded) -> tuple[int, int]:
        offset = padded(self.length)
        with writing(self.home):
            self.file.write(bytes(offset - self.length))
            self.file.write(as_bytes(sample.image))
            self.file.write(as_bytes(sample.target))
        self.length = offset + sample.nbytes
        return 0, offset

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # what is buffered may not fit the disk either, and all of it is removed anyhow
            with contextlib.suppress(OSError):
                self.file.close()
            return
        with writing(self.home), self.file:
            self.file.flush()
            os.fsync(self.file.fileno())


class Memory:
    """Anonymous shared memory, a block at a time: a container's /dev/shm does not limit it.

    Args:
        expected: bytes that will be put in, as far as known.
    """

    def __init__(self, expected: int) -> None:
        self.block = min(_BLOCK, max(1, expected))
        self.blocks: list[mmap.mmap] = []
        self.length = 0

    def put(self, sample: Decoded) -> tuple[int, int]:
        offset = padded(self.length)
        if not self.blocks or offset + sample.nbytes > len(self.blocks[-1]):
            self._grow(max(self.block, sample.nbytes))
            offset = 0
        block, middle = self.blocks[-1], offset + sample.image.nbytes
        block[offset:middle] = as_bytes(sample.image)  # type: ignore[assignment]
        block[middle : offset + sample.nbytes] = as_bytes(sample.target)  # type: ignore[assignment]
        self.length = offset + sample.nbytes
        return len(self.blocks) - 1, offset

    def _grow(self, size: int) -> None:
        refuse_full_memory(size)  # again: other processes fill the same memory, and the size may have been a guess
        try:
            self.blocks.append(mmap.mmap(-1, size))
        except OSError as error:
            raise ResourceError(
                f"no memory for the cache of decoded samples: {error.strerror}",
                fix="data.cache=disk, fewer samples by data.limit=N, or data.cache=none",
            ) from error

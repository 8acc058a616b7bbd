"""What a cache folder holds: `samples.bin`, the bytes one sample after the other, and `index.json`, what is where.

A sample is its image (H, W, C) in C order and right behind it its target (H, W) uint8; samples start at multiples of
`ALIGNMENT` bytes. The index carries its own SHA-256, so that a damaged count cannot become a wrong class weight.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segtrain.errors import DataError

FORMAT = 1
ALIGNMENT = 64
SAMPLES = "samples.bin"
INDEX = "index.json"


class UnusableCacheError(Exception):
    """A cache folder that is there, and damaged or incomplete; its text says how."""


class Entry(NamedTuple):
    """One sample: where its bytes lie and what they are.

    `block` numbers the piece of memory (0 on disk), `offset` counts bytes within it; `shape` (H, W, C) and `dtype` are
    the image's; `crc` is the CRC-32 of image and target together; `labels` says how often each value of the target
    occurs, those that do.
    """

    name: str
    block: int
    offset: int
    shape: tuple[int, int, int]
    dtype: str
    crc: int
    labels: dict[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of image and target."""
        return sample_bytes(*self.shape, np.dtype(self.dtype).itemsize)


def sample_bytes(height: int, width: int, channels: int, itemsize: int) -> int:
    """Bytes of one sample: `itemsize` per value of the image, one per pixel of the target."""
    return height * width * (channels * itemsize + 1)


def padded(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def write_index(folder: Path, key: str, entries: Sequence[Entry], stamps: Sequence[Sequence[Any]]) -> None:
    """Writes `index.json`, on the disk when this returns; `stamps` says of each sample which files it was made of."""
    samples = [
        {**entry._asdict(), "labels": {str(value): count for value, count in entry.labels.items()}, "stamp": stamp}
        for entry, stamp in zip(entries, stamps, strict=True)
    ]
    content = {"format": FORMAT, "key": key, "samples": samples}
    text = _text(content)
    with (folder / INDEX).open("w", encoding="utf-8") as file:
        file.write(f'{{"sha256": "{_digest(text)}", "index":\n{text}}}\n')
        file.flush()
        os.fsync(file.fileno())


def read_index(folder: Path, key: str) -> list[Entry]:
    """The entries of a cache folder, whose `samples.bin` has been found to be as long as they say.

    Raises:
        UnusableCacheError: the folder is damaged, incomplete or of another key.
        DataError: the system refuses to read it.
    """
    try:
        whole = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        content = whole["index"]
        if whole["sha256"] != _digest(_text(content)):
            raise UnusableCacheError(f"{INDEX} was changed after it was written")
        if (content["format"], content["key"]) != (FORMAT, key):
            raise UnusableCacheError(f"{INDEX} belongs to another cache")
        entries = [_entry(sample) for sample in content["samples"]]
        length = (folder / SAMPLES).stat().st_size
    except FileNotFoundError as error:
        raise UnusableCacheError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise DataError(
            f"the cache cannot be read: {error.strerror}",
            where=folder,
            fix="set data.cache_dir to a folder that you may read, or data.cache=none",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableCacheError(f"{INDEX} is damaged: {error}") from error
    expected = max(entry.offset + entry.nbytes for entry in entries)
    if length != expected:
        raise UnusableCacheError(f"{SAMPLES} has {length:,} bytes, not {expected:,}")
    return entries


def _entry(sample: dict[str, Any]) -> Entry:
    height, width, channels = sample["shape"]
    return Entry(
        name=sample["name"],
        block=sample["block"],
        offset=sample["offset"],
        shape=(height, width, channels),
        dtype=sample["dtype"],
        crc=sample["crc"],
        labels={int(value): count for value, count in sample["labels"].items()},
    )


def _text(content: dict[str, Any]) -> str:
    # Written and read again it is the same text, which is what the digest is of. ASCII: a file name that is no UTF-8
    # keeps its bytes as \udcXX, which UTF-8 cannot hold.
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()

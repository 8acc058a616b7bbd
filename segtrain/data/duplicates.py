"""The same image in two splits: a score on images that were trained on says nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segtrain.data.images import ImageDataset
from segtrain.types import Record


def shared_files(train: ImageDataset[Any], val: ImageDataset[Any]) -> list[tuple[str, str]]:
    """Names of training and validation samples whose image files hold the same bytes, in the order of `val`.

    Sizes are compared first, so that only files of equal size are read: ten thousand photos take some 0.1 s. Of
    several equal training files the first is named. Generated samples have no files and are passed over.
    """
    by_size: dict[int, list[Record]] = defaultdict(list)
    for record, size in _sizes(train.records):
        by_size[size].append(record)
    first: dict[int, dict[str, str]] = {}
    shared = []
    for record, size in _sizes(val.records):
        if size not in by_size:
            continue
        if size not in first:
            pairs = [(_digest(other.image), other.name) for other in reversed(by_size[size])]
            first[size] = dict(pairs)  # reversed: the first of equal files is kept
        name = first[size].get(_digest(record.image))
        if name is not None:
            shared.append((name, record.name))
    return shared


def _sizes(records: Iterable[Record]) -> Iterable[tuple[Record, int]]:
    """Records with a file that is there, and its bytes; a missing one is reported by whoever reads it."""
    for record in records:
        if record.image is not None and record.image.is_file():
            yield record, record.image.stat().st_size


def _digest(path: Path | None) -> str:
    assert path is not None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()

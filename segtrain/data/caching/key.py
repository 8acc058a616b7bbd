"""When is a cache of decoded samples the right one? When nothing that makes a sample has changed since.

The key covers the files (name, size, time of change), the dataset's class and settings, and the programs that decode
or draw: versions of packages, and the source files of segtrain and of the user's own package, or of the folder of a
module without one, that the class imports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from segtrain import __version__
from segtrain.data.caching.index import FORMAT
from segtrain.data.caching.sources import sources_of
from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record

_NOT_ABOUT_SAMPLES = ("root", "download", "limit")
"""Settings that say where the files are and how many are used, which the files themselves tell."""


def cache_key(dataset: SegmentationDataset, settings: Mapping[str, Any], stamps: Sequence[Sequence[Any]]) -> str:
    """SHA-256, in hex, of all that decides what the dataset's decoded samples are.

    Args:
        settings: the dataset's node as plain data; where the files are (`root`) makes no other cache.
        stamps: from `stamps_of(dataset)`.

    Raises:
        ConfigError: the source of the dataset's class cannot be read.
    """
    about = {
        "format": FORMAT,
        "versions": [__version__, PIL.__version__, np.__version__, cv2.__version__],
        "class": f"{type(dataset).__module__}.{type(dataset).__qualname__}",
        "sources": sources_of(type(dataset)),
        "settings": {name: value for name, value in settings.items() if name not in _NOT_ABOUT_SAMPLES},
        "split": dataset.split,
        "channels": dataset.channels,
        "exif": dataset.exif,
        "classes": dataset.classes,
        "palette": dataset.palette,
        "label_map": dataset.labels.label_map,
        "ignore_colors": dataset.labels.ignore_colors,
        "samples": [[record.name, record.extra, stamp] for record, stamp in zip(dataset.records, stamps, strict=True)],
    }
    return hashlib.sha256(json.dumps(_plain(about), sort_keys=True).encode("ascii")).hexdigest()


def stamps_of(dataset: SegmentationDataset) -> list[list[Any]]:
    """For every record, `[name, size, mtime_ns]` of each file behind it, one list after the other."""
    return [[part for path in _files(record) for part in _stamp(path)] for record in dataset.records]


def _files(record: Record) -> list[Path]:
    """Image, mask and whatever file the dataset lists beside them."""
    return [path for path in (record.image, record.target, *record.extra.values()) if isinstance(path, Path)]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path.name, -1, -1  # reading it will say what is wrong, together with all others
    return path.name, found.st_size, found.st_mtime_ns


def _plain(value: Any) -> Any:
    """As JSON has it, with text for keys, so that they can be sorted."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(item) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return value.name  # where the data lie decides nothing
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)

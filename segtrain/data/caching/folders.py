"""Folders of caches that appear whole or not at all, whoever builds, dies or waits.

Beside a cache `NAME` lie `.NAME.lock`, which a builder holds (the kernel lets go of it when the builder dies), and
while it is built `.building-NAME`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from segtrain import file_lock
from segtrain.data.caching.room import size_text
from segtrain.data.dataset import SegmentationDataset
from segtrain.errors import ConfigError, ResourceError

Say = Callable[[str], None]

_SCRATCH = ".building-"
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def folder_of(root: Path, dataset: SegmentationDataset, key: str) -> Path:
    """`root/Voc-train-0123456789abcdef`."""
    return root / f"{_stem(dataset)}-{key[:16]}"


def caches_of(root: Path, dataset: SegmentationDataset) -> list[Path]:
    """Caches of datasets of the same class and split, whatever their files and settings."""
    pattern = re.compile(re.escape(_stem(dataset)) + "-[0-9a-f]{16}")
    return sorted(path for path in root.iterdir() if path.is_dir() and pattern.fullmatch(path.name))


def folder_bytes(folder: Path) -> int:
    """Bytes of the files right in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@contextmanager
def locked(home: Path, say: Say) -> Iterator[None]:
    """Only one process at a time is inside, for one `home`."""
    with writing(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_file(home).open("ab")
    with file:
        if not _try_lock(file, home):
            say(f"cache    waiting for another process that builds the cache {home}")
            with _locking(home):
                file_lock.wait_for(file.fileno())
        try:
            yield
        finally:
            file_lock.leave(file.fileno())


@contextmanager
def scratch(home: Path, say: Say) -> Iterator[Path]:
    """A new folder to build in, which becomes `home` at the end; gone where that is not reached.

    To be called while `home` is locked. Removes what builders that died have left, and says so.
    """
    own = home.with_name(_SCRATCH + home.name)
    with writing(home):
        _sweep(home, own, say)
        own.mkdir()
    try:
        yield own
        with writing(home):
            _sync(own)
            own.rename(home)
            _sync(home.parent)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(own, ignore_errors=True)
        raise


@contextmanager
def writing(home: Path) -> Iterator[None]:
    """Turns the system's refusal to write into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"disk full while the cache of decoded samples was written: {error.strerror}",
                where=home,
                fix="data.cache_dir=DIR on a larger disk, fewer samples by data.limit=N, or data.cache=none",
            ) from error
        raise ResourceError(
            f"the cache cannot be written: {error.strerror or error}",
            where=home,
            fix="set data.cache_dir to a folder that you may write to, or data.cache=none",
        ) from error


def _stem(dataset: SegmentationDataset) -> str:
    return re.sub(r"[^\w.-]", "_", f"{type(dataset).__name__}-{dataset.split}")


def _lock_file(home: Path) -> Path:
    # It stays: a lock file that is removed can be locked by two who opened it before and after.
    return home.with_name(f".{home.name}.lock")


def _sweep(home: Path, own: Path, say: Say) -> None:
    for left in home.parent.glob(f"{_SCRATCH}*"):
        if left == own:
            _remove_left(left, say)
            continue
        other = home.with_name(left.name.removeprefix(_SCRATCH))
        lock = _lock_file(other)
        if (lock.exists() and not os.access(lock, os.W_OK)) or not os.access(left, os.W_OK):
            continue  # another user's, who sweeps it
        with lock.open("ab") as file:
            if _try_lock(file, other):
                _remove_left(left, say)
                file_lock.leave(file.fileno())


def _remove_left(left: Path, say: Say) -> None:
    if not left.is_dir():
        return  # another process that swept was faster
    say(f"cache    removed {left}: {size_text(folder_bytes(left))} that a build left when it was killed")
    shutil.rmtree(left)


def _try_lock(file: IO[bytes], home: Path) -> bool:
    with _locking(home):
        return file_lock.take_if_free(file.fileno())


@contextmanager
def _locking(home: Path) -> Iterator[None]:
    """Turns a system or a disk without locks into an error that says what to do."""
    if not file_lock.CAN_WAIT:
        raise ConfigError(
            "data.cache=disk needs file locks, which this system has not (fcntl)",
            expected="Linux or macOS",
            fix="data.cache=none",
        )
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"the cache folder's disk does not lock files: {error.strerror}",
            where=home.parent,
            fix="set data.cache_dir to a folder on another disk, or data.cache=ram",
        ) from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

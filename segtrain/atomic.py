"""Files that are written whole or not at all.

Written beside its target, flushed to the disk and renamed: whatever instant the program is killed at, the old or the
new file is there whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path

from segtrain.errors import ResourceError


def write_atomically(
    path: Path, content: bytes | memoryview, *, read_back: bool = False, keep_as: str | None = None
) -> None:
    """Replaces `path` by `content` in one step, or leaves it as it was and raises `ResourceError`.

    Args:
        path: its folder is made where it is missing.
        content: the whole file.
        read_back: compare what the disk kept with `content` before the older file goes.
        keep_as: the name that the older file takes, in the same folder; None: it goes.
    """
    beside = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if read_back:
            _compare(beside, content, path)
        if keep_as is not None:
            _keep(path, path.with_name(keep_as))
        beside.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:  # a second Ctrl-C too
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, len(content), error) from error
        raise


def _beside(path: Path) -> Path:
    """The unfinished file of this process; `remove_leftovers` finds it."""
    # File systems take names of 255 bytes: one that leaves no room for the addition is stood for by its digest.
    whole = os.fsencode(path.name)
    name = path.name if len(whole) <= _LONGEST_NAME else hashlib.sha256(whole).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}.tmp")


_LONGEST_NAME = 200


def _compare(written: Path, content: bytes | memoryview, path: Path) -> None:
    """Reads `written` back from the disk, 1 MiB at a time.

    Raises:
        ResourceError: it holds something else than `content`, which was meant for `path`.
    """
    with written.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # or the answer would come from memory, not from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        same = all(file.read(2**20) == bytes(content[at : at + 2**20]) for at in range(0, len(content), 2**20))
        same = same and not file.read(1)
    if not same:
        raise ResourceError(
            "the disk does not keep what is written: the new checkpoint reads back differently",
            where=path,
            expected=f"the {len(content)} bytes that were written",
            fix="check the disk, or choose another folder with hydra.run.dir=DIR; older checkpoints are untouched",
        )


def _keep(path: Path, kept: Path) -> None:
    """Makes `kept` the file that `path` is; `path` stays until it is replaced, so that it is never missing."""
    # A run killed between the two renames leaves both names on one file, and renaming a file to itself does nothing.
    if not path.exists() or (kept.exists() and kept.samefile(path)):
        return
    link = _beside(kept)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # FAT and some network shares know no links: the caller's rename follows at once
        path.replace(kept)
    else:
        link.replace(kept)


def remove_leftovers(folder: Path) -> None:
    """Deletes the half-written files of a killed run."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals the rename itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, needed: int, error: OSError) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        return ResourceError(
            f"disk full: the file needs {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free",
            where=path,
            fix="free some space or choose another folder with hydra.run.dir=DIR; older checkpoints are untouched",
        )
    return ResourceError(
        f"the file cannot be written: {error.strerror}",
        where=path,
        fix="choose another folder with hydra.run.dir=DIR",
    )

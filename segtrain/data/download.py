"""Published archives: downloaded with their checksum, unpacked without trust.

An archive is someone else's list of paths. Members that leave the folder, links and devices are refused
before the first byte is written, and nothing half-done stays behind: a download and an unpacked tree appear
whole or not at all.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import lzma
import os
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from segtrain.errors import DataError, ResourceError

MAX_FILES = 500_000
MAX_BYTES = 64 * 1024**3
_CHUNK = 1 << 20
_TIMEOUT = 60.0
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


def fetch(url: str, md5: str, folder: Path, *, filename: str) -> Path:
    """`folder/filename`, downloaded from `url` unless it is there already, with the checksum `md5`.

    Raises:
        DataError: the network fails, or the bytes are not the published ones.
        ResourceError: the disk is full.
    """
    path = folder / filename
    if path.exists():
        _verify(_md5(path), md5, path, f"remove {path} and run again")
        return path
    # Another process may be fetching the same file: each writes its own, and the last to finish names it.
    partial = folder / f".{filename}.{os.getpid()}.part"
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            digest = _download(url, partial, path, md5)
        _verify(digest, md5, url, f"run again, or put the right file at {path} by hand")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def extract(archive: Path, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Unpacks a tar (of any compression) or zip archive into `folder`; files of the same name are replaced.

    Raises:
        DataError: the archive is damaged, holds more than `max_files` members or `max_bytes` unpacked, or a
        member
            is a link, a device or a path outside `folder`.
        ResourceError: the disk is full.
    """
    with _writing(folder), _scratch(folder) as unpacked, _damaged(archive):
        unpack = _unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar
        unpack(archive, unpacked, _Limits(archive, max_files, max_bytes))
        for path in [path for path in unpacked.rglob("*") if path.is_file()]:
            goal = folder / path.relative_to(unpacked)
            goal.parent.mkdir(parents=True, exist_ok=True)
            path.replace(goal)


class _Limits:
    """What the members of an archive must keep to; `check` each one before any is unpacked."""

    def __init__(self, archive: Path, max_files: int, max_bytes: int) -> None:
        self.archive = archive
        self.max_files = max_files
        self.max_bytes = max_bytes
        self.files = 0
        self.bytes = 0

    def check(self, name: str, size: int, plain: bool) -> None:
        self.files += 1
        self.bytes += size
        if not plain:
            raise self._refused(f"'{name}' is a link or a device")
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(name).drive:
            raise self._refused(f"'{name}' would be written outside the folder")
        if self.files > self.max_files:
            raise self._refused(f"it holds more than {self.max_files:,} members")
        if self.bytes > self.max_bytes:
            raise self._refused(f"it unpacks to more than {self.max_bytes:,} bytes")

    def _refused(self, why: str) -> DataError:
        return DataError(
            f"archive refused: {why}",
            where=self.archive,
            expected="plain files and folders below the folder it is unpacked into",
            fix="remove the archive and get it from its publisher",
        )


def _unpack_tar(archive: Path, folder: Path, limits: _Limits) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            limits.check(member.name, member.size, member.isreg() or member.isdir())
        tar.extractall(folder, filter="data")


def _unpack_zip(archive: Path, folder: Path, limits: _Limits) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            limits.check(member.filename, member.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        bundle.extractall(folder)


def _download(url: str, partial: Path, path: Path, md5: str) -> str:
    """Writes what `url` sends to `partial`; returns its md5."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, partial.open("wb") as file:
            size = response.headers.get("Content-Length")
            # `disable=None`: no bar where nobody watches.
            bar = tqdm(total=size and int(size), unit="B", unit_scale=True, desc=path.name, disable=None)
            with bar:
                return _copy(lambda: response.read(_CHUNK), lambda chunk: bar.update(file.write(chunk)))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in _FULL:
            raise
        raise DataError(
            f"download failed: {error or type(error).__name__}",
            where=url,
            expected="a network that reaches it",
            fix=f"run again, or download it by hand to {path} (md5 {md5}) and keep data.download=true",
        ) from error


def _copy(read: Callable[[], bytes], write: Callable[[bytes], object]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := read():
        digest.update(chunk)
        write(chunk)
    return digest.hexdigest()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return _copy(lambda: file.read(_CHUNK), lambda chunk: None)


def _verify(found: str, expected: str, where: Path | str, fix: str) -> None:
    if found != expected:
        raise DataError(f"checksum does not match: md5 {found}", where=where, expected=f"md5 {expected}", fix=fix)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder on the same disk, gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as name:
        yield Path(name)


@contextmanager
def _damaged(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            f"archive is damaged: {error or type(error).__name__}",
            where=archive,
            fix="remove it and run again",
        ) from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise DataError(
            f"cannot write: {error.strerror}", where=folder, fix="set data.root to a folder you may write to"
        ) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceError(
            "disk is full", where=folder, fix="free some space, or set data.root to another disk"
        ) from error

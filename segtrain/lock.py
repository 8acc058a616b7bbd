"""One run per folder: a second one is refused by the name of the first, and a dead one's lock is taken over.

The lock on the file says whether the owner lives; its content only says who that is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from segtrain.errors import ConfigError, ResourceError
from segtrain.file_lock import take_if_free

NAME = "run.lock"

_held: set[int] = set()


def _leave_to_parent() -> None:
    """A forked data worker inherits the open file, and with it a lock that would outlive a killed run."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """While entered, `run.lock` in `folder` keeps other runs out; it is removed at the end.

    Args:
        folder: made where it is missing.
        command: what the owner runs, for whoever is refused.
        say: hears of a lock taken over, and of a file system without locks.

    Raises:
        ConfigError: on entering, where another process holds the lock.
        ResourceError: on entering, where the folder cannot be written.
    """

    def __init__(self, folder: Path, *, command: str, say: Callable[[str], None]) -> None:
        self.path = folder / NAME
        self.command = command
        self.say = say
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            handle = self._opened()
            while not self._locked(handle):  # the owner ended and took its file away before we had the lock
                os.close(handle)
                handle = self._opened()
        except OSError as error:
            raise ResourceError(
                f"the file cannot be written: {error.strerror}",
                where=self.path,
                fix="choose another folder with hydra.run.dir=DIR",
            ) from error
        self._handle = handle
        _held.add(handle)
        before = _owner(self.path)
        if before:
            self.say(f"note: took over the lock of process {before['pid']} on {before['host']}, which is gone")
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same; only its owner has no name
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, (json.dumps(self._me(), indent=2) + "\n").encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        if os.name != "nt":  # while it is still locked: nobody can take a lock on a file that is about to go
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        _held.discard(self._handle)
        if os.name == "nt":  # which removes no open file
            self.path.unlink(missing_ok=True)

    def _opened(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def _locked(self, handle: int) -> bool:
        """Whether the lock is ours; False: on a file that is not the folder's any more."""
        try:
            ours = take_if_free(handle)
        except OSError as error:
            self.say(f"warning: {self.path} cannot be locked ({error.strerror}): nothing keeps a second run out of it")
            return True
        if not ours:
            os.close(handle)
            raise self._taken()
        return _same(handle, self.path)

    def _me(self) -> dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": self.command,
        }

    def _taken(self) -> ConfigError:
        owner = _owner(self.path)
        who = (
            f"process {owner['pid']} on {owner['host']}, since {owner['since']}: {owner['command']}"
            if owner
            else "a process that has only just started"
        )
        return ConfigError(
            f"another run writes into this folder: {who}",
            where=self.path.parent,
            expected="one run per folder",
            fix="wait for its end, stop it, or choose another folder with hydra.run.dir=DIR",
        )


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(path: Path) -> dict[str, Any] | None:
    """Who wrote the lock file; None: nobody yet, or not all of it."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(owner, dict) and {"host", "pid", "since", "command"} <= owner.keys()
    return owner if complete else None

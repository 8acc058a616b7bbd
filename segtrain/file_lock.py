"""The system's own lock on an open file: one holder at a time, and it falls when its holder ends, however it ends."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    CAN_WAIT = False
    """Whether there are `wait_for` and `leave`."""

    def take_if_free(handle: int) -> bool:
        os.lseek(handle, 2**20, os.SEEK_SET)  # behind the content: Windows lets nobody read locked bytes
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

else:
    import fcntl

    CAN_WAIT = True
    """Whether there are `wait_for` and `leave`."""

    def take_if_free(handle: int) -> bool:
        """Locks an open file; False where another process has it locked.

        Raises:
            OSError: the file system has no locks.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for(handle: int) -> None:
        """Locks an open file, once no other process has it locked.

        Raises:
            OSError: the file system has no locks.
        """
        fcntl.flock(handle, fcntl.LOCK_EX)

    def leave(handle: int) -> None:
        """Lets go, which closing does not where a process forked meanwhile has the file open too."""
        fcntl.flock(handle, fcntl.LOCK_UN)

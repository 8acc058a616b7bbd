"""The processes that read and transform: quiet, one thread each, gone with the main process, missed when they die."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from types import FrameType, TracebackType
from typing import Any

import cv2
from torch.utils.data import DataLoader

from segtrain.errors import ResourceError, SegtrainError

CLOSING = multiprocessing.Event()
atexit.register(CLOSING.set)  # runs before multiprocessing's own hook, which ends the workers by SIGTERM


def quiet_worker(worker: int, closing: Event) -> None:
    """Workers leave signals to the main process and OpenCV's threads to the other workers.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; a worker that died of it would take the step down
    that the main process is about to finish and save.
    """

    def end_when_closing(number: int, frame: FrameType | None) -> None:
        if closing.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_when_closing)
    sys.excepthook = _say_unless_hung_up
    cv2.setNumThreads(0)


def _say_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's `sys.excepthook`, which the thread calls that hands the memory of batches to the main process.

    Where the main process hangs up in the middle of that, it is ending, and has said why itself.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def end_workers_with(owner: object, loader: DataLoader[Any]) -> None:
    """Lets go of `loader` after `owner`, even where a cycle of references holds `owner`.

    Collected together with it, pipes may be closed before the workers are told to end, and each is waited for.
    """
    weakref.finalize(owner, lambda kept: None, loader).atexit = False


def raising(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the loader gives.

    Raises:
        SegtrainError: of a sample, which comes as a value; or a worker died.
    """
    with dead_workers_reported():
        try:
            for item in loader:
                if isinstance(item, SegtrainError):
                    raise item
                yield item
        except (ConnectionError, EOFError) as error:
            # A batch's memory is fetched from its worker, and torch may not yet have seen that this one is dead.
            if not _has_dead_worker(loader):
                raise
            raise _death_of_a_worker("its connection broke off") from error


def _has_dead_worker(loader: DataLoader[Any]) -> bool:
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    # A dying process closes its connections a moment before its end can be seen.
    return bool(multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1.0))


@contextmanager
def dead_workers_reported() -> Iterator[None]:
    """Turns torch's error about a dead worker into ours.

    Torch raises it from a signal handler: wherever the main process happens to be, often far from its loader.

    Raises:
        ResourceError: a worker died, most likely for want of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # "Caught RuntimeError in DataLoader worker" is a bug
            raise
        raise _death_of_a_worker(str(error).splitlines()[0]) from error


def _death_of_a_worker(reason: str) -> ResourceError:
    return ResourceError(
        f"a data worker died: {reason}",
        expected="enough memory (and /dev/shm) for data.num_workers processes",
        fix="try data.num_workers=0 to see the cause, fewer workers, or a container with a larger --shm-size",
    )

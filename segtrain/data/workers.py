"""The processes that read and transform: quiet, one thread each, gone with the main process."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import weakref
from multiprocessing.synchronize import Event
from types import FrameType, TracebackType
from typing import Any

import cv2
from torch.utils.data import DataLoader

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

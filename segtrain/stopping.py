"""Stopping by signal: once means finish the step, save and say how to go on; a second later again means now."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0
"""Signals this soon after the first are the same request: torchrun passes on the Ctrl-C that its ranks had already."""


class StopSignal:
    """While entered, notes SIGINT and SIGTERM instead of dying of them; the old handlers come back afterwards."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._first = 0.0
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker inherits the handler; stopping is the main process's affair
            return
        if self.received is None:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            raise KeyboardInterrupt

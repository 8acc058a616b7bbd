"""A worker's death is told, and nothing else is taken for one."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from segtrain.data.workers import _say_unless_hung_up, dead_workers_reported, raising
from segtrain.errors import ResourceError


def test_a_workers_death_is_told_wherever_torch_raises_it() -> None:
    """Its signal handler interrupts the main process in the middle of anything."""
    with pytest.raises(ResourceError, match="killed by signal"), dead_workers_reported():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="in DataLoader worker"), dead_workers_reported():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")


def test_a_worker_says_nothing_of_a_main_process_that_hangs_up(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ConnectionResetError(104, "Connection reset by peer"), EOFError(), BrokenPipeError()):
        _say_unless_hung_up(type(error), error, None)
    assert capsys.readouterr().err == ""
    _say_unless_hung_up(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err


class Broken:
    """A loader whose worker's connection breaks off in the middle of a batch."""

    def __init__(self, *workers: multiprocessing.Process) -> None:
        self._iterator = SimpleNamespace(_workers=workers)

    def __iter__(self) -> Iterator[Any]:
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.skipif(os.name == "nt", reason="fork")
def test_a_connection_that_breaks_off_is_a_death_only_where_a_worker_is_dead() -> None:
    context: Any = multiprocessing.get_context("fork")
    dead, alive = context.Process(target=os._exit, args=(9,)), context.Process(target=time.sleep, args=(60,))
    dead.start()
    alive.start()
    try:
        with pytest.raises(ResourceError, match="a data worker died"):
            list(raising(Broken(alive, dead)))  # type: ignore[arg-type]
        with pytest.raises(ConnectionResetError):
            list(raising(Broken(alive)))  # type: ignore[arg-type]
    finally:
        alive.kill()

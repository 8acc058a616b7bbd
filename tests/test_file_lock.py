"""Whoever has a file locked keeps others out until the end, and the two kinds of system answer alike."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segtrain import file_lock


@pytest.fixture
def handles(tmp_path: Path) -> Any:
    """A file opened twice, as two processes have it."""
    opened = [os.open(tmp_path / "some.lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield opened
    for handle in opened:
        os.close(handle)


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_one_holder_at_a_time_until_it_lets_go(handles: list[int]) -> None:
    first, second = handles
    assert file_lock.take_if_free(first)
    assert not file_lock.take_if_free(second)
    file_lock.leave(first)
    file_lock.wait_for(second)
    assert not file_lock.take_if_free(first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_who_waits_gets_the_lock_when_the_holder_dies(tmp_path: Path, handles: list[int]) -> None:
    ready, locked = os.pipe()
    dies, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        file_lock.take_if_free(os.open(tmp_path / "some.lock", os.O_RDWR))
        os.write(locked, b"x")
        os.read(dies, 1)
        os._exit(1)
    os.read(ready, 1)
    assert not file_lock.take_if_free(handles[0])
    os.close(ends)
    file_lock.wait_for(handles[0])
    os.waitpid(child, 0)
    for end in (ready, locked, dies):
        os.close(end)


@pytest.mark.parametrize("refusal", [PermissionError(13, "Permission denied"), BlockingIOError(11, "busy"), None])
def test_on_windows_a_byte_behind_the_content_is_locked(
    handles: list[int], monkeypatch: pytest.MonkeyPatch, refusal: OSError | None
) -> None:
    places = []

    def locking(handle: int, mode: int, count: int) -> None:
        places.append((os.lseek(handle, 0, os.SEEK_CUR), mode, count))
        if refusal is not None:
            raise refusal

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    windows = runpy.run_path(file_lock.__file__)
    assert windows["take_if_free"](handles[0]) is (refusal is None)
    assert places == [(2**20, 2, 1)]
    assert windows["CAN_WAIT"] is False


def test_a_file_system_without_locks_is_an_error_of_the_system(
    handles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        file_lock.take_if_free(handles[0])

"""One run per folder: a second process is refused by the name of the first, a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from segtrain import lock
from segtrain.errors import ConfigError, ResourceError
from segtrain.lock import FolderLock
from segtrain.run_folder import RunFolder

ROOT = Path(__file__).parents[1]

OWNER = """
import os, sys, time
from pathlib import Path
from segtrain.lock import FolderLock
with FolderLock(Path(sys.argv[1]), command="the first", say=print):
    if "child" not in sys.argv:
        print("locked", flush=True)
    elif os.fork() == 0:  # as a data worker
        print("locked", flush=True)
        time.sleep(60)
    sys.stdin.readline()
"""


@contextmanager
def owner(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdin
    try:
        while "locked" not in process.stdout.readline():
            assert process.poll() is None
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        process.stdin.close()
        process.stdout.close()


def locked(folder: Path, said: list[str]) -> FolderLock:
    return FolderLock(folder, command="the second", say=said.append)


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with owner(tmp_path) as first:
        with pytest.raises(ConfigError) as caught, locked(tmp_path, []):
            pass
        assert caught.value.code == 2
        assert f"process {first.pid} on {socket.gethostname()}, since 2" in caught.value.found
        assert caught.value.found.endswith(": the first")
        assert caught.value.where == str(tmp_path)
        assert "hydra.run.dir=DIR" in str(caught.value.fix)
        first.communicate("end\n", timeout=60)
        assert list(tmp_path.iterdir()) == []
        said: list[str] = []
        with locked(tmp_path, said):
            mine = json.loads((tmp_path / "run.lock").read_text())
            assert (mine["pid"], mine["command"]) == (os.getpid(), "the second")
        assert said == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
@pytest.mark.parametrize("options", [(), ("child",)])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Also while a forked data worker of the dead one is still there, which inherited the open file."""
    with owner(tmp_path, *options) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.wait(60)
        said: list[str] = []
        with locked(tmp_path, said):
            pass
        assert said == [f"note: took over the lock of process {first.pid} on {socket.gethostname()}, which is gone"]


def test_what_is_in_a_lock_file_that_nobody_holds_does_not_matter(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[]", b'{"pid": 1}', b'{"pid": '):
        (tmp_path / "run.lock").write_bytes(content)
        said: list[str] = []
        with locked(tmp_path, said):
            assert json.loads((tmp_path / "run.lock").read_text())["command"] == "the second"
        assert said == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_a_lock_won_on_a_file_that_is_just_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first owner may end between our opening its file and our locking it."""
    real, tries = lock.take_if_free, []

    def removed_meanwhile(handle: int) -> bool:
        if not tries:
            (tmp_path / "run.lock").unlink()
        tries.append(handle)
        return real(handle)

    monkeypatch.setattr(lock, "take_if_free", removed_meanwhile)
    with locked(tmp_path, []):
        assert len(tries) == 2
        monkeypatch.undo()
        with pytest.raises(ConfigError, match="the second"), locked(tmp_path, []):
            pass


def test_a_file_system_without_locks_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock, "take_if_free", no_locks)  # none is at hand here
    said: list[str] = []
    with locked(tmp_path, said):
        pass
    (line,) = said
    assert "run.lock cannot be locked (No locks available)" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written") as caught, locked(tmp_path / "file" / "run", []):
        pass
    assert str(tmp_path / "file") in str(caught.value.where)


def test_of_several_ranks_the_first_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others neither lock nor are refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = RunFolder("train", tmp_path, [])
    monkeypatch.setenv("RANK", "1")
    with folder.held(print):
        assert list(tmp_path.iterdir()) == []
    with owner(tmp_path), folder.held(print):
        pass
    monkeypatch.setenv("RANK", "0")
    with folder.held(print):
        assert [file.name for file in tmp_path.iterdir()] == ["run.lock"]


@pytest.fixture
def refused(door: Any, tmp_path: Path, fast: list[str]) -> tuple[int, Any]:
    with owner(tmp_path / "run") as first:
        return first.pid, door(*fast, "hydra.run.dir=run")


def test_a_training_in_a_folder_in_use_exits_2_and_leaves_nothing_there(
    refused: tuple[int, Any], tmp_path: Path
) -> None:
    pid, done = refused
    assert done.code == 2
    assert f"another run writes into this folder: process {pid}" in done.err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.lock"]


def test_a_training_leaves_no_lock(door: Any, tmp_path: Path, fast: list[str]) -> None:
    assert door(*fast, "hydra.run.dir=run").code == 0
    assert not (tmp_path / "run" / "run.lock").exists()
    with owner(tmp_path / "run"):  # a finished run is only looked at
        done = door(*fast, "hydra.run.dir=run", "trainer.resume=auto")
    assert done.code == 0
    assert "is finished" in done.out

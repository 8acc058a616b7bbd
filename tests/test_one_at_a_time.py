"""A second evaluation or prediction into a folder in use is refused by the name of the first: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="named pipes")

SLOW = """
from pathlib import Path
from segtrain.data.shapes import Shapes

class Slow(Shapes):
    def load(self, record):
        Path("gate").open("rb").read()  # until somebody opens the pipe to write
        return super().load(record)
"""


@contextmanager
def first(cwd: Path, locks: list[Path], *argv: str, stdin: bytes = b"") -> Iterator[subprocess.Popen[bytes]]:
    """A process that has taken the locks and waits at the named pipe `gate`; it is let through at the end."""
    os.mkfifo(cwd / "gate")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "segtrain", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment,
    )
    assert process.stdin
    assert process.stderr
    try:
        process.stdin.write(stdin)
        process.stdin.close()
        until = time.monotonic() + 120
        while not all(lock.exists() and lock.read_bytes().endswith(b"}\n") for lock in locks):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()


def let_through(cwd: Path, process: subprocess.Popen[bytes]) -> int:
    with (cwd / "gate").open("wb") as gate:
        gate.write(b"x")
    return process.wait(120)


def test_a_second_evaluation_is_refused_and_the_first_is_not_disturbed(
    door: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowdata.py").write_text(SLOW)
    argv = ["evaluate", f"checkpoint={checkpoint}", "data.num_workers=0", "data.limit=1", "hydra.run.dir=run"]
    slow = ["data._target_=slowdata.Slow", "allow_targets=[slowdata]"]
    with first(tmp_path, [tmp_path / "run" / "run.lock"], *argv, *slow) as process:
        log = tmp_path / "run" / "evaluate.log"
        while not log.exists() or "\ndata " not in log.read_text():  # the last that it writes before it waits
            assert process.poll() is None
            time.sleep(0.02)
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        done = door(*argv)
        assert done.code == 2, done.err
        assert f"another run writes into this folder: process {process.pid} on " in done.err
        assert "segtrain evaluate" in done.err
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        assert let_through(tmp_path, process) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert not (tmp_path / "run" / "run.lock").exists()
    assert door(*argv).code == 0


def test_a_second_prediction_is_refused_whichever_folder_it_shares(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    argv = ["predict", f"checkpoint={checkpoint}", "data.num_workers=0"]
    taken = {"hydra.run.dir": "run", "output": "out"}
    locks = [tmp_path / folder / "run.lock" for folder in taken.values()]
    places = [f"{place}={folder}" for place, folder in taken.items()]
    with first(tmp_path, locks, *argv, *places, "input=-", stdin=b"gate\n") as process:
        for place, folder in taken.items():
            done = door(*argv, f"{place}={folder}", "input=photo.png")
            assert done.code == 2, done.err
            assert f"another run writes into this folder: process {process.pid} on " in done.err
            assert "segtrain predict" in done.err
            assert f"{place}=DIR" in done.err
        assert list(tmp_path.rglob("masks")) == []
        assert let_through(tmp_path, process) == 3  # the pipe holds no image
    assert door(*argv, *places, "input=photo.png").code == 0
    assert list(tmp_path.rglob("run.lock")) == []

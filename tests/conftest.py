"""The program itself, run whole or in this process, and one trained checkpoint that many tests share."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pages import CHROMIUM, Browser

# Before torch is imported: two test processes with a thread per core each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks the network for its newest version

ROOT = Path(__file__).resolve().parents[1]

FAST = (
    "debug=fast",
    "model.base_channels=4",
    "model.depth=2",
    "data.size=32",
    "data.crop_size=32",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.device=cpu",
)


@dataclass(frozen=True)
class Finished:
    """What a call of the program left behind."""

    code: int
    out: str
    err: str


Door = Callable[..., Finished]


@pytest.fixture(scope="session")
def fast() -> list[str]:
    """Three steps on eight small images, without TensorBoard."""
    return list(FAST)


@pytest.fixture(scope="session")
def program() -> Door:
    """`program("epoch=3", cwd=folder)` runs `python -m segtrain epoch=3` as its own process."""

    def call(*argv: str, cwd: Path, python: tuple[str, ...] = ("-m", "segtrain"), **environment: str) -> Finished:
        inherited = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PYTHONPATH")}
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        done = subprocess.run(
            [sys.executable, *python, *argv],
            cwd=cwd,
            env={**inherited, **settings},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def here() -> Door:
    """`here("epoch=3", cwd=folder)`: as `program`, in this process, for runs that many tests share."""
    from segtrain.__main__ import run

    def call(*argv: str, cwd: Path) -> Finished:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(argv))
        return Finished(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Door:
    """`door("epoch=3")` runs the same command line in this process, in tmp_path."""
    from segtrain.__main__ import run

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> Finished:
        capsys.readouterr()
        code = run(list(argv))
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@dataclass(frozen=True)
class Trained:
    """A finished training, run as its own process in an empty folder."""

    cwd: Path
    folder: Path
    done: Finished

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"


@pytest.fixture(scope="session")
def trained(program: Door, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three steps with TensorBoard, in the folder that the program chooses itself."""
    cwd = tmp_path_factory.mktemp("trained")
    done = program(*FAST, "trainer.tensorboard=true", "trainer.samples=1", cwd=cwd)
    assert done.code == 0, done.err
    folders = list(cwd.glob("outputs/train/*/*"))
    assert len(folders) == 1
    return Trained(cwd, folders[0], done)


@pytest.fixture(scope="session")
def checkpoint(trained: Trained) -> Path:
    """The `best.pt` of `trained`: a U-Net of 5 classes."""
    return trained.best


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A page in a real browser, where there is one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()

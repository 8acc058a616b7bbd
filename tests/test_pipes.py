"""A reader who leaves, or a stream that was never there, is no failure: no traceback, no other exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes as on POSIX")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HYDRA_FULL_ERROR": ""}


@pytest.fixture
def broken() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


CALLS = [("--help", 0), ("--version", 0), ("--cfg job", 0), ("evaluate checkpoint=nowhere.pt", 4), ("epoch=3", 2)]


@pytest.mark.parametrize(("argv", "code"), CALLS)
def test_nobody_reads_what_is_printed(tmp_path: Path, broken: int, argv: str, code: int) -> None:
    command = [sys.executable, "-m", "segtrain", *argv.split()]
    done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    assert done.stderr.startswith(b"error[") == (code > 0)


@pytest.mark.parametrize("argv", ["epoch=3", "--help"])
@pytest.mark.parametrize("traces", ["", "1"])
def test_nobody_reads_either_stream(tmp_path: Path, broken: int, argv: str, traces: str) -> None:
    command = [sys.executable, "-m", "segtrain", *argv.split()]
    environment = {**ENVIRONMENT, "HYDRA_FULL_ERROR": traces}
    done = subprocess.run(command, stdout=broken, stderr=broken, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == (0 if argv == "--help" else 2)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("argv", "code"), [("--help", 0), ("epoch=3", 2)])
def test_a_stream_that_was_closed_before_the_start(tmp_path: Path, closed: str, argv: str, code: int) -> None:
    line = f'exec "{sys.executable}" -m segtrain {argv} {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_a_run_goes_on_without_any_stream_and_none_of_its_files_takes_their_place(
    tmp_path: Path, fast: list[str]
) -> None:
    """A file that was opened as descriptor 2 would hold what libraries write to standard error."""
    noisy = (
        "import os, sys; from segtrain.__main__ import main; import segtrain.checkpoint as c; w = c.write_atomically\n"
    )
    noisy += "def save(*a, **k): os.write(2, b'stray'); w(*a, **k)\n"
    noisy += "c.write_atomically = save; sys.argv = ['segtrain', *sys.argv[1:]]; main()"
    words = " ".join([*fast, "hydra.run.dir=run"])
    line = f'exec "{sys.executable}" -c "$NOISY" {words} <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env={**ENVIRONMENT, "NOISY": noisy}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "run" / "metrics.json").is_file()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"stray" in path.read_bytes()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk as on Linux")
@pytest.mark.parametrize("argv", ["--help", "--cfg job"])
def test_a_full_disk_behind_standard_output_is_told(tmp_path: Path, argv: str) -> None:
    command = [sys.executable, "-m", "segtrain", *argv.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT, text=True, check=False
        )
    assert done.returncode == 6
    assert done.stderr.startswith("error[resources] standard output cannot be written: No space left")

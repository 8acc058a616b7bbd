"""The watch over long trainings sees what grows, and a short training under it holds no more at its end."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # its dataclass looks there for its own annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("key", "more", "told"),
    [
        ("memory", 0.1, ["memory by 7.0 MiB"]),
        ("memory", 0.001, []),
        ("workers", 0.1, ["workers by 7.0 MiB"]),
        ("files", 1, ["files by 70"]),
        ("threads", 1, ["threads by 70"]),
        ("children", 1, ["children by 70"]),
        ("seconds", 1, []),
    ],
)
def test_what_grows_is_named(soak: ModuleType, key: str, more: float, told: list[str]) -> None:
    still = soak.Reading(epoch=0, memory=300, workers=0, files=9, threads=3, children=0, seconds=0.1, saved=90)
    found = [replace(still, epoch=n, **{key: getattr(still, key) + more * n}) for n in range(0, 100, 5)]
    found = [replace(one, memory=500) if one.epoch == 30 and key != "memory" else one for one in found]  # one jump
    assert soak.growth(soak.steady(found, 100), allowed=4) == told


def test_what_a_process_holds_is_counted(soak: ModuleType, tmp_path: Path) -> None:
    """Forty megabytes, one file and one child more are seen as such."""
    code = """
import subprocess, sys
print(flush=True), sys.stdin.readline()
held, file = b"x" * 40_000_000, open(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(flush=True), sys.stdin.readline()
child.communicate(b"\\n")
"""
    (tmp_path / "last.pt").write_bytes(b"x" * 2048)
    command = [sys.executable, "-c", code, str(tmp_path / "last.pt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin
        assert process.stdout
        readings = []
        for _ in range(2):
            process.stdout.readline()
            readings.append(soak.reading(process.pid, 1, 0.5, tmp_path / "last.pt"))
            process.stdin.write("\n")
    before, after = readings
    assert after.memory - before.memory > 37
    assert (after.children, before.children) == (1, 0)
    assert after.files - before.files == 2  # the file, and the pipe to the child
    assert after.saved == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sixty_epochs_hold_no_more_at_their_end(workers: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--epochs",
        "60",
        "--workers",
        str(workers),
        "--folder",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing grows\n")
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 60

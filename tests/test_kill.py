"""Runs that are killed and signalled for real: some checkpoint is always whole, and the end is the same bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtrain import checkpoint

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, process groups and signals as on Linux")

STEPS = 4  # per epoch: 8 samples in steps of 2
RUN = [
    "model.base_channels=4",
    "model.depth=2",
    "model.dropout=0.2",
    "augment=strong",
    "data.size=32",
    "data.crop_size=32",
    "data.limit=8",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.ema=0.9",
    "trainer.log_every=1",
    "trainer.save_every=1",
    "trainer.samples=0",
    "trainer.tensorboard=false",
    "trainer.device=cpu",
    "trainer.resume=auto",
]

# Starts the program by fork, so that torch is imported once. `kill` waits for a checkpoint of the run's own and then a
# random time; `at` sends signals from inside a file operation on last.pt, to the process or to its whole group.
LAUNCHER = """
import json, os, random, signal, sys, time
from pathlib import Path
import segtrain.commands.train
from segtrain import checkpoint
from segtrain.__main__ import run

def strike(event, count, names, group):
    seen = 0
    def hook(name, args):
        nonlocal seen
        if name != event or ".last.pt." not in str(args[0]) or (name == "open" and "w" not in str(args[1])):
            return
        seen += 1
        if seen == count:
            for signal_name in names:
                (os.killpg if group else os.kill)(os.getpid(), getattr(signal, signal_name))
                time.sleep(1.2 if len(names) > 1 else 0)  # a second Ctrl-C sooner is an echo of the first
    sys.addaudithook(hook)

def launch(words, at=None):
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.dup2(os.open("out.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
    os.dup2(1, 2)
    code = 1
    try:
        if at:
            strike(*at)
        code = run(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

def written(folder):
    try:
        return os.stat(folder / "checkpoints" / "last.pt").st_mtime_ns
    except FileNotFoundError:
        return 0

def kill(words, folder, delay):
    before = written(folder)
    child = launch(words)
    while written(folder) == before:
        if os.waitpid(child, os.WNOHANG)[0]:
            return "ended before it saved: " + Path("out.txt").read_text()
        time.sleep(0.001)
    time.sleep(delay)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def found(folder):
    files = sorted((folder / "checkpoints").iterdir())
    steps = {file.name: checkpoint.load(file)["step"] for file in files if file.suffix == ".pt"}
    return {"steps": steps, "left": [file.name for file in files if file.suffix == ".tmp"]}

told = []
for folder, words, how in json.loads(sys.argv[1]):
    words, folder = [*words, f"hydra.run.dir={folder}"], Path(folder)
    if "kills" in how:
        delays = random.Random(how["kills"])
        for _ in range(how["kills"]):
            told.append({"code": kill(words, folder, delays.uniform(0, 0.3)), **found(folder)})
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(launch(words, how.get("at")), 0)[1])
        told.append({"code": code, "out": Path("out.txt").read_text(), **found(folder)})
print(json.dumps(told))
"""


def tell(cwd: Path, *runs: tuple[str, list[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each run left: its exit code, what it said, the step of each checkpoint (loaded), unfinished files."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, json.dumps(runs)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


CLOCKS = ("seconds", "images_per_second", "train_images_per_second", "data_wait_share", "versions", "sha256", "config")


def timeless(value: Any) -> Any:
    """The value without what a clock or another number of workers says."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def content(run: Path) -> dict[str, Any]:
    """All that must be the same in two runs, tensors by their digest."""
    files = {name: checkpoint.load(run / "checkpoints" / name) for name in ("last.pt", "best.pt")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    states = {
        f"{name} {key}": checkpoint.digest({key: timeless(value)})
        for name, state in files.items()
        for key, value in state.items()
        if key not in CLOCKS
    }
    return {**states, "lines": timeless(lines), "end": timeless(json.loads((run / "metrics.json").read_text()))}


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_end(tmp_path: Path, kills: int) -> None:
    words = [*RUN, f"trainer.epochs={3 * kills}"]
    *killed, end, alone = tell(
        tmp_path, ("killed", words, {"kills": kills}), ("killed", words, {}), ("alone", words, {})
    )
    assert [left["code"] for left in killed] == [9] * kills
    assert all(left["steps"]["last.pt"] >= number for number, left in enumerate(killed, 1))
    assert (end["code"], end["left"]) == (0, []), end["out"]
    assert "took over the lock of process" in end["out"]
    assert f"resumed  step {killed[-1]['steps']['last.pt']}, " in end["out"]
    assert alone["code"] == 0
    assert content(tmp_path / "killed") == content(tmp_path / "alone")


@pytest.fixture(scope="module")
def alone(here: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs that nothing interrupts, in this process."""
    cwd = tmp_path_factory.mktemp("alone")
    done = here(*RUN, "trainer.epochs=3", "hydra.run.dir=alone", cwd=cwd)
    assert done.code == 0, done.err
    return cwd / "alone"


def test_signals_during_a_save_leave_whole_files_and_the_same_end(tmp_path: Path, alone: Path) -> None:
    """`open`: nothing of the new file is written; `os.rename`: all of it is, under its unfinished name."""
    words = [*RUN, "trainer.epochs=3"]
    stops = [
        (["os.rename", 2, ["SIGTERM"], False], 143, 2, 0),
        (["open", 2, ["SIGKILL"], False], -9, 3, 0),
        (["os.rename", 2, ["SIGKILL"], False], -9, 4, 1),
        (["os.rename", 1, ["SIGINT", "SIGINT"], False], 130, 4, 0),
        (["os.rename", 4, ["SIGINT"], False], 130, 7, 0),  # the first of the four is the end of epoch 1
    ]
    *told, end = tell(tmp_path, *(("run", words, {"at": at}) for at, *_ in stops), ("run", words, {}))
    for left, (_, code, step, unfinished) in zip(told, stops, strict=True):
        assert left["code"] == code, left["out"]
        assert "Traceback" not in left["out"]
        assert left["steps"]["last.pt"] == step
        assert len(left["left"]) == unfinished
    assert (end["code"], end["left"]) == (0, []), end["out"]
    assert content(tmp_path / "run") == content(alone)


def test_with_workers_kills_and_signals_to_the_whole_group_leave_the_same_end(tmp_path: Path, alone: Path) -> None:
    words = [*RUN, "trainer.epochs=3", "data.num_workers=2"]
    stops = [(1, "SIGTERM", True, 143), (2, "SIGKILL", False, -9), (2, "SIGINT", True, 130), (3, "SIGKILL", True, -9)]
    plans = [{"at": ["os.rename", count, [name], group]} for count, name, group, _ in stops]
    *told, end = tell(tmp_path, *(("run", words, plan) for plan in plans), ("run", words, {}))
    for left, (*_, code) in zip(told, stops, strict=True):
        assert left["code"] == code, left["out"]
        assert "Traceback" not in left["out"]
    assert end["code"] == 0, end["out"]
    assert content(tmp_path / "run") == content(alone)

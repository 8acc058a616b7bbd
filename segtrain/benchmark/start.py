"""The topic `start`: how long the program takes to say something, and to make its first step."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segtrain.benchmark.bench import Bench
from segtrain.benchmark.measuring import Table, rows
from segtrain.errors import ResourceError
from segtrain.trainer import Trainer

FIRST_STEP = """
import sys
from segtrain.__main__ import run
from segtrain.benchmark.start import first_step
raise SystemExit(first_step(run, sys.argv[1:]))
"""
GOAL = 1.5
"""The first step may take this many times what the bare imports take."""


class StepMade(BaseException):
    """Leaves a run from within: no Exception, which the door would take for a fault."""


def first_step(door: Callable[[list[str]], int], argv: list[str]) -> int:
    """Opens the door until the first optimizer step is over, prints CPU seconds and the time; returns an exit code."""
    whole: Callable[..., None] = Trainer.train_step

    def once(trainer: Trainer, *arguments: Any) -> None:
        whole(trainer, *arguments)
        used = resource.getrusage(resource.RUSAGE_SELF)
        # The last line that this process writes.
        sys.stdout.write("\n" + json.dumps({"cpu": used.ru_utime + used.ru_stime, "at": time.time()}) + "\n")
        sys.stdout.flush()
        raise StepMade

    Trainer.train_step = once  # type: ignore[method-assign, assignment]
    try:
        return door(argv)
    except StepMade:
        return 0


def commands(device: str, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Each candidate's name and command line."""
    python = sys.executable
    return {
        "imports": ("import torch, albumentations", [python, "-c", "import torch, albumentations"]),
        "torch": ("import torch", [python, "-c", "import torch"]),
        "first_step": (
            "ours: python -m segtrain, to the end of its first step",
            [python, "-c", FIRST_STEP, f"trainer.device={device}", f"hydra.run.dir={folder / 'first'}"],
        ),
        "cfg": ("ours: python -m segtrain --cfg job", [python, "-m", "segtrain", "--cfg", "job"]),
        "help": ("ours: python -m segtrain --help", [python, "-m", "segtrain", "--help"]),
    }


def measure(bench: Bench) -> list[Table]:
    """One table of wall and CPU seconds; ratios are of CPU time, which a busy machine disturbs less."""
    device = str(bench.device().type)
    every = commands(device, bench.folder)
    wall: dict[str, list[float]] = {key: [] for key in every}
    cpu: dict[str, list[float]] = {key: [] for key in every}
    repeats = max(1, min(bench.repeats, 3) if bench.seconds is None else bench.repeats)
    bench.say(f"start: {len(every)} processes, {repeats + 1} times each, the first one not counted")
    for number in range(repeats + 1):  # the first brings the files into memory
        for key, (_, line) in every.items():
            seconds, used = _run(line, bench.folder)
            if number:
                wall[key].append(seconds)
                cpu[key].append(used)
    names = {key: name for key, (name, _) in every.items()}
    found = rows(cpu, names, base="imports", goals={"first_step": 1 / GOAL})
    for row in found:
        row.extra["wall s"] = sorted(wall[row.key])[len(wall[row.key]) // 2]
        row.extra["x imports"] = 1 / row.ratio
    title = "start, CPU time of one process; ratio: to the bare imports"
    notes = [
        f"goal: the first step within {GOAL} times the imports it cannot do without; the first step counts the main "
        "process, without its workers",
    ]
    return [Table("start", title, "start", found, notes)]


def _run(line: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a process, or those up to the moment that it reports itself.

    Raises:
        ResourceError: it failed.
    """
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, start = time.time(), time.perf_counter()
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise ResourceError(
            f"a process that was to be timed failed with exit code {done.returncode}",
            where=" ".join(line[:4]),
            expected=done.stderr.strip()[-1000:],
        )
    if FIRST_STEP in line:
        report = json.loads(done.stdout.splitlines()[-1])
        return float(report["at"]) - began, float(report["cpu"])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

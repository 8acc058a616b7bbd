"""Trains a tiny network for thousands of epochs and watches what the process holds: does anything grow?

    python scripts/soak.py [--epochs 2000] [--workers 0] [--allowed 12] [--folder DIR]

One epoch is one step, a validation, a picture and two checkpoints, with TensorBoard on. Memory that belongs
to no file (RssAnon), open files, threads and children are read from /proc, so on Linux alone. Exits 1 if
memory grows by more than `--allowed` MiB after the first tenth, or files, threads or children by any. A run keeps the
scores of every epoch, some 2 to 4 KiB each: that is meant to grow, and 2000 epochs make 7 MiB of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    *("model.base_channels=2", "model.depth=2", "data.size=32", "data.crop_size=32", "data.limit=2"),
    *("data.batch_size=2", "data.scan=2", "trainer.log_every=1", "trainer.samples=1", "trainer.tensorboard=true"),
    *("trainer.device=cpu", "trainer.ema=0.9"),
)
WARM = 0.1
"""Share of the epochs after which nothing may grow: until then caches fill."""


@dataclass(frozen=True)
class Reading:
    """What a training holds after `epoch` epochs.

    `memory`, `workers`: MiB of its own and of its children together; `seconds`: the mean of an epoch since the reading
    before; `saved`: KiB of last.pt.
    """

    epoch: int
    memory: float
    workers: float
    files: int
    threads: int
    children: int
    seconds: float
    saved: float


def own_memory(pid: int) -> float:
    """MiB that belong to no file; a forked worker's hold what it still shares with its parent."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def children_of(pid: int) -> list[int]:
    """Processes that it started and has not buried yet."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def reading(pid: int, epoch: int, seconds: float, last: Path) -> Reading:
    """What the process holds now.

    Raises:
        OSError: it has ended.
    """
    children = children_of(pid)
    return Reading(
        epoch=epoch,
        memory=own_memory(pid),
        workers=sum(own_memory(child) for child in children),
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        children=len(children),
        seconds=seconds,
        saved=last.stat().st_size / 1024,
    )


def watch(process: subprocess.Popen[bytes], folder: Path, epochs: int) -> list[Reading]:
    """A reading at every fortieth of the epochs, until the process ends."""
    step = max(1, epochs // 40)
    found: list[Reading] = []
    lines, done, at, since = folder / "metrics.jsonl", 0, 0, time.monotonic()
    offset = 0
    while process.poll() is None:
        time.sleep(0.01)
        if not lines.exists():
            continue
        with lines.open("rb") as file:
            file.seek(offset)
            more = file.read()
        offset, done = offset + len(more), done + more.count(b"\n")
        if done < at + step or done >= epochs:  # at the very end the workers go
            continue
        now = time.monotonic()
        try:
            found.append(reading(process.pid, done, (now - since) / (done - at), folder / "checkpoints" / "last.pt"))
        except OSError:  # it, or a worker, ended between two of the files
            continue
        at, since = done, now
    return found


def steady(found: list[Reading], epochs: int) -> list[Reading]:
    """Those after the warm-up."""
    return [one for one in found if one.epoch >= WARM * epochs]


def growth(found: list[Reading], allowed: float) -> list[str]:
    """What grew, in words; memory is compared by the median of the first and last quarter, as one reading jumps;
    files and the like by the fewest, as a reading may fall into a moment when a checkpoint is open.
    """
    quarter = max(1, len(found) // 4)
    first, last = found[:quarter], found[-quarter:]
    grown = []
    for name in ("memory", "workers"):
        more = median([getattr(one, name) for one in last]) - median([getattr(one, name) for one in first])
        if more > allowed:
            grown.append(f"{name} by {more:.1f} MiB")
    for name in ("files", "threads", "children"):
        more = min(getattr(one, name) for one in last) - min(getattr(one, name) for one in first)
        if more > 0:
            grown.append(f"{name} by {more}")
    return grown


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def table(found: list[Reading], epochs: int) -> list[str]:
    """The first reading, the first after the warm-up, the last, and what came in between the last two."""
    first, warm, last = found[0], steady(found, epochs)[0], found[-1]
    lines = [f"{'':<22}{'first':>10}{'warm':>10}{'last':>10}{'growth':>10}"]
    for name, label, digits in (
        ("epoch", "epoch", 0),
        ("memory", "memory, MiB", 1),
        ("workers", "memory of workers, MiB", 1),
        ("files", "open files", 0),
        ("threads", "threads", 0),
        ("children", "children", 0),
        ("seconds", "seconds per epoch", 4),
        ("saved", "last.pt, KiB", 1),
    ):
        values = [getattr(one, name) for one in (first, warm, last)]
        row = [*values, values[2] - values[1]]
        lines.append(f"{label:<22}" + "".join(f"{value:>10.{digits}f}" for value in row))
    return lines


def main() -> int:
    """Returns 0: nothing grows; 1: something does; else the training's own code."""
    parser = argparse.ArgumentParser(description="Does a long training hold ever more memory, files or threads?")
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=0, help="data.num_workers")
    parser.add_argument("--allowed", type=float, default=12.0, help="MiB that memory may grow by after the first tenth")
    parser.add_argument("--folder", type=Path, help="run folder to keep; without it a temporary one")
    options = parser.parse_args()
    if not Path("/proc/self/fd").is_dir():
        parser.error("reads /proc, which only Linux has")
    with tempfile.TemporaryDirectory(prefix="segtrain-soak-") as temporary:
        folder = (options.folder or Path(temporary) / "run").resolve()
        words = [*WORDS, f"trainer.epochs={options.epochs}", f"data.num_workers={options.workers}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "segtrain", *words, f"hydra.run.dir={folder}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=temporary,
            stdout=subprocess.DEVNULL,
        )
        try:
            found = watch(process, folder, options.epochs)
        finally:
            process.terminate()
            code = process.wait()
    if code:
        return code
    if not steady(found, options.epochs):
        parser.error(f"--epochs={options.epochs} are too few to see anything")
    print("\n".join(table(found, options.epochs)))
    grown = growth(steady(found, options.epochs), options.allowed)
    print(f"grows: {', '.join(grown)}" if grown else "nothing grows")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())

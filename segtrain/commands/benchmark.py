"""`python -m segtrain benchmark what=…`: data, training, evaluation, losses and start beside the usual ways."""

from __future__ import annotations

import importlib
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segtrain import checkpoint, experiment, signatures
from segtrain.benchmark.bench import Bench
from segtrain.benchmark.hardware import commit, machine, machine_line
from segtrain.benchmark.measuring import Table, content, flat, lines
from segtrain.checkpoint_content import refuse_misfitting_content
from segtrain.composition import compose
from segtrain.overlay import lay_over
from segtrain.run_folder import RunFolder
from segtrain.tracking import RunTracker, Stopwatch, clock, write_json
from segtrain.types import PositiveFloat, PositiveInt, Score

TOPICS = {
    "data": "segtrain.benchmark.data",
    "train": "segtrain.benchmark.train",
    "eval": "segtrain.benchmark.labels",
    "losses": "segtrain.benchmark.losses",
    "start": "segtrain.benchmark.start",
}
"""Each topic's module, whose `measure` gives its tables."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The command's own keys."""

    what: Literal["data", "train", "eval", "losses", "start", "all"] = "all"
    repeats: PositiveInt = 5
    seconds: PositiveFloat | None = None
    profile: Literal["voc", "cityscapes", "both"] = "both"
    checkpoint: str | None = None
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


def run(cfg: DictConfig, folder: RunFolder) -> Score:
    """Prints the tables, writes `benchmark.json` and `metrics.json`; nothing is scored."""
    plain: Any = OmegaConf.to_container(cfg)
    signatures.check(plain, BenchmarkOptions, "")
    options = BenchmarkOptions(**plain)
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    whole = _config(options)
    tree: Any = OmegaConf.to_container(whole, resolve=False)
    path = folder.choose(options.what)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="segtrain-benchmark-") as temporary:
        bench = Bench(
            tree=tree,
            repeats=options.repeats,
            seconds=options.seconds,
            profiles=("voc", "cityscapes") if options.profile == "both" else (options.profile,),
            say=lambda text: tracker.say(f"… {text}"),
            folder=Path(temporary),
        )
        device = bench.device()  # first: a wrong config ends here, before anything is written
        folder.describe(whole, experiment.versions(), str(device))
        tracker = RunTracker(path, log_name="benchmark.log")
        about = _about(device)
        for line in _introduction(about):
            tracker.say(line)
        tables: list[Table] = []
        for topic in TOPICS if options.what == "all" else (options.what,):
            found = importlib.import_module(TOPICS[topic]).measure(bench)
            tables += found
            for table in found:
                for line in lines(table):
                    tracker.say(line)
    tracker.say(f"\ntime {clock(watch.seconds())}")
    write_json(path / "benchmark.json", {**about, "tables": {table.key: content(table) for table in tables}})
    write_json(path / "metrics.json", flat(tables))
    tracker.say(f"metrics: {path / 'metrics.json'}")
    tracker.say(f"every repeat: {path / 'benchmark.json'}")
    return Score()


def _config(options: BenchmarkOptions) -> DictConfig:
    """The training config that is timed: the default one or a checkpoint's, with the command line's words over it."""
    base: Any = OmegaConf.to_container(compose([]), resolve=False)
    if options.checkpoint is not None:
        state = checkpoint.load(Path(options.checkpoint).expanduser())
        refuse_misfitting_content(state, Path(options.checkpoint))
        base = dict(state["config"])
        if "download" in base["data"]:
            base["data"] = {**base["data"], "download": False}  # what a file asks for is not fetched
        base["model"] = {**base["model"], "weights": "none"}  # how fast a network is does not depend on them
    base["allow_targets"] = options.allow_targets or []
    return lay_over(base, options.over or {}, options.choices or {})


def _about(device: Any) -> dict[str, Any]:
    """What every number of this run must be read with."""
    return {
        "machine": machine(device),
        "versions": experiment.versions(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "segtrain", *_words()]),
    }


def _words() -> list[str]:
    """The command line as it was typed, without the prefixes that `split_overrides` gives."""
    given = sys.argv[1:]
    return ["benchmark", *(word.removeprefix("++over.").removeprefix("++choices.") for word in given)]


def _introduction(about: dict[str, Any]) -> list[str]:
    versions = about["versions"]
    return [
        machine_line(about["machine"]),
        "   ".join(f"{name} {versions[name]}" for name in ("segtrain", "python", "torch", "torchvision", "numpy")),
        f"commit {about['commit'] or 'no commit'}",
        f"command {about['command']}",
        "All candidates of a table run in turns; ratios above 1 are faster. Spread: slowest over fastest repeat.",
    ]

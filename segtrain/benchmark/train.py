"""The topic `train`: what the loop adds to a bare one, how fast the configured model trains, how long it waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from segtrain.benchmark.bench import Bench
from segtrain.benchmark.hardware import matrix_rate
from segtrain.benchmark.loops import (
    ENDLESS,
    ReadyBatches,
    ReferenceLoop,
    Tiny,
    batch_size_of,
    by_hand,
    make_trainer,
    random_batches,
    refuse_untrainable,
    run_epoch,
)
from segtrain.benchmark.measuring import Row, Table, interleaved, mfu, rows, waiting_for
from segtrain.benchmark.memory import Job, peaks
from segtrain.data.loader import TrainLoader
from segtrain.errors import DataError
from segtrain.models.summary import measure as model_cost
from segtrain.overlay import lay_over
from segtrain.parts import make_dataset, make_model
from segtrain.settings import Settings
from segtrain.tracking import RunTracker, Stopwatch, Tracker
from segtrain.types import height_width

SMALL = {"crop_size": 64, "batch_size": 8, "num_workers": 0}
TINY = {"crop_size": 32, "batch_size": 2, "num_workers": 0}
OVERHEAD = 1.05
"""The trainer's step may take this many times a bare loop's."""


def measure(bench: Bench) -> list[Table]:
    """Three tables: the loop's overhead, the configured model, its waiting for data."""
    refuse_untrainable(make_model(bench.settings(), load=False)[0])  # at once, not after what is timed first
    return [overhead(bench), *configured(bench)]


def overhead(bench: Bench) -> Table:
    """The trainer's step beside the bare loop's, for a network of two convolutions and for a small U-Net."""
    device = bench.device()
    base: dict[str, Any] = {"device": bench.settings().options.device, "tensorboard": False}
    candidates: dict[str, Callable[[], object]] = {}
    steps = {"tiny": 50, "unet": 4}
    for name, data in (("tiny", TINY), ("unet", SMALL)):
        settings = bench.settings({**ENDLESS, "trainer": {**ENDLESS["trainer"], **base}, "data": data}, _default())
        loader = ReadyBatches(random_batches(settings, 8, device), steps[name])
        torch.manual_seed(0)
        twins = [_network(settings, name) for _ in range(2)]
        tracker = RunTracker(bench.folder / f"overhead_{name}")
        trainer = make_trainer(settings, loader, device, bench.folder, tracker, twins[0])
        task: Any = trainer.task
        layout = torch.channels_last if task.normalize.memory_format == torch.channels_last else torch.contiguous_format
        twins[1].to(device, memory_format=layout)  # type: ignore[call-overload]
        candidates[f"bare_{name}"] = by_hand(settings, loader, device, twins[1])
        candidates[f"trainer_{name}"] = partial(run_epoch, trainer)
    bench.say(f"train: overhead of the loop, {len(candidates)} candidates, {bench.repeats} repeats")
    times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(2.0), sync=waiting_for(device))
    times = {key: [value / steps[key.partition("_")[2]] for value in seconds] for key, seconds in times.items()}
    names = {
        "bare_tiny": "bare loop, two convolutions, 2 images of 32x32",
        "trainer_tiny": "ours: Trainer",
        "bare_unet": "bare loop, U-Net, 8 images of 64x64",
        "trainer_unet": "ours: Trainer",
    }
    goals = {key: 1 / OVERHEAD for key in times if key.startswith("trainer")}
    found = rows(times, names, base={key: f"bare_{key.partition('_')[2]}" for key in times}, goals=goals)
    for row in found:
        row.goal = None if row.goal is None else round(row.goal, 3)
        row.extra["added %"] = 100 * (1 / row.ratio - 1)
    title = "train, overhead of the loop on batches that lie ready; ratio: to a bare loop of the same parts"
    return Table("train_overhead", title, "step", found, [f"goal: at most {100 * OVERHEAD - 100:.0f} % added"])


def _default() -> dict[str, str]:
    """The parts of the overhead's runs: the same whatever the config names."""
    return {
        "data": "shapes",
        "model": "unet_small",
        "loss": "ce",
        "optimizer": "sgd",
        "scheduler": "poly",
        "augment": "none",
        "trainer": "default",
    }


def _network(settings: Settings, name: str) -> torch.nn.Module:
    return Tiny(settings.rider["data"].num_classes) if name == "tiny" else make_model(settings, load=False)[0]


def configured(bench: Bench) -> list[Table]:
    """The configured model at its crop: this package's step and the references' loop, MFU and memory; then waiting."""
    device = bench.device()
    settings = bench.settings(ENDLESS)
    size = batch_size_of(settings)
    height, width = height_width(settings.augment["crop_size"])
    cost = model_cost(make_model(settings, load=False)[0], (height, width), settings.node["data"].get("channels", 3))
    candidates = {key: step_of(key, settings, device) for key in ("references", "ours")}
    bench.say(f"train: {settings.name} at {height}x{width}, batch {size}, {bench.repeats} repeats")
    times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(3.0), sync=waiting_for(device))
    names = {
        "references": "torchvision's references: float32 batches, NCHW, eager, loss read at every step",
        "ours": f"ours: {settings.name}" + (", compiled" if settings.options.compile else ""),
    }
    found = rows(times, names, base="references", items=size)
    del candidates  # their memory is not to be counted below
    bench.say("train: matrix rate and peak memory")
    precision = bench.precision()
    peak = matrix_rate(device, precision)
    tree = bench.tree
    jobs: dict[str, Job] = {key: (prepare, (key, tree, str(device))) for key in times}
    memory = peaks(jobs, device)
    for row in found:
        row.extra["peak MiB"] = memory[row.key]
        if cost.gmacs is not None:
            row.extra["MFU %"] = 100 * mfu(2e9 * cost.gmacs, 1 / row.median, peak)
    kind = "float32" if precision is None else str(precision).removeprefix("torch.")
    notes = [
        f"matrix rate {peak / 1e12:.2f} TFLOP/s in {kind}; {cost}; MFU = 3 x forward FLOPs x images/s / matrix rate",
        "peak MiB: weights, gradients, optimizer and one step",
    ]
    table = Table(
        "train_model",
        f"train, {settings.name} at {height}x{width}, batch {size}, {kind}; ratio: to the loop of the references",
        "image",
        found,
        notes,
    )
    return [table, *waiting(bench, settings, device)]


def step_of(key: str, settings: Settings, device: torch.device) -> Callable[[], object]:
    """A function that makes one step of `ours` or of the `references`."""
    torch.manual_seed(0)
    batches = random_batches(settings, 2, device)
    if key == "references":
        return ReferenceLoop(settings, batches, device).step
    trainer = make_trainer(settings, ReadyBatches(batches, 1), device, Path(), Tracker())
    trainer.start_training()
    return lambda: run_epoch(trainer)


def prepare(key: str, tree: dict[str, Any], device: str) -> Callable[[], object]:
    """One step for a process that measures its memory, which thereby has the network's weights in it too.

    A tiny step comes first: the pages of the libraries that it loads are not the step's memory.
    """
    settings, where = Settings(lay_over(tree, ENDLESS, {})), torch.device(device)
    model = Tiny(2).to(where)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(
        model(torch.zeros(1, 3, 8, 8, device=where))["out"], torch.zeros(1, 8, 8).long().to(where)
    ).backward()
    optimizer.step()
    return lambda: step_of(key, settings, where)()


def waiting(bench: Bench, settings: Settings, device: torch.device) -> list[Table]:
    """The share of a short real run that the step waits for data; none where the data are not there."""
    try:
        dataset = make_dataset(settings, "train")
    except DataError as error:
        bench.say(f"train: the wait for data is not measured: {error.found}")
        return []
    data = settings.rider["data"]
    loader = TrainLoader(
        dataset,
        batch_size=batch_size_of(settings),
        num_workers=data.num_workers,
        seed=settings.options.seed,
        pin_memory=device.type == "cuda",
    )
    trainer = make_trainer(settings, loader, device, bench.folder, Tracker())
    bench.say(f"train: a short run with {data.num_workers} workers")
    run_epoch(trainer)  # workers start, caches fill, algorithms are chosen
    seconds: list[float] = []
    waited, steps = 0.0, 0
    watch, limit = Stopwatch(), bench.budget(3.0)
    while len(seconds) < bench.repeats and (not seconds or watch.seconds() < 4 * limit):
        run_epoch(trainer)
        seconds.append(trainer.progress.training_seconds / (trainer.progress.steps * loader.samples_per_step))
        waited += trainer.progress.waited
        steps += trainer.progress.steps
    total = sum(seconds) * steps / len(seconds) * loader.samples_per_step
    row = Row("run", f"ours: {settings.name}, {steps} steps", seconds, extra={"wait %": 100 * waited / total})
    title = f"train, a run on {type(dataset).__name__} with {data.num_workers} workers, data included"
    return [Table("train_run", title, "image", [row], ["wait %: time in which the step waits for its batch"])]

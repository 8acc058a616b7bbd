"""The topic `data`: samples per second of one core, and of the loader with its workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, default_collate

from segtrain.benchmark.bench import Bench
from segtrain.benchmark.measuring import Row, Table, interleaved, rows
from segtrain.benchmark.naive_data import NaiveDataset, OpenCvFiles, Read
from segtrain.benchmark.samples import PROFILES, write_folder
from segtrain.data.caching.cache import open_cache
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.labels import voc_palette
from segtrain.data.loader import TrainLoader
from segtrain.parts import make_dataset, make_task
from segtrain.settings import Settings
from segtrain.tracking import Tracker
from segtrain.types import Batch, height_width

FILES = {"voc": 8, "cityscapes": 4}
EPOCH = {"voc": 64, "cityscapes": 24}
"""Samples of the epochs that the whole loader is timed with."""
CACHED_GOAL = {"voc": 10.0, "cityscapes": 25.0}
UNCACHED_GOAL = 1.9
BATCH = 8
STAGES = ("load_seconds", "augment_seconds")
"""What a batch knows of the time that its samples took."""


@dataclass(frozen=True)
class Source:
    """A dataset to be timed.

    Args:
        key, title: of its tables.
        settings: a config whose data, augmentation and model these are.
        count: samples that are read, the dataset's first ones.
        epoch: samples of an epoch of the loader.
        read: how the naive pipeline reads a sample; None: as this package does.
    """

    key: str
    title: str
    settings: Settings
    count: int
    epoch: int
    read: Read | None

    def dataset(self) -> SegmentationDataset:
        """The training split: its first `count` records, again and again, `epoch` of them."""
        found: Any = make_dataset(self.settings, "train")
        first = found.records[: self.count]
        found.records = list(itertools.islice(itertools.cycle(first), max(self.epoch, len(first))))
        return found

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of a sample."""
        return height_width(self.settings.augment["crop_size"])


def measure(bench: Bench) -> list[Table]:
    """Two tables for each source: one core, and the loader."""
    return [table for source in sources(bench) for table in (one_core(bench, source), whole_loader(bench, source))]


def sources(bench: Bench) -> Iterator[Source]:
    """Generated files of each profile where the config's data are generated shapes; else the config's own data."""
    settings = bench.settings()
    if settings.node["data"]["_target_"] != "segtrain.data.shapes.Shapes":
        count = min(8, len(make_dataset(settings, "train")))
        name = settings.node["data"]["_target_"].rsplit(".", 1)[-1]
        yield Source("own", f"{name}, its first {count} images", settings, count, max(64, count), None)
        return
    for key in bench.profiles:
        yield generated(bench, key)


def generated(bench: Bench, key: str) -> Source:
    """Files like those of a profile, in the benchmark's folder."""
    profile, root = PROFILES[key], bench.folder / key
    bench.say(f"data: writing {FILES[key]} files: {profile.name}")
    pairs = write_folder(root, profile, FILES[key])
    size = sum(image.stat().st_size for image, _ in pairs) / len(pairs)
    data = {
        "root": str(root),
        "classes": [f"class {number}" for number in range(profile.classes)],
        "palette": voc_palette(profile.classes),
        "crop_size": profile.crop,
        "num_workers": bench.settings().rider["data"].num_workers,
    }
    settings = bench.settings({"data": data}, {"data": "folder", "augment": "basic"})
    title = f"{profile.name} of {size / 1e3:.0f} KB"
    read = OpenCvFiles([(str(image), str(mask)) for image, mask in pairs])
    return Source(key, title, settings, len(pairs), EPOCH[key], read)


def one_core(bench: Bench, source: Source) -> Table:
    """Samples as the workers make them, in this process on one thread."""
    loaders = {"none": loader_of(source.dataset(), 0)}
    for kind in ("disk", "ram"):
        loaders[kind] = loader_of(cached(bench, source, kind), 0)
    naive = naive_dataset(source)
    task = _task(source.settings)
    epochs = itertools.count()
    candidates: dict[str, Callable[[], object]] = {
        "naive": lambda: [naive[index] for index in range(source.count)],
        "ours": partial(_pass, loaders["none"], source.count, epochs),
        "ours_float": partial(_pass, loaders["none"], source.count, epochs, task),
        "ours_disk": partial(_pass, loaders["disk"], source.count, epochs),
        "ours_disk_float": partial(_pass, loaders["disk"], source.count, epochs, task),
        "ours_ram": partial(_pass, loaders["ram"], source.count, epochs),
    }
    names = {
        "naive": "albumentations, usual order: scale all, pad, crop, flip, jitter, normalize; float32 out",
        "ours": "ours: uint8 out, labels checked; color and normalization left to the device",
        "ours_float": "ours, color and normalization on this core too: the same work as the first row",
        "ours_disk": "ours, data.cache=disk",
        "ours_disk_float": "ours, data.cache=disk, color and normalization on this core too",
        "ours_ram": "ours, data.cache=ram",
    }
    bench.say(f"data: {source.title}, one core, {len(candidates)} candidates, {bench.repeats} repeats")
    with one_thread():
        times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(2.0))
    cached_goal = CACHED_GOAL.get(source.key)
    goals = {"ours": UNCACHED_GOAL} if source.key == "voc" else {}
    goals |= {} if cached_goal is None else {"ours_disk": cached_goal, "ours_ram": cached_goal}
    found = rows(times, names, base="naive", items=source.count, goals=goals)
    title = f"data, {source.title}, crop {source.crop[0]}x{source.crop[1]}, one core; decoding included"
    notes = [_profile(loaders["none"], source.count)]
    return Table(f"data_{source.key}", title, "image", found, notes)


def _profile(loader: TrainLoader, count: int) -> str:
    """What a sample's time goes to, by the loader's own watches."""
    with one_thread():
        found: list[Batch] = [loader.loader.collate_fn([loader.loader.dataset[(0, n)]]) for n in range(count)]  # type: ignore[misc]
    read, transform = (1e3 * sum(getattr(one, name) for one in found) / count for name in STAGES)
    return f"ours without a cache, per image: {read:.2f} ms to read and decode, {transform:.2f} ms to transform"


def whole_loader(bench: Bench, source: Source) -> Table:
    """Epochs of the loader with its workers, and what it costs to make a batch of samples that are there."""
    workers = source.settings.rider["data"].num_workers
    naive = naive_dataset(source, repeat=max(1, source.epoch // source.count))
    theirs = DataLoader(
        naive, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    ours = {
        "loader_ours": loader_of(source.dataset(), workers),
        "loader_disk": loader_of(cached(bench, source, "disk"), workers),
    }
    epochs = itertools.count()
    candidates: dict[str, Callable[[], object]] = {"loader_naive": lambda: [len(batch[0]) for batch in theirs]}
    for key, loader in ours.items():
        candidates[key] = partial(_epoch, loader, epochs)
    bench.say(f"data: {source.title}, DataLoader with {workers} workers")
    times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(2.0))
    names = {
        "loader_naive": f"DataLoader with {workers} workers: usual order, float32 and int64 batches",
        "loader_ours": f"ours: TrainLoader with {workers} workers",
        "loader_disk": f"ours: TrainLoader with {workers} workers, data.cache=disk",
    }
    found = rows(times, names, base="loader_naive", items=len(theirs) * BATCH)
    found += _collating(bench, naive, ours["loader_disk"])
    return Table(f"data_{source.key}_loader", f"data, {source.title}: the whole loader", "image", found)


def _collating(bench: Bench, naive: NaiveDataset, loader: TrainLoader) -> list[Row]:
    """The two ways to make one batch of samples that lie ready."""
    collate: Any = loader.loader.collate_fn
    their_samples = [naive[index % len(naive)] for index in range(BATCH)]
    our_samples = [loader.loader.dataset[(0, index)] for index in range(BATCH)]
    candidates: dict[str, Callable[[], object]] = {
        "collate_naive": lambda: default_collate(their_samples),
        "collate_ours": lambda: collate(our_samples),
    }
    with one_thread():
        times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(0.5))
    names = {
        "collate_naive": f"one batch of {BATCH}: torch's collate, float32 and int64",
        "collate_ours": f"ours: one batch of {BATCH}, uint8",
    }
    return rows(times, names, base="collate_naive", items=BATCH)


def loader_of(dataset: SegmentationDataset, workers: int) -> TrainLoader:
    """A loader of whole epochs in batches of eight."""
    return TrainLoader(dataset, batch_size=BATCH, num_workers=workers)


def cached(bench: Bench, source: Source, kind: str) -> SegmentationDataset:
    """The source's dataset, its decoded samples kept on disk or in memory."""
    dataset = source.dataset()
    bench.say(f"data: {source.title}, building the {kind} cache")
    cache = open_cache(
        dataset,
        kind=kind,  # type: ignore[arg-type]
        folder=Path(bench.folder / "cache"),
        settings=source.settings.node["data"],
        say=lambda text: None,
        bar=lambda total, name: Tracker().bar(total, name),
        threads=2,
    )
    cache.attach(dataset)
    return dataset


def naive_dataset(source: Source, repeat: int = 1) -> NaiveDataset:
    """The usual pipeline on the same files."""
    read = source.read or _Decoded(source.dataset())
    return NaiveDataset(read, source.count, source.crop, repeat)


class _Decoded:
    """Reads samples as this package does, for datasets whose files only it knows."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> Any:
        return self.dataset.load(self.dataset.records[index])


def _pass(loader: TrainLoader, count: int, epochs: Iterator[int], task: Any = None) -> None:
    """Makes the first `count` samples of a new epoch just as a worker does; with `task`, the network's input too."""
    epoch = next(epochs)
    for index in range(count):
        sample = loader.loader.dataset[(epoch, index)]
        if task is not None:
            batch: Batch = loader.loader.collate_fn([sample])  # type: ignore[misc]
            task.normalize(batch.image, batch.color)


def _epoch(loader: TrainLoader, epochs: Iterator[int]) -> int:
    return sum(len(batch) for step in loader.steps(next(epochs)) for batch in step)


def _task(settings: Settings) -> Any:
    classes, palette = settings.node["data"]["classes"], settings.node["data"].get("palette")
    return make_task(settings, None, classes, palette or voc_palette(len(classes)), settings.make("inference"))


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV and torch on one thread, as in a worker."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])

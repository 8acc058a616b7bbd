"""What a training shows while it runs: curves, a row per epoch, the same samples as pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from segtrain.advice import Waiting
from segtrain.data.images import ImageDataset
from segtrain.data.loader import TrainLoader
from segtrain.device import usable_cores
from segtrain.tasks.base import Task
from segtrain.tracking import Stopwatch, Tracker, clock, percent


class Progress:
    """Clocks one epoch after the other and tells the tracker.

    Args:
        tracker: says and writes.
        device: whose memory is watched.
        loader: what the batches come from.
        task: what is learned.
    """

    def __init__(self, tracker: Tracker, device: torch.device, loader: TrainLoader, task: Task) -> None:
        self.tracker = tracker
        self.task = task
        self.device = device
        self.loader = loader
        self.header_said = False
        self.advised = False
        self.started = False  # whether the workers have delivered, which they first have to be started for
        self.start_epoch()

    def start_epoch(self) -> None:
        """Sets the clocks to zero."""
        self.watch = Stopwatch()
        self.waited = self.starting = self.load_seconds = self.augment_seconds = 0.0
        self.steps = self.images = 0
        self.training_seconds = math.nan

    def stop_training(self) -> None:
        """The epoch's training is over: what follows does not count into images per second."""
        self.training_seconds = self.watch.seconds()

    def received(self, batches: list[Any], waited: float) -> None:
        """A step's batches came, after `waited` seconds."""
        self.steps += 1
        if self.started:
            self.waited += waited
        else:
            self.started, self.starting = True, waited
        for batch in batches:
            self.images += len(batch)
            self.load_seconds += batch.load_seconds
            self.augment_seconds += batch.augment_seconds

    def waiting(self) -> Waiting:
        """Where the time of this epoch's training went."""
        return Waiting(
            images=self.images,
            seconds=self.training_seconds - self.starting,
            waited=self.waited,
            load=self.load_seconds,
            augment=self.augment_seconds,
            workers=self.loader.num_workers,
            cores=usable_cores(),
            cached=self.loader.cached,
            shared=self.device.type == "cpu",
        )

    def speed(self, seconds: float) -> float:
        """Training images per second, over all ranks."""
        return self.steps * self.loader.samples_per_step / max(1e-9, seconds)

    def curves(self, step: int, losses: dict[str, float], groups: list[dict[str, Any]], left_out: int) -> None:
        """Points of the training curves; `left_out`: updates that an fp16 loss scaler left out since the last ones."""
        seconds = self.watch.seconds()
        values = {f"train/{name}": value for name, value in losses.items()}
        values |= {f"lr/{group.get('name', 'all')}": group["lr"] for group in groups}
        values["time/images_per_second"] = self.speed(seconds)
        values["time/data_wait_share"] = self.waited / max(1e-9, seconds)
        if left_out:
            values["train/updates_left_out"] = left_out
        if self.device.type == "cuda":
            values["gpu/memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.tracker.scalars(step, values)

    def row(self, record: dict[str, Any], total_steps: int, better: bool) -> None:
        """The epoch's line on the console."""
        if not self.header_said:
            self.header_said = True
            named = "  ".join(f"{name:>5}" for name in self.task.columns)
            self.tracker.say(f"epoch    train loss  val loss  {named}        lr  img/s  wait   time    eta")
        scores, epoch = record["val"], record["epoch"]
        left = math.ceil((total_steps - record["step"]) / self.loader.steps_per_epoch)
        loss = "-" if math.isnan(scores["loss"]) else f"{scores['loss']:.4f}"
        columns = self.task.columns.items()
        named = "  ".join(f"{percent(scores.get(score)):>{max(5, len(name))}}" for name, score in columns)
        self.tracker.say(
            f"{epoch:>4}/{epoch + left:<4} {record['train'].get('loss', math.nan):>9.4f} {loss:>9}  "
            f"{named}  {record['lr']:>8.2e}  {record['train_images_per_second']:>5.0f}  "
            f"{record['data_wait_share']:>4.0%}  "
            f"{clock(record['seconds']):>5}  {clock(record['seconds'] * left):>5}{'  * best' if better else ''}"
        )
        self._advise()
        for line in self.task.table(scores):
            self.tracker.note(line)

    def _advise(self) -> None:
        advice = self.waiting().advice()
        # Said each epoch it would be noise.
        if advice is not None and not self.advised:
            self.advised = True
            self.tracker.say(advice)

    def pictures(
        self,
        step: int,
        count: int,
        model: nn.Module,
        dataset: ImageDataset[Any],
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Input, truth and prediction of the first `count` validation samples."""
        if not self.tracker.draws:
            return
        model.eval()
        for index in range(min(count, len(dataset))):
            image, target, _ = dataset[index]
            with torch.inference_mode(), precision():
                picture = self.task.panel(model, image, target, self.device)
            self.tracker.picture(step, f"sample_{index}", picture)

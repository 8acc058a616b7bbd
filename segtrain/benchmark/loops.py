"""Training loops side by side: this package's `Trainer`, one written by hand, and one as torchvision's references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.benchmark.samples import label_map
from segtrain.data.labels import voc_palette
from segtrain.device import amp_dtype, memory_format
from segtrain.errors import ConfigError
from segtrain.parts import make_model, make_optimizer, make_task
from segtrain.settings import Settings
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer
from segtrain.types import IGNORE_INDEX, Batch, Record, height_width

MANY = 10**6
"""Steps of a run that does not end while it is measured, so that no schedule does either."""
ENDLESS = {"trainer": {"epochs": MANY, "max_steps": None, "early_stop": None, "resume": None, "accumulate": 1}}


class Tiny(nn.Module):
    """Two convolutions: a network so small that the loop around it is what takes the time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> `{"out": logits (B, classes, H, W)}`."""
        return {"out": self.layers(image)}


class ReadyBatches:
    """Stands in for a loader: a few batches made beforehand, again and again, `steps_per_epoch` per epoch."""

    def __init__(self, batches: list[Batch], steps_per_epoch: int) -> None:
        self.batches = batches
        self.steps_per_epoch = steps_per_epoch
        self.samples_per_step = len(batches[0])
        self.accumulate = 1
        self.batch_size = len(batches[0])

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """The batches of an epoch's steps, one per step."""
        for number in range(first, self.steps_per_epoch):
            yield [self.batches[number % len(self.batches)]]


def batch_size_of(settings: Settings) -> int:
    """Images per batch; where the GPU's memory decides, those that a step shall have."""
    data = settings.rider["data"]
    return data.batch_size if isinstance(data.batch_size, int) else int(data.effective_batch)


def random_batches(settings: Settings, count: int, device: torch.device) -> list[Batch]:
    """Batches as the loader hands them over, of the config's crop, batch size and classes; pinned for a GPU."""
    height, width = height_width(settings.augment["crop_size"])
    channels, classes = settings.node["data"].get("channels", 3), settings.rider["data"].num_classes
    size, rng = batch_size_of(settings), np.random.default_rng(0)
    found = []
    for _ in range(count):
        images = rng.integers(0, 256, (size, height, width, channels), dtype=np.uint8)
        targets = np.stack([label_map(rng, (width, height), classes) for _ in range(size)])
        records = [Record(str(index)) for index in range(size)]
        batch = Batch(torch.from_numpy(images), torch.from_numpy(targets), torch.arange(size), records)
        found.append(batch.pin_memory() if device.type == "cuda" else batch)
    return found


def refuse_untrainable(model: nn.Module) -> None:
    """Raises a ConfigError where the model has nothing to train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"{type(model).__name__} learns nothing: there is no training to time",
            where="model._target_",
            expected="a network with weights",
            fix="choose another model, or measure something else, as what=data",
        )


def make_trainer(
    settings: Settings,
    loader: Any,
    device: torch.device,
    folder: Path,
    tracker: Tracker,
    model: nn.Module | None = None,
) -> Trainer:
    """A trainer on `loader` as the config says, with random weights; class weights, which need data, are left out."""
    network = make_model(settings, load=False)[0] if model is None else model
    layout = memory_format(settings.options.channels_last, device)
    network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    classes = settings.node["data"]["classes"]
    palette = settings.node["data"].get("palette") or voc_palette(len(classes))
    task = make_task(settings, None, classes, palette, settings.make("inference"))
    optimizer, scheduler = make_optimizer(settings, network, MANY)
    return Trainer(
        model=network,
        task=task.to(device, layout),
        optimizer=optimizer,
        scheduler=scheduler,
        train_loader=loader,
        val_loader=loader,
        options=settings.options,
        device=device,
        amp_dtype=amp_dtype(settings.options.amp, device),
        tracker=tracker,
        folder=folder,
        about={},
        freeze_bn=settings.rider["model"].freeze_bn,
    )


def run_epoch(trainer: Trainer) -> None:
    """One epoch of training steps without the validation and checkpoint that follow it."""
    trainer.train_epoch()
    trainer.course.epoch += 1
    trainer.course.epoch_start = trainer.course.samples_seen


def by_hand(settings: Settings, loader: ReadyBatches, device: torch.device, model: nn.Module) -> Callable[[], None]:
    """The shortest loop that makes the trainer's steps: same batches, normalization, loss, optimizer, schedule.

    Nothing is logged, checked, saved or watched, and the loss is never read.
    """
    trainer = make_trainer(settings, loader, device, Path(), Tracker(), model)
    optimizer, scheduler = trainer.optimizer, trainer.scheduler
    task: Any = trainer.task  # the semantic one, whose parts are called one by one here

    def epoch() -> None:
        model.train()
        for (batch,) in loader.steps(0):
            batch = batch.to(device)
            with trainer.precision():
                outputs = dict(model(task.normalize(batch.image, batch.color)))
                loss = task.loss(outputs, batch.target.long())["loss"]
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


class ReferenceLoop:
    """The loop of torchvision's segmentation references, as people write it: float batches, NCHW, a read per step.

    The loader there has already made float32 images and int64 targets, so they lie ready here. Cross-entropy, and
    half of it on an auxiliary head; AMP with a gradient scaler; a polynomial schedule; the loss read at every step.
    """

    def __init__(self, settings: Settings, batches: list[Batch], device: torch.device) -> None:
        self.device = device
        self.model = make_model(settings, load=False)[0].to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, total_iters=MANY, power=0.9)
        self.dtype = amp_dtype(settings.options.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.batches = [(b.image.permute(0, 3, 1, 2).float().div(127.5) - 1, b.target.long()) for b in batches]
        self.batches = [(image.contiguous(), target) for image, target in self.batches]
        self.seen = 0.0
        self.steps = 0

    def step(self) -> None:
        """One optimizer step on the next batch."""
        image, target = (part.to(self.device) for part in self.batches[self.steps % len(self.batches)])
        self.steps += 1
        self.model.train()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.model(image)
            losses = {n: F.cross_entropy(x, target, ignore_index=IGNORE_INDEX) for n, x in outputs.items()}
            loss = losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.seen += loss.item()

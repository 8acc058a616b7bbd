"""A few timed steps before the first: what a run will take, and how many images fit into the memory at once.

Nothing of it stays: gradients are dropped, BatchNorm's statistics and all random generators are put back.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segtrain import distributed
from segtrain.device import any_size
from segtrain.errors import ResourceError
from segtrain.rng import restore_rng, rng_state
from segtrain.tracking import Stopwatch, clock
from segtrain.trainer import Trainer
from segtrain.types import Batch

SAMPLES = 4
"""Training samples that are read; a batch repeats them."""
LONG = 10.0
"""Seconds of a first step after which no second one is made: it tells enough."""
WARM = 2
"""Images of a first pass on a CPU: what batch normalization needs at least."""
CHECKPOINTS = 3
"""Files that a run keeps: last, previous, best."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take, by its first steps.

    Args:
        step_seconds: of one optimizer step, data included.
        validation_seconds: of one validation.
        total_seconds: of all that is left of the run.
        memory: peak in bytes, of the device if it is a GPU, else of this process; validation included.
        checkpoint: bytes of one checkpoint.
    """

    step_seconds: float
    validation_seconds: float
    total_seconds: float
    memory: int
    checkpoint: int

    def __str__(self) -> str:
        return (
            f"forecast {clock(self.total_seconds)}: {_short(self.step_seconds)} a step, validation "
            f"{_short(self.validation_seconds)}   memory {_size(self.memory)}   "
            f"disk {_size(CHECKPOINTS * self.checkpoint)} ({CHECKPOINTS} checkpoints)"
        )


def rehearse(trainer: Trainer, *, auto: bool) -> Forecast:
    """Times what a run is made of; with `auto`, or where memory runs out, finds into how many pieces a batch is cut.

    Raises:
        ResourceError: not even the smallest piece of a batch fits, a validation image does not, or the disk has no room
            for the checkpoints.
    """
    trainer.phase = "trying a step"
    batch, sample_seconds = trainer.train_loader.trial(SAMPLES)
    with trainer.memory_reported(), _put_back(trainer):
        step = _step_seconds(trainer, batch)
        trainer.phase = "validating"
        image = _validation_seconds(trainer)
    if auto:
        size = -(-trainer.train_loader.batch_size // trainer.micro.count)
        trainer.tracker.say(f"batch    {size} of {trainer.train_loader.batch_size} images at a time")
    forecast = _forecast(trainer, step, image, sample_seconds)
    _refuse_small_disk(trainer, forecast)
    trainer.phase = "starting"
    return forecast


@contextmanager
def _put_back(trainer: Trainer) -> Iterator[None]:
    """Afterwards the model and the random generators are as before, and the device's memory is free."""
    state = rng_state(trainer.device)
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    training = trainer.model.training
    try:
        yield
    finally:
        trainer.gradients.forget()
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(buffers[name])
        trainer.model.train(training)
        restore_rng(state, trainer.device)


def _step_seconds(trainer: Trainer, batch: Batch) -> float:
    """Seconds of the forward and backward passes of one optimizer step."""
    # Ranks that try different sizes must not wait for each other's gradients.
    network = trainer.gradients.network if distributed.world_size() == 1 else trainer.model
    batches = [batch.to(trainer.device)]
    trainer.start_training()
    # What the optimizer will add at its first step must fit beside a step, too.
    missing = _momenta_bytes(trainer) - _stored(trainer.optimizer.state_dict()["state"])
    reserved = torch.empty(
        max(0, missing) if trainer.device.type == "cuda" else 0, dtype=torch.uint8, device=trainer.device
    )

    def gradients(pieces: list[Batch]) -> dict[str, Tensor]:
        return trainer.gradients.add(pieces, network)

    seconds = 0.0
    for attempt in (_first_attempt(trainer, batches), batches):
        watch = Stopwatch()
        trainer.micro.run(attempt, gradients, trainer.gradients.forget, alone=True)
        _wait(trainer.device)
        seconds = watch.seconds()
        if trainer.compiling:
            trainer.compiled_in(seconds)
        elif attempt is batches and seconds > LONG:
            break
    del reserved
    trainer.micro.agree()
    return seconds * trainer.train_loader.accumulate


def _first_attempt(trainer: Trainer, batches: list[Batch]) -> list[Batch]:
    """What is tried before the step whose time counts: the batch; on a CPU two or three images of it.

    There a first pass starts threads and loads code, which is much the same for any batch. A GPU chooses algorithms
    and a compiler makes code for one size.
    """
    if trainer.device.type != "cpu" or trainer.compiling or len(batches[0]) <= WARM:
        return batches
    return [batches[0].parts(len(batches[0]) // WARM)[0]]


def _validation_seconds(trainer: Trainer) -> float:
    """Seconds to read and judge one validation image."""
    model = trainer.ema.evaluated(trainer.model)
    training = model.training
    model.eval()
    seconds = 0.0
    for _ in range(2 if trainer.device.type == "cuda" else 1):  # a GPU first loads its kernels
        watch = Stopwatch()
        batch = trainer.val_loader.first()
        with torch.inference_mode(), any_size(), trainer.precision():
            trainer.meter().update(model, batch.to(trainer.device))
        _wait(trainer.device)
        seconds = watch.seconds()
    model.train(training)
    return seconds


def _forecast(trainer: Trainer, step: float, image: float, sample: float) -> Forecast:
    loader = trainer.train_loader
    reading = sample * loader.batch_size * loader.accumulate
    step = step + reading if loader.num_workers == 0 else max(step, reading / loader.num_workers)
    validation = image * trainer.val_loader.images
    steps = trainer.course.steps_left()
    epochs = -(-steps // loader.steps_per_epoch)
    return Forecast(
        step_seconds=step,
        validation_seconds=validation,
        total_seconds=steps * step + epochs * validation,
        memory=_peak(trainer),
        checkpoint=_checkpoint_bytes(trainer),
    )


def _peak(trainer: Trainer) -> int:
    """Peak memory in bytes; on a GPU with what the optimizer will add at its first step, which was reserved."""
    if trainer.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(trainer.device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _momenta_bytes(trainer: Trainer) -> int:
    """What the optimizer keeps beside the weights, once it has stepped."""
    defaults = trainer.optimizer.defaults
    copies = 2 if "betas" in defaults else bool(defaults.get("momentum")) + ("alpha" in defaults)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    return int(copies) * weights


def _checkpoint_bytes(trainer: Trainer) -> int:
    model = _stored(trainer.model.state_dict())
    return model + _stored(trainer.ema.state() or {}) + _momenta_bytes(trainer)


def _stored(state: Any) -> int:
    """Bytes of the tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(_stored(part) for part in parts)


def _refuse_small_disk(trainer: Trainer, forecast: Forecast) -> None:
    if not distributed.is_main():
        return
    folder = next(path for path in (trainer.checkpoints, *trainer.checkpoints.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    # A new file is written before an old one goes. What a resumed run has there already is overwritten.
    there = sum(file.stat().st_size for file in trainer.checkpoints.glob("*.pt"))
    needed = (CHECKPOINTS + 1) * forecast.checkpoint - there
    if needed > free:
        raise ResourceError(
            f"disk too full: the run's checkpoints need {_size(needed)}, {_size(free)} are free",
            where=trainer.checkpoints,
            expected=f"room for {CHECKPOINTS} checkpoints of {_size(forecast.checkpoint)} and a new one beside them",
            fix="free some space or choose another folder with hydra.run.dir=DIR",
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

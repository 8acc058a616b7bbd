"""The training loop. It knows protocols: no dataset, model, loss or task by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segtrain import checkpoint, distributed
from segtrain.course import Course
from segtrain.data.loader import EvalLoader, TrainLoader
from segtrain.data.workers import dead_workers_reported
from segtrain.device import autocast
from segtrain.ema import Ema, NoEma
from segtrain.errors import CheckpointError, Interrupted, ResourceError
from segtrain.evaluator import evaluate
from segtrain.finite import FiniteGuard, ScalerGuard
from segtrain.gradients import Gradients
from segtrain.loss_sums import LossSums
from segtrain.memory import is_out_of_memory
from segtrain.micro_batches import MicroBatches, smallest_batch
from segtrain.models.layers import freeze_batchnorm
from segtrain.optim.optimizers import load_optimizer
from segtrain.optim.schedules import load_scheduler
from segtrain.profiling import NoProfiler, Profiler
from segtrain.progress import Progress
from segtrain.rng import restore_rng, rng_state
from segtrain.stopping import StopSignal
from segtrain.tasks.base import Meter, Task
from segtrain.tracking import Stopwatch, Tracker
from segtrain.trainer_options import TrainerOptions
from segtrain.types import Batch

AGREE = 10
"""Steps after which several ranks ask each other whether to stop, at the latest."""


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens now; 0 = never."""
    return every > 0 and step % every == 0


class Trainer:
    """Trains `model` on `task`; `fit()` returns the scores of the best epoch.

    Args:
        model: on its device; the weights that are saved.
        task: losses and scores (see `tasks/`).
        optimizer, scheduler: stepped once per optimizer step.
        train_loader, val_loader: batches by step, and every validation image once.
        options: the keys of `trainer/*.yaml`.
        device, amp_dtype: where and, None for float32, in which precision.
        tracker: says what happens.
        folder: run folder; `checkpoints/` is made in it.
        about: what every checkpoint carries beside the state: config, task, classes, palette, label_map, normalize,
            versions.
        resume_hint: how to continue this run, shown when it is interrupted.
        freeze_bn: keep BatchNorm statistics and affine parameters as loaded.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        train_loader: TrainLoader,
        val_loader: EvalLoader,
        options: TrainerOptions,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        tracker: Tracker,
        folder: Path,
        about: dict[str, Any],
        resume_hint: str = "",
        freeze_bn: bool = False,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.options = options
        self.device = device
        self.precision = partial(autocast, device, amp_dtype)
        self.tracker = tracker
        self.checkpoints = folder / "checkpoints"
        self.about = about
        self.resume_hint = resume_hint
        self.freeze_bn = freeze_bn
        if freeze_bn:  # before DDP looks which parameters will have gradients
            freeze_batchnorm(model)
        self.ema: Ema | NoEma = NoEma() if options.ema is None else Ema(model, options.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
        self.stop = StopSignal()
        self.ranks = distributed.world_size()
        monitor = options.monitor or next(iter(task.monitors))
        self.course = Course(
            total_steps=options.total_steps(train_loader.steps_per_epoch),
            samples_per_step=train_loader.samples_per_step,
            monitor=monitor,
            higher_is_better=task.monitors[monitor],
            early_stop=options.early_stop,
        )
        self.gradients = Gradients(
            network=self._wrapped(),
            task=task,
            optimizer=optimizer,
            scaler=self.scaler,
            precision=self.precision,
            grad_clip=options.grad_clip,
        )
        self.micro = MicroBatches(smallest=smallest_batch(model, freeze_bn), say=tracker.say)
        self.guard = FiniteGuard(
            device,
            on_nonfinite=options.on_nonfinite,
            keep=options.log_every,
            say=tracker.say,
            lr=self.lr,
        )
        self.sums = LossSums()
        self.scaler_guard = ScalerGuard(self.scaler, lr=self.lr)
        self.progress = Progress(tracker, device, train_loader, task)
        trace = folder / "profile" / "trace.json"
        self.profiler = Profiler(trace, device, tracker.say) if options.profile else NoProfiler()
        self.compiling = options.compile
        self.phase = "starting"

    def fit(self) -> dict[str, Any]:
        """Trains until `epochs` or `max_steps` are done, or early stopping says so.

        Raises:
            Interrupted: by SIGINT or SIGTERM, after the state was saved.
            NonFiniteError: the loss or a gradient became NaN or infinite; nothing of it is saved.
            ResourceError: memory or disk ran out, or a data worker died.
        """
        with self.memory_reported(), self.stop, dead_workers_reported(), self.profiler:
            while not self.course.done():
                self.train_epoch()
                self.finish_epoch()
        assert self.course.best is not None
        return self.course.best

    def train_epoch(self) -> None:
        """The rest of the current epoch, from wherever the run stands in it."""
        self.phase = "training"
        self.progress.start_epoch()
        course = self.course
        first = course.step_in_epoch()
        bar = self.tracker.bar(self.train_loader.steps_per_epoch, f"epoch {course.epoch + 1}")
        bar.update(first)
        self.start_training()
        watch = Stopwatch()
        for batches in islice(self.train_loader.steps(course.epoch, first), course.steps_left()):
            self.progress.received(batches, waited=watch.lap())
            self.train_step(batches)
            if self.compiling:
                self.compiled_in(watch.lap())
            course.stepped()
            bar.update(1)
            self.profiler.step()
            if due(course.step, self.options.log_every):
                self.log()
            if due(course.step, self.options.save_every):
                self.save("last.pt")
            self.stop_if_asked()
            watch.lap()
        self.progress.stop_training()
        bar.close()

    def start_training(self) -> None:
        """Puts the network into training mode, frozen normalizations excepted."""
        self.gradients.network.train()
        if self.freeze_bn:
            freeze_batchnorm(self.model)

    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer update from `accumulate` batches, as if they and the other ranks' were one batch."""
        batches = [batch.to(self.device) for batch in batches]
        self.guard.remember(self.model)
        losses = self.micro.run(batches, self.gradients.add, self.gradients.forget)
        fault = self.gradients.finish()
        if self.guard.admits(self.model, self.course.step + 1, batches, losses["loss"], fault):
            self.scaler.step(self.optimizer)
            self.ema.update()
            self.sums.add(losses, unlabelled=float(all(batch.unlabelled for batch in batches)))
        self.scaler.update()
        self.scheduler.step()
        self.gradients.forget()

    def compiled_in(self, seconds: float) -> None:
        """Says once what the first pass through a compiled network took."""
        self.compiling = False
        self.tracker.say(f"compile  the first step took {seconds:.1f} s; those after it do not compile")

    def log(self) -> None:
        """Points of the training curves; the only place between two saves where a GPU is waited for."""
        self.guard.check()
        left_out = self.scaler_guard.check(self.course.step)
        self.progress.curves(self.course.step, self.sums.take("window"), self.optimizer.param_groups, left_out)

    def lr(self) -> float:
        """The learning rate now, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextmanager
    def memory_reported(self) -> Iterator[None]:
        """Where memory runs out in it, the error says what was being done, and with how much at once."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            pieces = f", each in {self.micro.count} pieces" if self.micro.count > 1 else ""
            raise ResourceError(
                f"memory of {self.device} ran out while {self.phase} (step {self.course.step}, batches of "
                f"{self.train_loader.batch_size}{pieces})",
                expected=str(error).splitlines()[0],
                fix="inference=slide or a smaller inference.size for validation, or trainer.val_loss=false"
                if self.phase == "validating"
                else "a smaller data.batch_size or data.crop_size, trainer.amp=bf16, or a smaller network",
            ) from error

    def finish_epoch(self) -> None:
        """Validates, keeps the best, saves, and writes the epoch down."""
        self.phase = "validating"
        self.guard.check()
        scores = self.validate()
        course = self.course
        record = {
            "epoch": course.epoch + 1,
            "step": course.step,
            "train": self.sums.take("epoch"),
            "val": scores,
            "lr": self.lr(),
            "train_images_per_second": self.progress.speed(self.progress.training_seconds),
            "data_wait_share": self.progress.waiting().share,
            "seconds": self.progress.watch.seconds(),
        }
        better = course.end_epoch(record)
        self.save("last.pt", *(["best.pt"] if better else []))
        self.progress.row(record, course.total_steps, better)
        self.tracker.epoch(record, self.task.per_class)
        model, dataset = self.ema.evaluated(self.model), self.val_loader.dataset
        self.progress.pictures(course.step, self.options.samples, model, dataset, self.precision)

    def validate(self) -> dict[str, Any]:
        """Scores of the model, or of its average, on the validation split."""
        for network in (self.model, self.ema.evaluated(self.model)):
            distributed.copy_buffers(network)
        bar = self.tracker.bar(self.val_loader.images, "validation")

        def after_batch(images: int) -> None:
            bar.update(images)
            if self.ranks == 1:  # ranks must not leave one another alone in a validation
                self.stop_if_asked()

        scores = evaluate(
            self.ema.evaluated(self.model),
            self.val_loader,
            self.task,
            self.device,
            precision=self.precision,
            meter=self.meter(),
            after_batch=after_batch,
        )
        bar.close()
        return scores

    def meter(self) -> Meter:
        """A task's counts for one validation, with losses as the options say."""
        return self.task.meter() if self.options.val_loss else self.task.meter(losses=False)

    def stop_if_asked(self) -> None:
        """Saves and raises `Interrupted` if a signal came; several ranks agree every few steps: asking takes time."""
        asked = self.stop.received is not None
        if self.ranks > 1:
            every = min(self.options.log_every, AGREE)
            asked = due(self.course.step, every) and distributed.any_(asked, self.device)
        if not asked:
            return
        number = self.stop.received or 15
        self.tracker.say("stopping after this step (Ctrl-C again to stop now)")
        self.save("last.pt")
        raise Interrupted(
            f"stopped by signal {number}; saved step {self.course.step} (epoch {self.course.epoch + 1})",
            signal=number,
            fix=self.resume_hint,
        )

    def save(self, *names: str) -> None:
        """Writes the whole state to `checkpoints/<name>` for each name; every rank takes part, the first one writes."""
        self.guard.check()
        self.guard.check_state(self.model, self.optimizer)
        self.tracker.flush()  # a resumed run draws no point from before its checkpoint again
        state = {**self.about, **self.state(), "rng": distributed.gather(rng_state(self.device))}
        if distributed.is_main():
            first, *more = (self.checkpoints / name for name in names)
            checkpoint.save(first, state, *more)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs beside its config, the random numbers' state excepted."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self.course.state(),
            "sums": self.sums.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state`, a loaded checkpoint, was written.

        Raises:
            CheckpointError: the state is of another network or optimizer.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.ema.restore(state["ema"], self.model)
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the state does not fit this run: {str(error).splitlines()[-1].strip()}",
                expected="the network and optimizer that it was saved from",
                fix="resume with the same model and optimizer, or start a new run with model.weights=PATH",
            ) from error
        if state["scaler"]:  # empty where the checkpoint was written without one, as on another device
            self.scaler.load_state_dict(state["scaler"])
        self.scaler_guard.restart(state["step"])
        self.course.restore(state, self.tracker.say)
        load_scheduler(self.scheduler, state["scheduler"], self.course.step)
        self.sums.restore(state["sums"])
        if len(state["rng"]) == distributed.world_size():
            restore_rng(state["rng"][distributed.rank()], self.device)
        else:
            self.tracker.say(
                f"note: the checkpoint was written by {len(state['rng'])} processes, now there are "
                f"{distributed.world_size()}: sample order goes on, dropout is not exact"
            )
        self.tracker.rewind(self.course.history)

    def _wrapped(self) -> nn.Module:
        """The model as it is called: compiled and spread over ranks as the options say."""
        network: nn.Module = self.model
        if distributed.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        return torch.compile(network) if self.options.compile else network  # type: ignore[return-value]

"""Where a run stands: what is done, what is left, and which epoch was the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Course:
    """Counts the steps and epochs of a run, and keeps their scores.

    Args:
        total_steps: optimizer steps of the whole run.
        samples_per_step: images of one step, over all ranks.
        monitor: the score that tells which epoch is the best.
        higher_is_better: which way it does.
        early_stop: epochs without a better one after which the run ends; None: never.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        samples_per_step: int,
        monitor: str,
        higher_is_better: bool,
        early_stop: int | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.samples_per_step = samples_per_step
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.early_stop = early_stop
        self.step = 0  # optimizer steps made
        self.epoch = 0  # epochs completed, validation included
        self.samples_seen = 0
        self.epoch_start = 0  # samples seen when the current epoch began
        self.validated = False  # whether the model as it is has been
        self.history: list[dict[str, Any]] = []  # one record per epoch
        self.best: dict[str, Any] | None = None  # scores of the best epoch, and which it is

    def stepped(self) -> None:
        """One optimizer step was made."""
        self.step += 1
        self.samples_seen += self.samples_per_step
        self.validated = False

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Closes an epoch with what is written down of it, its scores under `val`; whether it is the best so far."""
        self.epoch += 1
        self.epoch_start, self.validated = self.samples_seen, True
        scores = record["val"]
        better = self.is_better(scores)
        if better:
            self.best = {**scores, "epoch": self.epoch, "step": self.step}
        self.history.append({**record, "val": {k: v for k, v in scores.items() if k != "confusion"}})
        return better

    def is_better(self, scores: dict[str, Any]) -> bool:
        """Whether these scores beat the best so far by the monitored one; the first epoch always does."""
        if self.best is None or math.isnan(self.best[self.monitor]):
            return True
        gain = scores[self.monitor] - self.best[self.monitor]
        return gain > 0 if self.higher_is_better else gain < 0

    def steps_left(self) -> int:
        """Optimizer steps that are not made yet."""
        return max(0, self.total_steps - self.step)

    def step_in_epoch(self) -> int:
        """Steps of the current epoch that are done, counted in samples so that another number of ranks resumes too."""
        return (self.samples_seen - self.epoch_start) // self.samples_per_step

    def done(self) -> bool:
        """Whether there is nothing left to train or, after an interruption, to validate."""
        if not self.validated or self.best is None:
            return False
        stale = self.early_stop is not None and self.epoch - self.best["epoch"] >= self.early_stop
        return stale or self.step >= self.total_steps

    def summary(self) -> dict[str, Any]:
        """For `metrics.json`: the scores of the best epoch, and beside them those of the last."""
        assert self.best is not None
        last = self.history[-1]
        speed = [record["train_images_per_second"] for record in self.history]
        return {
            **self.best,
            "monitor": self.monitor,
            "epochs": self.epoch,
            "steps": self.step,
            "train_images_per_second": sum(speed) / len(speed),
            "seconds": sum(record["seconds"] for record in self.history),
            "last": last["val"],
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "samples_seen": self.samples_seen,
            "epoch_start": self.epoch_start,
            "samples_per_step": self.samples_per_step,
            "best": self.best,
            "scores": self.history,
        }

    def restore(self, state: dict[str, Any], say: Callable[[str], None]) -> None:
        """Goes on from `state()`, maybe with another number of images per step, which is then said."""
        self.epoch, self.best, self.history = state["epoch"], state["best"], list(state["scores"])
        self.validated = bool(self.history) and self.history[-1]["step"] == state["step"]
        self.samples_seen, self.epoch_start = state["samples_seen"], state["epoch_start"]
        self.step = self._counted_anew(state["step"], state["samples_per_step"], say)

    def _counted_anew(self, step: int, samples_per_step: int, say: Callable[[str], None]) -> int:
        """The step to go on from where a step has another number of images than it had: as many images are done."""
        now = self.samples_per_step
        if now == samples_per_step:
            return step
        anew = round(step * samples_per_step / now)
        say(
            f"note: a step has {now} images, in the checkpoint it had {samples_per_step}: "
            f"step {step} counts as {anew}; the run goes on, but is not the run it would have been"
        )
        return anew

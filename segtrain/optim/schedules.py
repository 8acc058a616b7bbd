"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch.optim.lr_scheduler import LambdaLR

from segtrain.errors import ConfigError
from segtrain.types import Fraction, NonNegativeInt, PositiveFloat, PositiveInt


class Schedule:
    """The learning rate's factor at each step: a pure function of the step, so that a resume needs no state.

    The factor rises in a line over the first `warmup_steps` and follows `shape` over the steps that remain.
    It lies in [0, 1], and is above 0 at every step that trains if `warmup_start` is.

    Args:
        warmup_steps: length of the rise.
        warmup_start: share of the first full factor at step 0; 0.001 is Detectron2's.
    """

    def __init__(self, *, warmup_steps: NonNegativeInt = 0, warmup_start: Fraction = 0.001) -> None:
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start

    def shape(self, step: int, total_steps: int) -> float:
        """The factor without warm-up; step in [0, total_steps]."""
        raise NotImplementedError(f"{type(self).__name__} must say how the learning rate falls")

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rate is multiplied by for the step after `step` completed ones.

        0 is the first step, `total_steps - 1` the last; later steps have the factor at `total_steps`.

        Raises:
            ConfigError: the warm-up takes all steps.
        """
        if self.warmup_steps >= total_steps:
            raise ConfigError(
                f"the warm-up of {self.warmup_steps} steps takes all {total_steps} steps of the training",
                where="scheduler.warmup_steps",
                expected=f"fewer than {total_steps}",
                fix="lower scheduler.warmup_steps, or raise trainer.epochs or trainer.max_steps",
            )
        remaining = total_steps - self.warmup_steps
        if step < self.warmup_steps:
            risen = step / self.warmup_steps
            return (self.warmup_start + (1 - self.warmup_start) * risen) * self.shape(0, remaining)
        return self.shape(min(step - self.warmup_steps, remaining), remaining)


class Constant(Schedule):
    """The same learning rate throughout, after the warm-up."""

    def shape(self, step: int, total_steps: int) -> float:
        return 1.0


class Step(Schedule):
    """`gamma ^ k` after `k` drops, evenly spaced: DeepLab v1 falls to a tenth every 2,000 of 6,000 steps.

    Args:
        drops: how often the rate falls; it stays the same for `total_steps / (drops + 1)` steps.
        gamma: the factor of one drop.
    """

    def __init__(self, *, drops: PositiveInt = 2, gamma: Fraction = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drops = drops
        self.gamma = gamma

    def shape(self, step: int, total_steps: int) -> float:
        # In integers: a drop comes exactly where the division is exact.
        return float(self.gamma ** min(step * (self.drops + 1) // total_steps, self.drops))


class Poly(Schedule):
    """`(1 - step / total_steps) ^ power`: DeepLab's and PSPNet's schedule (Chen et al. 2016, section 4.1).

    Args:
        power: 1 is a line.
        min_factor: the factor at the end; the curve is scaled to lie between it and 1.
        every: steps between changes of the rate; 10 in a published port of DeepLab v2.
    """

    def __init__(
        self, *, power: PositiveFloat = 0.9, min_factor: Fraction = 0.0, every: PositiveInt = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.power = power
        self.min_factor = min_factor
        self.every = every

    def shape(self, step: int, total_steps: int) -> float:
        step = step // self.every * self.every
        fallen = (1 - step / total_steps) ** self.power
        return self.min_factor + (1 - self.min_factor) * fallen


class Cosine(Schedule):
    """Half a cosine from 1 to `min_factor`, without restarts (Loshchilov and Hutter 2017, eq. 5).

    Args:
        min_factor: the factor at the end.
    """

    def __init__(self, *, min_factor: Fraction = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_factor = min_factor

    def shape(self, step: int, total_steps: int) -> float:
        return _cosine(1.0, self.min_factor, step / total_steps)


class OneCycle(Schedule):
    """Up from `1 / div_factor` to 1 and down to `1 / (div_factor * final_div_factor)`, each half a cosine.

    Smith and Topin 2018, as torch's `OneCycleLR`. Momentum is not cycled.

    Args:
        pct_start: share of the steps that rise.
        div_factor: how far below the peak it starts.
        final_div_factor: how far below its start it ends, at the last step.
    """

    def __init__(
        self,
        *,
        pct_start: Fraction = 0.3,
        div_factor: Annotated[float, Interval(ge=1)] = 25.0,
        final_div_factor: Annotated[float, Interval(ge=1)] = 1e4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pct_start = pct_start
        self.start = 1 / div_factor
        self.end = self.start / final_div_factor

    def shape(self, step: int, total_steps: int) -> float:
        last = total_steps - 1
        step, peak = min(step, last), max(self.pct_start * total_steps - 1, 0.0)
        if step < peak:
            return _cosine(self.start, 1.0, step / peak)
        return _cosine(1.0, self.end, (step - peak) / (last - peak)) if peak < last else 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1, flat at both."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def make_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int) -> LambdaLR:
    """Multiplies each group's own learning rate by the schedule's factor; call its `step` once per update.

    Raises:
        ConfigError: the warm-up takes all steps.
    """
    return LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps))


def load_scheduler(scheduler: LambdaLR, state: dict[str, Any], step: int) -> None:
    """Puts the schedule at `step` and the learning rates at what this config's schedule says there."""
    base_rates = list(scheduler.base_lrs)
    scheduler.load_state_dict(state)
    scheduler.base_lrs, scheduler.last_epoch = base_rates, step
    for group, base, factor in zip(scheduler.optimizer.param_groups, base_rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

"""Optimizers, their parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval, Len
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from segtrain.errors import ConfigError
from segtrain.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Betas = Annotated[list[BelowOne], Len(2, 2)]
ADAM_BETAS = [0.9, 0.999]

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Their scales and shifts are no weights to be decayed, and their shifts no biases in the sense of the recipes."""


def sgd(
    params: Params,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.9,
    weight_decay: NonNegativeFloat = 1e-4,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Stochastic gradient descent; a group's own `lr` and `weight_decay` come before these.

    Raises:
        ConfigError: `nesterov` without momentum.
    """
    if nesterov and momentum == 0:
        raise ConfigError(
            "optimizer.nesterov is on, but there is no momentum to look ahead with",
            where="optimizer.momentum",
            expected="a momentum above 0",
            fix="set optimizer.momentum=0.9 or optimizer.nesterov=false",
        )
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adamw(
    params: Params,
    *,
    lr: PositiveFloat,
    betas: Betas = ADAM_BETAS,
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); a group's own `lr` and `weight_decay` come before these."""
    return torch.optim.AdamW(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def rmsprop(
    params: Params,
    *,
    lr: PositiveFloat,
    alpha: BelowOne = 0.99,
    eps: PositiveFloat = 1e-8,
    momentum: Fraction = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> torch.optim.RMSprop:
    """RMSprop (Tieleman and Hinton 2012); a group's own `lr` and `weight_decay` come before these."""
    return torch.optim.RMSprop(params, lr=lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay)


def parameter_groups(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    backbone_lr_mult: NonNegativeFloat = 1.0,
    head_lr_mult: NonNegativeFloat = 1.0,
    bias_lr_mult: NonNegativeFloat = 1.0,
    decay_norm_bias: bool = False,
) -> list[dict[str, Any]]:
    """Every trainable parameter once, in groups with `name`, `params`, `lr` and `weight_decay`.

    `backbone` holds what is under the model's child of that name, at `lr` times `backbone_lr_mult`; `head`
    holds the rest, at `lr` times `head_lr_mult`. Norms, biases and whatever else has one dimension are apart
    in `backbone_no_decay` and `head_no_decay`, unless `decay_norm_bias`. Biases of convolutions and linear layers
    have groups of their own, `backbone_bias` and `head_bias`, where `bias_lr_mult` is not 1 (Caffe's recipes have 2).
    Empty groups are left out; frozen parameters are in none.

    Raises:
        ConfigError: nothing is trainable, or a multiplier for a backbone that the model does not have.
    """
    backbone = dict(model.named_children()).get("backbone")
    if backbone is None and backbone_lr_mult != 1:
        raise ConfigError(
            f"optimizer.backbone_lr_mult is {backbone_lr_mult}, and {type(model).__name__} has no backbone",
            where="optimizer.backbone_lr_mult",
            expected="1 for a model without a child `backbone`",
            fix="set optimizer.backbone_lr_mult=1",
        )
    of_backbone = {id(parameter) for parameter in backbone.parameters()} if backbone is not None else set()
    members: dict[tuple[str, str], list[nn.Parameter]] = {}
    for parameter, kind in _trainable(model):
        part = "backbone" if id(parameter) in of_backbone else "head"
        if kind == "bias" and bias_lr_mult == 1:
            kind = "no_decay"
        if kind == "no_decay" and decay_norm_bias:
            kind = "weight"
        members.setdefault((part, kind), []).append(parameter)
    if not members:
        frozen = any(True for _ in model.parameters())
        raise ConfigError(
            f"{type(model).__name__} has no trainable parameter",
            where="model",
            expected="at least one parameter that is not frozen",
            fix="freeze less of the model"
            if frozen
            else "it needs no training: python -m segtrain evaluate, with the same model=… and data=…",
        )
    part_mult = {"backbone": backbone_lr_mult, "head": head_lr_mult}
    return [
        {
            "name": part if kind == "weight" else f"{part}_{kind}",
            "params": members[part, kind],
            "lr": lr * part_mult[part] * (bias_lr_mult if kind == "bias" else 1.0),
            "weight_decay": weight_decay if kind == "weight" or decay_norm_bias else 0.0,
        }
        for part in ("backbone", "head")
        for kind in ("weight", "no_decay", "bias")
        if (part, kind) in members
    ]


def _trainable(model: nn.Module) -> Iterable[tuple[nn.Parameter, str]]:
    """Each trainable parameter once, however often it is shared, and its kind: "weight", "bias" or "no_decay"."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, _kind(module, name, parameter)


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMS):
        return "no_decay"
    if name == "bias":
        return "bias"
    return "weight" if parameter.ndim > 1 else "no_decay"


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


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads momenta and the like, but keeps the settings of the config: a checkpoint's would come back silently.

    Raises:
        ValueError: the state is of other parameters.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)


def load_scheduler(scheduler: LambdaLR, state: dict[str, Any], step: int) -> None:
    """Puts the schedule at `step` and the learning rates at what this config's schedule says there."""
    base_rates = list(scheduler.base_lrs)
    scheduler.load_state_dict(state)
    scheduler.base_lrs, scheduler.last_epoch = base_rates, step
    for group, base, factor in zip(scheduler.optimizer.param_groups, base_rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

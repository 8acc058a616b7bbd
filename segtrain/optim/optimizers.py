"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval, Len
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segtrain.errors import ConfigError
from segtrain.types import Fraction, NonNegativeFloat, PositiveFloat

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
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)


def adamw(
    params: Params,
    *,
    lr: PositiveFloat,
    betas: Betas = ADAM_BETAS,
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); a group's own `lr` and `weight_decay` come before these."""
    return torch.optim.AdamW(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True)


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


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads momenta and the like, but keeps the settings of the config: a checkpoint's would come back silently.

    Raises:
        ValueError: the state is of other parameters.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)

"""A shorter start: torch's compiler, a second of imports, is loaded by runs that compile and by no other.

Torch marks functions that the compiler must not trace, and imports it at their first call to do so. Here they are
called where nothing is traced. Should a later torch mark them in another way, it imports the compiler as it would
without this.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def spare_the_compiler(*functions: Any) -> None:
    """Lets these functions of torch be called without the import."""
    for function in functions:
        plain = getattr(function, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def prepare_optimizers() -> None:
    """Lets optimizers be made, saved and loaded without the import."""
    every = torch.optim.Optimizer
    spare_the_compiler(every.add_param_group, every.zero_grad, every.state_dict, every.load_state_dict)


def lighten(optimizer: torch.optim.Optimizer) -> None:
    """Lets one of torch's own optimizers step without the import; a user's own is left alone.

    What is taken off its `step` are torch's marks for the compiler and for differentiable optimizers.
    """
    if not type(optimizer).__module__.startswith("torch.optim."):
        return
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    optimizer.step = MethodType(  # type: ignore[method-assign]
        torch.optim.Optimizer.profile_hook_step(torch.no_grad()(step)), optimizer
    )

"""What a network costs: its parameters, and the multiplications of one image, counted without computing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from segtrain.startup import spare_the_compiler

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
"""Matrix products; their last two arguments are the factors."""
SMALL = 2e10
"""Multiply-adds that are done in a moment. No network does more than one per parameter and pixel of the image."""


class _Operations(TorchDispatchMode):
    """Adds up the operations of convolutions, matrix products and attention; 2 per multiply-add.

    Torch's `FlopCounterMode` counts the same, but takes batch normalization apart, which imports the compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name == "convolution":
            image, weight, transposed = args[0], args[1], args[6]
            pixels = (image if transposed else result).shape[2:].numel()
            self.total += 2 * image.shape[0] * pixels * weight.numel()
        elif name in PRODUCTS:
            first, second = args[-2:]
            self.total += 2 * first.numel() * second.shape[-1]
        elif "attention" in name:
            from torch.utils.flop_counter import flop_registry  # imports Triton, which takes a fifth of a second

            self.total += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result))
        return result


spare_the_compiler(_Operations.__torch_dispatch__)


@dataclass(frozen=True)
class Cost:
    """The size of a network and the work of one evaluation.

    `parameters` counts all numbers that are weights, fixed ones included; `gmacs` is in 10^9 multiply-adds of
    convolutions and matrix products at `size` = (H, W), None where the network could not be traced, which `problem`
    then explains.
    """

    parameters: int
    size: tuple[int, int]
    gmacs: float | None
    problem: str = ""
    counting: str = ""
    """What the count takes for granted, where the work depends on more than the size."""

    def __str__(self) -> str:
        work = f"no GMACs: {self.problem}" if self.gmacs is None else f"{self.gmacs:.2f} GMACs"
        condition = f" {self.counting}" if self.counting else ""
        return f"{self.parameters / 1e6:.2f} M parameters   {work} at {self.size[0]}x{self.size[1]}{condition}"


def measure(model: nn.Module, size: tuple[int, int], channels: int) -> Cost:
    """Counts one forward pass in evaluation mode for one image (channels, *size). The model stays as it is.

    Of a large network shapes alone are traced, on the meta device: no memory for activations and no time for
    arithmetic, but a second to import torch's compiler. A small one is run in less time than that.

    A network whose input is more than a batch of images has `example(height, width, channels)`, its positional inputs
    for one; one whose work depends on values has `workload()`, the module to count in its place.
    """
    parameters = sum(p.numel() for p in model.parameters())
    network: nn.Module = model.workload() if hasattr(model, "workload") else model  # type: ignore[operator]
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    small = 0 < parameters * size[0] * size[1] <= SMALL
    device = next(model.parameters()).device if small else torch.device("meta")
    tensors = named if small else {name: torch.empty_like(value, device=device) for name, value in named.items()}
    dtype = next(iter(tensors.values())).dtype
    modes = {module: module.training for module in model.modules()}
    counter = _Operations()
    try:
        with torch.no_grad(), torch.device(device), counter:
            functional_call(network.eval(), tensors, _example(model, size, channels, dtype))
    except (RuntimeError, TypeError, ValueError) as error:
        # A network of the user's own may look at values, which shapes do not have. The run can do without the number,
        # and a real fault of the network comes again, with its own error, at the first step.
        return Cost(parameters, size, None, next(iter(str(error).splitlines()), type(error).__name__))
    finally:
        for module, training in modes.items():
            module.training = training
    return Cost(parameters, size, counter.total / 2e9, counting=getattr(network, "counting", ""))


def _example(model: nn.Module, size: tuple[int, int], channels: int, dtype: torch.dtype) -> tuple[Any, ...]:
    if hasattr(model, "example"):
        inputs: tuple[Any, ...] = model.example(*size, channels)  # type: ignore[operator]
        return inputs
    return (torch.zeros(1, channels, *size, dtype=dtype),)

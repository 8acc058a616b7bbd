"""What a network costs: its parameters, and the multiplications of one image, counted without computing them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


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

    def __str__(self) -> str:
        work = f"no GMACs: {self.problem}" if self.gmacs is None else f"{self.gmacs:.2f} GMACs"
        return f"{self.parameters / 1e6:.2f} M parameters   {work} at {self.size[0]}x{self.size[1]}"


def measure(model: nn.Module, size: tuple[int, int], channels: int) -> Cost:
    """Counts one forward pass in evaluation mode for one image (channels, *size).

    Shapes alone are traced, on the meta device: no memory for activations and no time for arithmetic. The model stays
    as it is.
    """
    parameters = sum(p.numel() for p in model.parameters())
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(value, device="meta") for name, value in named.items()}
    image = torch.empty(1, channels, *size, device="meta", dtype=next(iter(shapes.values())).dtype)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            functional_call(model.eval(), shapes, image)
    except (RuntimeError, TypeError, ValueError) as error:
        # A network of the user's own may look at values, which shapes do not have. The run can do without the number,
        # and a real fault of the network comes again, with its own error, at the first step.
        return Cost(parameters, size, None, next(iter(str(error).splitlines()), type(error).__name__))
    finally:
        for module, training in modes.items():
            module.training = training
    return Cost(parameters, size, counter.get_total_flops() / 2e9)

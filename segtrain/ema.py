"""Averaged weights: an exponential moving average of the model, or an object that does nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Ema:
    """Keeps `average <- decay * average + (1 - decay) * model` after every step.

    Early on the decay is (1 + n) / (10 + n), so that the random initialization is forgotten quickly. BatchNorm
    statistics are averaged like weights; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        # Paired once: walking through a deep network takes milliseconds. Buffers are looked up in their modules at each
        # update, because a module may put another tensor in a buffer's place.
        pairs = list(zip(self.average.modules(), model.modules(), strict=True))
        self.parameters = list(zip(self.average.parameters(), model.parameters(), strict=True))  # shared ones once
        self.buffered = [(mine, theirs) for mine, theirs in pairs if theirs._buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model after one optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats: list[tuple[torch.Tensor, torch.Tensor]] = list(self.parameters)
        counts: list[tuple[torch.Tensor, torch.Tensor]] = []
        seen: set[int] = set()
        for mine, theirs in self.buffered:
            for name, buffer in theirs._buffers.items():
                average = mine._buffers[name]
                if buffer is None or average is None or id(average) in seen:
                    continue
                seen.add(id(average))
                (floats if buffer.is_floating_point() else counts).append((average, buffer))
        torch._foreach_lerp_([mine for mine, _ in floats], [new for _, new in floats], 1 - decay)
        if counts:  # all at once: a GPU would otherwise start a kernel for each layer's
            torch._foreach_copy_([mine for mine, _ in counts], [new for _, new in counts])

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model whose scores are reported: the average."""
        return self.average

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        return {"updates": self.updates, "model": self.average.state_dict()}

    def restore(self, state: dict[str, Any] | None, model: nn.Module) -> None:
        """Continues from `state()`; None: the checkpoint had no average, so this one starts at `model`'s weights."""
        self.updates = 0 if state is None else state["updates"]
        self.average.load_state_dict(model.state_dict() if state is None else state["model"])


class NoEma:
    """`trainer.ema=null`: the model itself is evaluated."""

    def update(self) -> None:
        """Nothing to keep."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def state(self) -> dict[str, Any] | None:
        """Nothing to save."""
        return None

    def restore(self, state: dict[str, Any] | None, model: nn.Module) -> None:
        """Nothing to restore."""

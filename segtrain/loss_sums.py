"""Loss terms added up where they are computed: reading them each step would make a GPU wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtrain import distributed


class LossSums:
    """Sums of named loss terms over steps; each rank holds its own share of every step's terms."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Adds one step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.float()
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The mean of each term over the steps since the last call, over all ranks; starts anew."""
        names = sorted(self.sums)
        if not names:
            return {}
        total = distributed.sum_(torch.stack([self.sums[name] for name in names]))
        means = (total / self.steps).tolist()
        self.sums, self.steps = {}, 0
        return dict(zip(names, means, strict=True))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of all ranks."""
        sums = {name: distributed.sum_(self.sums[name].clone()) for name in sorted(self.sums)}
        return {"sums": sums, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state()`; the first rank carries the sums of all."""
        share = 1.0 if distributed.is_main() else 0.0
        self.sums = {name: value.to(self.device) * share for name, value in state["sums"].items()}
        self.steps = state["steps"]

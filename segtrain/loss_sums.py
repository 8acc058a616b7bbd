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
        self.names: list[str] = []
        self.sums = torch.zeros(0, device=device)
        self.steps = 0

    def add(self, names: list[str], values: Tensor) -> None:
        """Adds one step's terms: their names, the same at every step, and their values (N,) float32."""
        if names != self.names:
            assert not self.steps, f"loss terms {names} after {self.names}"
            self.names, self.sums = names, torch.zeros_like(values)
        self.sums += values
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The mean of each term over the steps since the last call, over all ranks; starts anew."""
        if not self.steps:
            return {}
        means = (distributed.sum_(self.sums.clone()) / self.steps).tolist()
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return dict(sorted(zip(self.names, means, strict=True)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of all ranks."""
        sums = distributed.sum_(self.sums.clone()) if self.steps else self.sums
        return {"sums": dict(zip(self.names, sums, strict=True)) if self.steps else {}, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state()`; the first rank carries the sums of all."""
        share = 1.0 if distributed.is_main() else 0.0
        self.names = list(state["sums"])
        values = [value.to(self.device) * share for value in state["sums"].values()]
        self.sums = torch.stack(values) if values else torch.zeros(0, device=self.device)
        self.steps = state["steps"]

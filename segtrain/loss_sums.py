"""Loss terms added up where they are computed: reading them each step would make a GPU wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segtrain import distributed

FOLDED_AT_ONCE = 64
"""Steps whose terms are kept before they are added up: one operation for many steps costs as much as for one."""


class LossSums:
    """Sums of named loss terms over steps; each rank holds its own share of every step's terms.

    A step only hands over its tensors. They are added up after every `FOLDED_AT_ONCE` steps and when the sums are
    taken, never because a checkpoint is written: a resumed run adds in the same order, to the same bits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.sums = torch.zeros(0, device=device)
        self.folded = 0  # steps in `sums`
        self.pending: list[Tensor] = []  # terms of the steps since, one after the other

    @property
    def steps(self) -> int:
        """Steps since the sums were taken."""
        return self.folded + (len(self.pending) // len(self.names) if self.names else 0)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Takes one step's terms, numbers by name; the names are the same at every step."""
        names = list(terms)
        if names != self.names:
            assert not self.steps, f"loss terms {names} after {self.names}"
            self.names, self.sums = names, torch.zeros(len(names), device=self.device)
        self.pending += terms.values()
        if len(self.pending) == FOLDED_AT_ONCE * len(names):
            self._fold()

    def take(self) -> dict[str, float]:
        """The mean of each term over the steps since the last call, over all ranks; starts anew."""
        self._fold()
        if not self.folded:
            return {}
        means = (distributed.sum_(self.sums.clone()) / self.folded).tolist()
        self.sums, self.folded = torch.zeros_like(self.sums), 0
        return dict(sorted(zip(self.names, means, strict=True)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of all ranks, and beside them the steps that are yet to be added."""
        rows = self._rows()
        if not self.steps:
            return {"sums": {}, "steps": 0, "pending": rows}
        sums = distributed.sum_(self.sums.clone())
        return {
            "sums": dict(zip(self.names, sums, strict=True)),
            "steps": self.steps,
            "pending": distributed.sum_(rows.clone()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state()`; the first rank carries the sums of all."""
        share = 1.0 if distributed.is_main() else 0.0
        self.names = list(state["sums"])
        values = [value.to(self.device) * share for value in state["sums"].values()]
        self.sums = torch.stack(values) if values else torch.zeros(0, device=self.device)
        rows = state.get("pending", torch.zeros(0, len(values)))  # not in the first checkpoints
        self.pending = list((rows.to(self.device) * share).flatten().unbind())
        self.folded = state["steps"] - len(rows)

    def _rows(self) -> Tensor:
        """The pending terms (steps, names) float32."""
        if not self.pending:
            return torch.zeros(0, len(self.names), device=self.device)
        return torch.stack([term.float() for term in self.pending]).unflatten(0, (-1, len(self.names)))

    def _fold(self) -> None:
        if self.pending:
            rows = self._rows()
            self.sums += rows.sum(0)
            self.folded += len(rows)
            self.pending = []

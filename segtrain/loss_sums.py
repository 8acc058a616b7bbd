"""Loss terms added up over steps: at once where they are read at every step, later where a GPU would be waited for.

Each rank holds its own share of every step's terms. A checkpoint keeps the sums of all ranks, and writing it changes
nothing: a resumed run adds in the same order, to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from segtrain import distributed

FOLDED_AT_ONCE = 64
"""Steps whose terms a GPU keeps before it adds them up: one operation for many steps costs as much as for one."""


class LossSums(Protocol):
    """Sums of named loss terms."""

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Takes one step's terms, numbers by name; the names are the same at every step."""

    def take(self) -> dict[str, float]:
        """The mean of each term over the steps since the last call, over all ranks; starts anew."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state()`, of either kind of sums; the first rank carries the sums of all."""


class HostSums:
    """Sums of numbers that are read at every step."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        sums = self.sums
        if not sums:
            self.sums = sums = dict.fromkeys(terms, 0.0)
        for name, value in terms.items():
            sums[name] += float(value)
        self.steps += 1

    def take(self) -> dict[str, float]:
        if not self.steps:
            return {}
        found = {name: value / self.steps for name, value in sorted(self._of_all_ranks().items())}
        self.sums, self.steps = {}, 0
        return found

    def state(self) -> dict[str, Any]:
        sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._of_all_ranks().items()}
        return {"sums": sums, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        share = 1.0 if distributed.is_main() else 0.0
        pending = state.get("pending", torch.zeros(0, len(state["sums"]))).double().sum(0).tolist()
        pairs = zip(state["sums"].items(), pending, strict=True)
        self.sums = {name: share * (float(value) + more) for (name, value), more in pairs}
        self.steps = state["steps"]

    def _of_all_ranks(self) -> dict[str, float]:
        if distributed.world_size() == 1:
            return self.sums
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        return dict(zip(self.sums, distributed.sum_(values).tolist(), strict=True))


class DeviceSums:
    """Sums of numbers that a device would have to be waited for.

    A step only hands over its tensors. They are added up after every `FOLDED_AT_ONCE` steps, and when sums are taken.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.sums = torch.zeros(0, device=device)
        self.folded = 0  # steps in `sums`
        self.pending: list[Tensor] = []  # terms of the steps since, one after the other
        self.known: dict[float, Tensor] = {}  # numbers that did not come as tensors: few, as yes and no

    @property
    def steps(self) -> int:
        """Steps since the sums were taken."""
        return self.folded + (len(self.pending) // len(self.names) if self.names else 0)

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        names = list(terms)
        if names != self.names:
            assert not self.steps, f"loss terms {names} after {self.names}"
            self.names, self.sums = names, torch.zeros(len(names), device=self.device)
        self.pending += [value if isinstance(value, Tensor) else self._number(value) for value in terms.values()]
        if len(self.pending) == FOLDED_AT_ONCE * len(names):
            self._fold()

    def take(self) -> dict[str, float]:
        self._fold()
        if not self.folded:
            return {}
        means = (distributed.sum_(self.sums.clone()) / self.folded).tolist()
        self.sums, self.folded = torch.zeros_like(self.sums), 0
        return dict(sorted(zip(self.names, means, strict=True)))

    def state(self) -> dict[str, Any]:
        rows, sums = distributed.sum_(self._rows().clone()), distributed.sum_(self.sums.clone())
        known = dict(zip(self.names, sums, strict=True)) if self.steps else {}
        return {"sums": known, "steps": self.steps, "pending": rows if self.steps else rows[:, :0]}

    def restore(self, state: dict[str, Any]) -> None:
        share = 1.0 if distributed.is_main() else 0.0
        self.names = list(state["sums"])
        values = [share * float(value) for value in state["sums"].values()]
        self.sums = torch.tensor(values, device=self.device)
        rows = state.get("pending", torch.zeros(0, len(values)))  # sums of the main memory have none
        self.pending = list((rows.to(self.device) * share).flatten().unbind())
        self.folded = state["steps"] - len(rows)

    def _number(self, value: float) -> Tensor:
        if value not in self.known:
            self.known[value] = torch.tensor(value, device=self.device)
        return self.known[value]

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

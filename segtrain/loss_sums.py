"""Loss terms added up over steps, read from a GPU only where somebody asks for them.

Each rank holds its own share of every step's terms. A checkpoint keeps the sums of all ranks, and writing it changes
nothing: a resumed run adds in the same order, to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor

from segtrain import distributed
from segtrain.errors import ConfigError, listed

Span = Literal["window", "epoch"]
"""Since the last point of the curves, and since the epoch began."""

HELD = 1000
"""Steps whose terms are held unread at most: each is a few hundred bytes on a GPU."""


class LossSums:
    """Sums of named loss terms over the steps of each span.

    A step's terms are copied at once, as they may share memory with what the next step changes. On the CPU that is
    reading them; a GPU is waited for when somebody asks.
    """

    def __init__(self) -> None:
        self.sums: dict[Span, dict[str, float]] = {"window": {}, "epoch": {}}
        self.steps: dict[Span, int] = {"window": 0, "epoch": 0}
        self.names: list[str] = []
        self.unread: list[tuple[list[float] | Tensor, list[float]]] = []  # per step, in the order of `names`

    def add(self, terms: Mapping[str, Tensor], **numbers: float) -> None:
        """Takes one step's terms and what else has a mean, by name.

        Raises:
            ConfigError: a term is not one number, or they have other names than before.
        """
        names = [*terms, *numbers]
        if names != self.names:
            self._rename(names)
        values = list(terms.values())
        try:
            on_cpu = values[0].is_cpu
            row = [value.item() for value in values] if on_cpu else torch.stack([one.reshape(()) for one in values])
        except RuntimeError as error:
            raise _no_number(terms) from error
        self.unread.append((row, list(numbers.values())))
        if len(self.unread) == HELD:
            self._read()

    def take(self, span: Span) -> dict[str, float]:
        """The mean of each term over the steps of a span, over all ranks; the span starts anew."""
        self._read()
        steps, sums = self.steps[span], self._of_all_ranks(span)
        self.sums[span], self.steps[span] = {}, 0
        return {name: value / steps for name, value in sorted(sums.items())}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._read()
        found: dict[str, Any] = {}
        for span, steps in self.steps.items():
            sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._of_all_ranks(span).items()}
            found[span] = {"sums": sums, "steps": steps}
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from `state()`; the first rank carries the sums of all."""
        share = 1.0 if distributed.is_main() else 0.0
        self.unread = []
        self.names = list(state["epoch"]["sums"] or state["window"]["sums"])
        for span in self.sums:
            kept = state[span]
            # Terms that earlier versions held on a GPU: (steps, names).
            pending = kept.get("pending", torch.zeros(0, len(kept["sums"]))).double().sum(0).tolist()
            pairs = zip(kept["sums"].items(), pending, strict=True)
            self.sums[span] = {name: share * (float(value) + more) for (name, value), more in pairs}
            self.steps[span] = kept["steps"]

    def _read(self) -> None:
        """Adds what is unread to the sums, step by step: in the same order however often it is called."""
        if not self.unread:
            return
        rows = [row for row, _ in self.unread if isinstance(row, Tensor)]
        found = torch.stack(rows).tolist() if rows else [row for row, _ in self.unread]  # a GPU is waited for once
        steps = [(*row, *numbers) for row, (_, numbers) in zip(found, self.unread, strict=True)]
        columns = dict(zip(self.names, zip(*steps, strict=True), strict=True))
        for span, sums in self.sums.items():
            # One by one: `sum` rounds otherwise, and what it gives would depend on how often this is called.
            self.sums[span] = {name: reduce(add, column, sums.get(name, 0.0)) for name, column in columns.items()}
            self.steps[span] += len(steps)
        self.unread = []

    def _rename(self, names: list[str]) -> None:
        """The terms come in another order, or, where nothing is added up yet, with other names."""
        self._read()
        if len(set(names)) < len(names):
            raise ConfigError(
                f"two terms of one name among {listed(names)}",
                where="task",
                expected="names of their own; `unlabelled` is what the trainer counts itself",
                fix="give the task's term another name",
            )
        if any(self.steps.values()) and set(names) != set(self.names):
            raise ConfigError(
                f"the loss terms of this step are {listed(names)}",
                where="task",
                expected=f"those of the steps before: {listed(self.names)}",
                fix="return every term at every step, as zero where it plays no part",
            )
        self.names = names

    def _of_all_ranks(self, span: Span) -> dict[str, float]:
        if distributed.world_size() == 1:
            return self.sums[span]
        values = torch.tensor(list(self.sums[span].values()), dtype=torch.float64)
        return dict(zip(self.sums[span], distributed.sum_(values).tolist(), strict=True))


def _no_number(terms: Mapping[str, Tensor]) -> ConfigError:
    shapes = listed(f"{name} {tuple(value.shape)} on {value.device}" for name, value in terms.items())
    return ConfigError(
        f"a loss term is not one number: {shapes}",
        where="task",
        expected="tensors of one element each, on one device",
        fix="sum or average each term in the task's losses",
    )

"""Loss terms added up over steps, read from the device only where somebody asks for them.

Each rank holds its own share of every step's terms. A checkpoint keeps the sums of all ranks, and writing it changes
nothing: a resumed run adds in the same order, to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from segtrain import distributed

Span = Literal["window", "epoch"]
"""Since the last point of the curves, and since the epoch began."""

HELD = 1000
"""Steps whose terms are held unread at most: each is a few hundred bytes on a GPU."""


class LossSums:
    """Sums of named loss terms over the steps of each span.

    A step only hands over its terms, which costs nothing and waits for nothing. They are read all at once.
    """

    def __init__(self) -> None:
        self.sums: dict[Span, dict[str, float]] = {"window": {}, "epoch": {}}
        self.steps: dict[Span, int] = {"window": 0, "epoch": 0}
        self.unread: list[Mapping[str, Tensor | float]] = []

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Takes one step's terms, scalars by name without a graph; the names are the same at every step."""
        self.unread.append(terms)
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
        tensors = [value for terms in self.unread for value in terms.values() if isinstance(value, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])  # a GPU is waited for once
        for terms in self.unread:
            values = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in terms.items()}
            for span, sums in self.sums.items():
                if not sums:
                    self.sums[span] = sums = dict.fromkeys(values, 0.0)
                for name, value in values.items():
                    sums[name] += value
                self.steps[span] += 1
        self.unread = []

    def _of_all_ranks(self, span: Span) -> dict[str, float]:
        if distributed.world_size() == 1:
            return self.sums[span]
        values = torch.tensor(list(self.sums[span].values()), dtype=torch.float64)
        return dict(zip(self.sums[span], distributed.sum_(values).tolist(), strict=True))

"""What the trainer, the evaluator and the tracker ask of a kind of task: all that they know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Meter(Protocol):
    """What a task counts over an evaluation."""

    def update(self, model: nn.Module, batch: Any) -> None:
        """Takes in one batch that is on the model's device."""

    def reduce(self) -> None:
        """Adds the counts of all ranks."""

    def scores(self) -> dict[str, Any]:
        """The scores, as plain numbers by name."""


class Task(Protocol):
    """A kind of task: batches of its dataset in, losses and scores out.

    Attributes:
        name: as `task=` and a dataset's `task` name it.
        monitors: scores that can choose the best epoch, the usual one first, and whether higher is better.
        columns: heading -> score, for the row that every epoch prints.
        per_class: scores that are one number per class by name; each becomes curves.
        classes, palette: names and colors in index order.
    """

    name: ClassVar[str]
    monitors: ClassVar[dict[str, bool]]
    columns: ClassVar[dict[str, str]]
    per_class: ClassVar[tuple[str, ...]]
    classes: list[str]
    palette: list[list[int]]

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Task:
        """Moves what the losses need to the model's device."""

    def counts(self, batch: Any) -> Tensor:
        """What the losses are divided by, from the target alone; summed over a step by the trainer."""

    def losses(self, model: nn.Module, batch: Any, counts: Tensor | None) -> dict[str, Tensor]:
        """The loss terms of one batch by name, their weighted sum under `loss`: its share of a step's.

        `counts` is of the whole step; None: of this batch, which is all that the step has.
        """

    def meter(self, extra: Sequence[Any] = (), losses: bool = True) -> Meter:
        """Counts at zero for one evaluation; `extra` metrics look at single images beside them."""

    def table(self, scores: dict[str, Any]) -> list[str]:
        """The scores as lines for people: per class, and the summary under them."""

    def panel(self, model: nn.Module, image: np.ndarray, target: Any, device: torch.device) -> np.ndarray:
        """Input, truth and prediction of one sample of a dataset side by side, (H, W, 3) uint8."""

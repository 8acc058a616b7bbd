"""A step whose batch does not fit the memory is made in smaller pieces: the same gradients, added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from segtrain import distributed
from segtrain.memory import is_out_of_memory
from segtrain.models.layers import needs_two_samples
from segtrain.types import Batch, PositiveInt

T = TypeVar("T")


class MicroBatches:
    """Cuts batches into `count` pieces, and into twice as many whenever the device's memory runs out.

    Losses that are means over pixels are divided by what a whole step counts, so that the pieces' gradients add up to
    the batch's. Losses of regions (Dice, Tversky, Lovász) are the mean of the pieces' own, as with
    `trainer.accumulate`, and batch normalization takes its means over one piece.

    Args:
        smallest: images that a piece must have at least.
        say: tells a person.
    """

    def __init__(self, *, smallest: PositiveInt, say: Callable[[str], None]) -> None:
        self.smallest = smallest
        self.say = say
        self.count = 1

    def cut(self, batches: list[Batch]) -> list[Batch]:
        """The batches in pieces."""
        if self.count == 1:
            return batches
        return [part for batch in batches for part in batch.parts(self.count)]

    def run(
        self,
        batches: list[Batch],
        gradients: Callable[[list[Batch]], T],
        forget: Callable[[], None],
        *,
        alone: bool = False,
    ) -> T:
        """`gradients(pieces)`, again with smaller ones while memory runs out; `forget` drops what a failed try left.

        `alone`: no other process waits for what `gradients` computes.

        Raises:
            RuntimeError: that memory ran out (see `memory`): the pieces cannot be smaller, or other processes wait for
                this one's.
        """
        while True:
            failure = ""
            try:
                return gradients(self.cut(batches))
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self._can_halve(batches, alone):
                    raise
                failure = str(error).splitlines()[0]
            # Not in the handler: the error's traceback holds the tensors that must go.
            forget()
            self._halve(batches, failure)

    def agree(self) -> None:
        """Every rank cuts into as many pieces as the one that needs most."""
        self.count = max(distributed.gather(self.count))

    def _can_halve(self, batches: list[Batch], alone: bool) -> bool:
        # Ranks that add up gradients would wait for ever for one that begins anew.
        return (alone or distributed.world_size() == 1) and len(batches[0]) // (2 * self.count) >= self.smallest

    def _halve(self, batches: list[Batch], failure: str) -> None:
        self.count *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-len(batches[0]) // self.count)
        self.say(
            f"note     memory ran out ({failure}): {len(batches[0])} images go through the network {size} at a time; a "
            "step has as many images as before; batch normalization and losses of regions see fewer at once"
        )


def smallest_batch(model: nn.Module, frozen_norms: bool) -> int:
    """Images that the network needs at once to train: 2 where batch normalization would see single values."""
    return 2 if needs_two_samples(model) and not frozen_norms else 1

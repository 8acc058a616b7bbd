"""A fixed order of samples: which of them make step `s` of epoch `e` depends on the seed alone.

Not on the number of workers, nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from segtrain import distributed


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields this process's batches as lists of (epoch, index).

    Both together, because workers that outlive an epoch would never see an epoch set on the dataset.
    """

    def __init__(
        self, length: int, steps: int, batch_size: int, accumulate: int, seed: int, wide: np.ndarray | None = None
    ) -> None:
        self.length = length
        self.steps = steps
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.wide = wide  # (length,) bool: steps are to be all of the one or all of the other
        self.epoch = 0
        self.first = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batch, world = self.epoch, self.batch_size, distributed.world_size()
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.length)
        if self.wide is not None:
            order = _grouped(order, self.wide[order], batch * self.accumulate * world, generator)
        for number in range(self.first * self.accumulate, self.steps * self.accumulate):
            start = (number * world + distributed.rank()) * batch
            yield [(epoch, int(index)) for index in order[start : start + batch]]

    def __len__(self) -> int:
        return (self.steps - self.first) * self.accumulate


def _grouped(order: np.ndarray, wide: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The samples of `order` in groups of `size`, as few of them mixed as can be; what fills no group comes last."""
    kinds = [order[wide], order[~wide]]
    whole = [kind[: len(kind) // size * size].reshape(-1, size) for kind in kinds]
    left = np.concatenate([kind[len(kind) // size * size :] for kind in kinds])
    whole.append(left[: len(left) // size * size].reshape(-1, size))
    groups = generator.permutation(np.concatenate(whole))
    return np.concatenate([groups.ravel(), left[len(left) // size * size :]])

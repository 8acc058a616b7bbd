"""Steps of one aspect: every sample once, as few mixed steps as can be. The order as such: `test_loader.py`."""

from __future__ import annotations

import numpy as np
import pytest

from segtrain.data.sampler import StepSampler


@pytest.mark.parametrize(("total", "tall", "size"), [(40, 13, 4), (17, 17, 4), (23, 1, 2), (9, 4, 3), (5, 2, 5)])
def test_steps_of_one_aspect_take_every_sample_once_and_mix_as_few_as_can_be(total: int, tall: int, size: int) -> None:
    wide = np.arange(total) >= tall
    steps = total // size
    seen = []
    for epoch in range(3):
        sampler = StepSampler(total, steps, size, 1, seed=7, wide=wide)
        sampler.epoch = epoch
        batches = [[index for _, index in batch] for batch in sampler]
        assert [len(batch) for batch in batches] == [size] * steps
        flat = [index for batch in batches for index in batch]
        assert len(set(flat)) == len(flat) == steps * size
        mixed = [batch for batch in batches if len(set(wide[batch].tolist())) > 1]
        assert len(mixed) <= 1
        seen.append(flat)
        assert batches == [[index for _, index in batch] for batch in sampler], "the same epoch again"
    assert seen[0] != seen[1] or total == size

"""The memory of a computation is its own: not what its inputs took to make."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from segtrain.benchmark.memory import FORGET, peaks

MIB = 2**18
"""Floats of one MiB."""


def after_much(size: int) -> Callable[[], object]:
    """To make the inputs takes 300 MiB, which are free again, in blocks of all sizes; the computation takes `size`."""
    for block in (20, 4, 1):
        blocks = [torch.ones(block * MIB) for _ in range(300 // block)]
    del blocks
    return lambda: torch.ones(size * MIB)


@pytest.mark.skipif(not FORGET.exists(), reason="only Linux forgets a peak")
def test_what_was_freed_before_is_not_counted() -> None:
    found = peaks({"small": (after_much, (4,)), "large": (after_much, (64,))}, torch.device("cpu"))
    assert found["small"] == pytest.approx(4, abs=2)
    assert found["large"] == pytest.approx(64, abs=4)

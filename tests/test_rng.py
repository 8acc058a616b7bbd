"""All generators go on where they were, by way of plain data."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from segtrain import checkpoint
from segtrain.rng import restore_rng, rng_state, seed_everything

CPU = torch.device("cpu")


def draw() -> list[float]:
    """From each generator, with the halves that Gaussian draws keep for the next call."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_generators_go_on_from_a_file_where_they_were(tmp_path: Path) -> None:
    seed_everything(2**33 + 5)
    draw()  # leaves half a Gaussian pair in Python's and NumPy's
    checkpoint.save(tmp_path / "rng.pt", {"rng": rng_state(CPU)})
    expected = [draw() for _ in range(3)]
    seed_everything(1)
    assert draw() != expected[0]
    restore_rng(checkpoint.load(tmp_path / "rng.pt")["rng"], CPU)
    assert [draw() for _ in range(3)] == expected


def test_the_seed_decides_every_generator() -> None:
    results = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        results.append(draw())
    assert results[0] == results[1]
    assert not any(a == b for a, b in zip(results[0], results[2], strict=True))

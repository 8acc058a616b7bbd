"""Fractions as integers, whose sums do not depend on the order in which images came or on which rank."""

from __future__ import annotations

import numpy as np


def to_fixed(values: np.ndarray | float, bits: int) -> np.ndarray:
    """Values in units of 2**-`bits`, rounded to int64. The caller sees to it that sums stay below 2**63."""
    return np.rint(np.asarray(values, dtype=np.float64) * 2.0**bits).astype(np.int64)


def from_fixed(sums: np.ndarray, bits: int) -> np.ndarray:
    """The sums as float64."""
    return sums / 2.0**bits

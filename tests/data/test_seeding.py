"""The random numbers of a sample: from its key alone, and of neighboring keys independent of each other."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from segtrain.data.seeding import Stream, streams

PYTHON, NUMPY = 7452625957459523788, 3626006335299107995
KEYS = [(seed, epoch, index) for seed in (0, 1) for epoch in range(20) for index in range(100)]


def drawn(stream: Stream, key: tuple[int, int, int]) -> list[float]:
    """Three numbers of each generator, one of them half a word that NumPy may keep the rest of, and a normal one."""
    stream.start(key)
    numpy_random, python_random = stream.numpy, stream.python
    half = float(numpy_random.integers(2**32, dtype=np.uint32)) / 2**32
    return [numpy_random.random(), half, python_random.random(), python_random.uniform(0, 1), python_random.gauss(0, 1)]


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """(keys, 4) first uniform numbers."""
    stream = Stream()
    return np.array([drawn(stream, key)[:4] for key in KEYS])


def test_what_was_drawn_before_is_forgotten() -> None:
    used, first = Stream(), drawn(Stream(), (3, 4, 5))
    used.start((9, 9, 9))
    used.numpy.integers(9, dtype=np.uint32)  # the other half of the word is kept
    used.numpy.random(7)
    used.python.gauss(0, 1)  # the second of a pair is kept
    assert drawn(used, (3, 4, 5)) == first


def test_another_process_draws_the_same() -> None:
    code = "from segtrain.data.seeding import Stream; s = Stream(); s.start((7, 2**70, -1)); "
    code += "print(repr((s.python.random(), float(s.numpy.random()))))"
    lines = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    stream = Stream()
    stream.start((7, 2**70, -1))
    assert lines == {f"{(stream.python.random(), float(stream.numpy.random()))!r}\n".encode()}


def test_the_numbers_of_a_key_never_change() -> None:
    """A run that is resumed with a later version goes on with the same samples."""
    numpy_random, python_random = streams((1, 2, 3))
    assert (python_random.getrandbits(64), int(numpy_random.bit_generator.random_raw())) == (PYTHON, NUMPY)


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])
def test_a_copy_draws_the_same_and_by_itself(copied: object) -> None:
    stream = Stream()
    other = copied(stream)  # type: ignore[operator]
    other.start((0, 0, 1))
    assert drawn(stream, (5, 6, 7)) == drawn(other, (5, 6, 7))


def test_no_two_keys_share_a_number(table: np.ndarray) -> None:
    assert len(np.unique(table[:, [0, 2, 3]])) == 3 * len(KEYS)
    # Keys that look alike when written one after the other.
    near = [(1, 11, 1), (11, 1, 1), (1, 1, 11), (111, 0, 0), (0, 0, 111), (0, 111, 0), (0, 0, -111), (2**64, 0, 111)]
    stream = Stream()
    assert len({tuple(drawn(stream, key)) for key in near}) == len(near)


def test_first_numbers_are_spread_evenly(table: np.ndarray) -> None:
    for column in table.T:
        assert kstest(column, "uniform").pvalue > 1e-3
        counts = np.bincount((column * 16).astype(int), minlength=16)
        assert chi2.sf(np.sum((counts - len(KEYS) / 16) ** 2) / (len(KEYS) / 16), 15) > 1e-3


@pytest.mark.parametrize("apart", [1, 2, 100, 2000], ids=["next sample", "next but one", "next epoch", "next seed"])
def test_neighboring_keys_are_independent(table: np.ndarray, apart: int) -> None:
    """All pairs of columns, of a key and its neighbor: correlations, and counts in a grid of squares."""
    one, other = table[:-apart], table[apart:]
    allowed = 4.5 / np.sqrt(len(one))  # standard errors
    assert np.abs(np.corrcoef(one.T, other.T)[:4, 4:]).max() < allowed
    assert np.abs(np.corrcoef(one.T) - np.eye(4)).max() < allowed
    for column in range(4):
        cells = (one[:, column] * 8).astype(int) * 8 + (other[:, column] * 8).astype(int)
        expected = len(one) / 64
        assert chi2.sf(np.sum((np.bincount(cells, minlength=64) - expected) ** 2) / expected, 63) > 1e-4

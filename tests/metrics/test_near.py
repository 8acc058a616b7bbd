"""Distances against every pair of pixels, and sums that no order changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.metrics.fixed_point import from_fixed, to_fixed
from segtrain.metrics.near import DISC_LIMIT, distance, near, window


def brute_near(mask: np.ndarray, radius: float) -> np.ndarray:
    found = np.zeros(mask.shape, dtype=bool)
    rows, columns = np.nonzero(mask)
    for row, column in np.ndindex(*mask.shape):
        squared = (rows - row) ** 2 + (columns - column) ** 2
        found[row, column] = bool((squared <= radius * radius + 1e-9).any())
    return found


@given(
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.9]),
    radius=st.sampled_from([0, 0.9, 1, 1.41, 2**0.5, 2, 3.7, 5, 8, 8.5, 10, 13]),
)
@settings(max_examples=80, deadline=None)
def test_near_is_the_euclidean_distance_of_pixels(seed: int, share: float, radius: float) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random((17, 23)) < share
    assert np.array_equal(near(mask, radius), brute_near(mask, radius))


def test_the_two_ways_of_measuring_agree_where_one_takes_over() -> None:
    mask = np.random.default_rng(0).random((120, 90)) < 0.002
    for radius in (DISC_LIMIT - 0.5, DISC_LIMIT):
        assert np.array_equal(near(mask, radius), distance(mask) <= radius + 1e-3)


def test_an_empty_mask_is_near_nothing() -> None:
    empty = np.zeros((4, 5), dtype=bool)
    assert np.isinf(distance(empty)).all()
    assert not near(empty, 100).any()
    assert not near(empty, 2).any()


@pytest.mark.parametrize("margin", [0, 1.2, 3, 50])
def test_a_window_holds_all_that_is_near(margin: float) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:8, 27:29] = True
    outside = np.ones_like(mask)
    outside[window(mask, margin)] = False
    assert not (outside & brute_near(mask, margin)).any()
    assert mask[window(mask, 0)].all()


def test_fixed_point_sums_do_not_depend_on_order() -> None:
    values = np.random.default_rng(0).random(1000)
    forwards, backwards = (sum(to_fixed(value, 40) for value in order) for order in (values, values[::-1]))
    assert forwards == backwards
    assert from_fixed(np.asarray(forwards), 40) == pytest.approx(values.sum(), rel=1e-12)

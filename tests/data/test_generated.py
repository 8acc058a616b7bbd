"""What is drawn into generated images: forms that can be told apart, and seeds that no two samples share."""

from __future__ import annotations

import numpy as np
import pytest

from segtrain.data.generated import draw_form, rgb_of
from segtrain.data.shapes import FREQUENCY, Shapes

CLASSES = ["background", *FREQUENCY]


@pytest.mark.parametrize("form", FREQUENCY)
@pytest.mark.parametrize("radius", range(8))
def test_a_form_is_seen_however_small_and_stays_within_its_radius(form: str, radius: int) -> None:
    mask = draw_form(form, np.random.default_rng(radius), 31, radius, np.array([15, 12]))
    assert (mask.shape, mask.dtype) == ((31, 31), np.uint8)
    assert set(np.unique(mask)) == {0, 1}
    rows, columns = np.nonzero(mask)
    assert np.hypot(columns - 15, rows - 12).max() <= radius + 1


def test_forms_differ_in_their_areas() -> None:
    """Of one radius: a ring is a disc without its middle, and a polygon's area does not depend on its angle."""
    area = {}
    for form in FREQUENCY:
        found = [draw_form(form, np.random.default_rng(seed), 201, 90, np.array([100, 100])) for seed in range(5)]
        area[form] = [mask.sum() / 90**2 for mask in found]
    for form, expected in {"disc": np.pi, "ring": 0.75 * np.pi, "square": 2.0, "triangle": 0.75 * 3**0.5}.items():
        assert area[form] == pytest.approx([expected] * 5, rel=0.03), form


def test_colors_are_red_green_and_blue() -> None:
    assert [rgb_of(hue, 255, 255).tolist() for hue in (0, 60, 120)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_no_two_samples_have_the_same_seeds() -> None:
    seeds = [
        tuple(data.seeds_of(record))
        for split in ("train", "val")
        for data_seed in (0, 1)
        for data in [Shapes(split=split, classes=CLASSES, data_seed=data_seed, train_images=9, val_images=9)]
        for record in data.records
    ]
    assert len(set(seeds)) == len(seeds) == 36

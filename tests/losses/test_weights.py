"""Class weights against their definitions on small label maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segtrain.errors import ConfigError, DataError
from segtrain.losses.weights import class_weights, listed_class_weights


def counts(images: list[list[int]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels per class, and all pixels of the images that contain it."""
    pixels, of_images = torch.zeros(2, num_classes, dtype=torch.int64)
    for image in images:
        labels = [label for label in image if label != 255]
        for label in labels:
            pixels[label] += 1
        for label in set(labels):
            of_images[label] += len(image)
    return pixels, of_images


def test_median_frequency_is_over_the_images_that_hold_the_class() -> None:
    images = [[0, 0, 0, 1, 255, 255], [0, 0, 1, 1], [2, 0, 0, 0, 0, 0, 0, 0]]
    # Unlabelled ones count. Class 0: 12 of 18 pixels, 1: 3 of the 10 in images 1 and 2, 2: 1 of the 8 in image 3.
    frequency = np.array([12 / 18, 3 / 10, 1 / 8])
    found = class_weights("median_frequency", *counts(images, 3))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx((np.median(frequency) / frequency).tolist())


def test_median_of_an_even_number_of_classes_is_between_the_middle_two() -> None:
    found = class_weights("median_frequency", torch.tensor([1, 3]), torch.tensor([4, 4]))
    assert found.tolist() == pytest.approx([2.0, 2 / 3])


def test_equally_frequent_classes_weigh_the_same() -> None:
    pixels = torch.tensor([50, 50, 50])
    assert class_weights("median_frequency", pixels, pixels * 3).tolist() == [1.0, 1.0, 1.0]
    assert class_weights("auto", pixels, pixels).unique().numel() == 1


def test_auto_is_enets_formula() -> None:
    found = class_weights("auto", torch.tensor([90, 9, 1]), torch.tensor([100, 60, 20]))
    assert found.tolist() == pytest.approx([1 / math.log(1.02 + share) for share in (0.9, 0.09, 0.01)])


@pytest.mark.parametrize("scheme", ["auto", "median_frequency"])
def test_an_absent_class_weighs_1_and_changes_no_other(scheme: str) -> None:
    pixels, of_images = torch.tensor([90, 9, 1]), torch.tensor([100, 100, 50])
    alone = class_weights(scheme, pixels, of_images)
    zero = torch.zeros(1, dtype=torch.int64)
    found = class_weights(scheme, torch.cat([zero, pixels, zero]), torch.cat([zero, of_images, zero]))
    assert found.tolist() == [1.0, *alone.tolist(), 1.0]


@pytest.mark.parametrize("scheme", ["auto", "median_frequency"])
def test_rarer_classes_weigh_more_also_beyond_what_float32_counts(scheme: str) -> None:
    pixels = torch.tensor([2**40, 2**40 - 2**18, 2**30, 1])
    found = class_weights(scheme, pixels, torch.full((4,), 2**41)).tolist()
    assert found == sorted(found)
    assert found[2] > found[1]
    assert all(math.isfinite(weight) and weight > 0 for weight in found)


def test_data_without_labels_are_refused() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(DataError) as error:
        class_weights("auto", zeros, zeros)
    assert "no pixel of the training split is labelled" in str(error.value)
    assert "loss.class_weights=none" in str(error.value)


def test_listed_weights_are_taken_as_they_are() -> None:
    found = listed_class_weights([0, 0.25, 3], 3)
    assert found.tolist() == [0.0, 0.25, 3.0]
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "2 class weights are listed, the data have 3 classes"),
        ([1.0, -2.0, 1.0], "negative or not finite"),
        ([1.0, math.nan, 1.0], "negative or not finite"),
        ([1.0, math.inf, 1.0], "negative or not finite"),
        ([0.0, 0.0, 0.0], "all class weights are 0"),
    ],
)
def test_listed_weights_that_cannot_be_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        listed_class_weights(weights, 3)
    assert message in str(error.value)
    assert "3 finite weights of at least 0" in str(error.value)
    assert "loss.class_weights=none" in str(error.value)

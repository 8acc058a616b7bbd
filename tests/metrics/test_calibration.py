"""Calibration against a count pixel by pixel, and temperatures that are known beforehand."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch

from segtrain.errors import NonFiniteError
from segtrain.metrics.base import Judged
from segtrain.metrics.calibration import BINS, GRID, Calibration, sampling_stride
from segtrain.types import Record


def judged(logits: torch.Tensor, target: np.ndarray, name: str = "one") -> Judged:
    prediction = logits.argmax(0).numpy().astype(np.uint8)
    image = np.zeros((*target.shape, 3), np.uint8)
    return Judged(logits, prediction, target.astype(np.uint8), image, Record(name), 0)


def calibrated(seed: int, shape: tuple[int, int] = (80, 90), classes: int = 5) -> tuple[torch.Tensor, np.ndarray]:
    """Logits, and labels drawn with just the probabilities that the logits say."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (classes, *shape))
    likely = np.exp(logits) / np.exp(logits).sum(0)
    drawn = (generator.random(shape) > likely.cumsum(0)).sum(0).clip(0, classes - 1)
    return torch.from_numpy(logits).float(), drawn.astype(np.uint8)


def test_bins_and_error_against_a_count_pixel_by_pixel() -> None:
    logits, target = calibrated(0, (9, 70))
    target[3] = 255
    found = Calibration()
    found.update(judged(logits * 2, target))
    scores = found.compute()["calibration"]
    pixels, right, confidence = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for row, column in np.argwhere(target != 255):
        likely = torch.softmax(2 * logits[:, row, column].double(), 0)
        place = next(place for place in range(BINS) if float(likely.max()) <= (place + 1) / BINS)
        pixels[place] += 1
        right[place] += int(likely.argmax()) == target[row, column]
        confidence[place] += float(likely.max())
    assert [one["pixels"] for one in scores["bins"]] == pixels.tolist()
    assert scores["pixels"] == pixels.sum() == 560
    for place, one in enumerate(scores["bins"]):
        assert (one["low"], one["high"]) == (place / BINS, (place + 1) / BINS)
        if pixels[place]:
            assert one["accuracy"] == pytest.approx(right[place] / pixels[place], rel=1e-12)
            assert one["confidence"] == pytest.approx(confidence[place] / pixels[place], rel=1e-5)
        else:
            assert math.isnan(one["accuracy"])
    assert scores["ece"] == pytest.approx(np.abs(right - confidence).sum() / pixels.sum(), rel=1e-4)
    # All pixels of a small image are sampled, so that the sample's numbers are the image's.
    assert scores["sampled_pixels"] == 560
    assert scores["ece_of_sample"] == pytest.approx(scores["ece"], rel=1e-5)
    truth = torch.from_numpy(target.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(2 * logits[None].double(), truth[None], ignore_index=255)
    assert scores["nll"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    metric = Calibration()
    for seed in range(4):
        logits, target = calibrated(seed, (160, 170))
        metric.update(judged(logits * temperature, target))
    scores = metric.compute()["calibration"]
    assert scores["temperature"] == pytest.approx(temperature, rel=0.02)
    assert abs(math.log(scores["temperature_of_bins"] / scores["temperature"])) <= 0.5001 * math.log(1.03)
    assert not scores["temperature_at_limit"]
    assert scores["ece_at_temperature"] < 0.015
    if temperature != 1.0:
        assert scores["ece"] > 3 * scores["ece_at_temperature"]
        assert scores["nll"] > scores["nll_at_temperature"]


def test_the_fit_is_the_least_likelihood_of_the_sample() -> None:
    logits, target = calibrated(1, (40, 50))
    metric = Calibration()
    metric.update(judged(logits * 1.7, target))
    truth = torch.from_numpy(target.astype(np.int64))[None]
    fine = np.exp(np.linspace(math.log(1.2), math.log(2.4), 2000))
    nll = [float(torch.nn.functional.cross_entropy(1.7 * logits[None].double() / value, truth)) for value in fine]
    assert metric.compute()["calibration"]["temperature"] == pytest.approx(fine[int(np.argmin(nll))], rel=2e-3)


def test_bins_at_temperature_are_those_of_the_scaled_logits() -> None:
    logits, target = calibrated(2, (40, 50))
    metric = Calibration()
    metric.update(judged(logits * 2.5, target))
    scores = metric.compute()["calibration"]
    scaled = Calibration()
    scaled.update(judged(logits * 2.5 / scores["temperature_of_bins"], target))
    direct = scaled.compute()["calibration"]
    assert scores["ece_at_temperature"] == pytest.approx(direct["ece"], rel=1e-3)
    moved = [abs(a["pixels"] - b["pixels"]) for a, b in zip(scores["bins_at_temperature"], direct["bins"], strict=True)]
    assert sum(moved) <= 2  # a confidence on the edge of two bins may round into the other


@pytest.mark.parametrize(("sign", "limit"), [(1, GRID[0]), (-1, GRID[-1])])
def test_a_temperature_beyond_the_grid_is_said_to_be_no_fit(sign: int, limit: float) -> None:
    # Always right: sharper is always better. Always wrong: flatter is.
    target = np.zeros((10, 10), np.uint8)
    logits = torch.zeros(3, 10, 10)
    logits[0] = sign * 1.0
    metric = Calibration()
    metric.update(judged(logits, target))
    scores = metric.compute()["calibration"]
    assert scores["temperature_at_limit"]
    assert scores["temperature"] == pytest.approx(limit)


@pytest.mark.parametrize("pixels", [1, 5, 4095, 4096, 8191, 8192, 12287, 12288, 20480, 187_500, 2_000_000])
def test_enough_pixels_are_sampled_and_never_every_column_alike(pixels: int) -> None:
    stride = sampling_stride(pixels, 4096)
    taken = len(range(0, pixels, stride))
    assert min(pixels, 4096) <= taken < 3 * 4096
    assert stride % 2 == 1


def test_a_large_image_counts_by_its_pixels_and_not_by_its_sample() -> None:
    large, small = torch.zeros(5, 130, 130), torch.zeros(5, 20, 20)
    large[0] = small[0] = 4.0
    metric = Calibration(samples=400)
    metric.update(judged(large, np.zeros((130, 130))))
    metric.update(judged(small, np.ones((20, 20))))
    scores = metric.compute()["calibration"]
    # About as many pixels of either image are sampled, but the small one is wrong in 400 of 17,300 pixels.
    assert 800 <= scores["sampled_pixels"] < 1700
    confidence = math.exp(4) / (math.exp(4) + 4)
    assert scores["ece"] == pytest.approx(16_900 / 17_300 - confidence, rel=1e-4)
    assert scores["ece_of_sample"] == pytest.approx(scores["ece"], rel=0.01)
    assert scores["nll"] == pytest.approx(-math.log(confidence) + 4 * 400 / 17_300, rel=0.01)


def test_order_ranks_and_void_change_nothing() -> None:
    images = [judged(*calibrated(seed, (20, 30))) for seed in range(5)]
    void = judged(torch.full((5, 4, 4), math.nan), np.full((4, 4), 255))
    whole, other, first, second = (Calibration() for _ in range(4))
    for image in images:
        whole.update(image)
    for image in [*reversed(images), void]:
        other.update(image)
    for place, image in enumerate(images):
        (first if place < 2 else second).update(image)
    second.merge(pickle.loads(pickle.dumps(first.state())))
    expected = json.dumps(whole.compute())
    assert json.dumps(other.compute()) == json.dumps(second.compute()) == expected


def test_nothing_counted_is_nan() -> None:
    scores = Calibration().compute()["calibration"]
    assert all(math.isnan(scores[name]) for name in ("ece", "temperature", "ece_at_temperature", "nll"))
    assert scores["pixels"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    logits, target = calibrated(0, (6, 7))
    logits[2, 3, 4] = value
    metric = Calibration()
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite") as error:
        metric.update(judged(logits, target, "street_7"))
    assert error.value.where == "street_7"
    assert not metric.sums["bins"].any()


def test_a_true_class_of_no_probability_is_an_error() -> None:
    logits, target = calibrated(0, (6, 7))
    logits[int(target[3, 4]), 3, 4] = -math.inf
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        Calibration().update(judged(logits, target))

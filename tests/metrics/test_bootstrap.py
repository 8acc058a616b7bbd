"""Intervals that hold what they promise, tests that find a difference and do not invent one, files that come back."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.errors import DataError
from segtrain.metrics.base import Judged
from segtrain.metrics.bootstrap import PerImageCounts, holm, intervals, paired
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.types import Record

CLASSES = ["sky", "road", "tree"]


def simulated(images: int, seed: int, skill: float = 0.0, classes: int = 3, noise: int = 0) -> PerImageCounts:
    """Images with shares of classes and shares of errors of their own; `skill` takes that many errors away."""
    generator = np.random.default_rng(seed)
    more = np.random.default_rng(1000 + noise)
    counts = PerImageCounts(CLASSES[:classes])
    for place in range(images):
        target = generator.multinomial(2000, generator.dirichlet([1.5] * classes))
        errors = generator.beta(2, 6, classes) * (1 - skill)
        if noise:
            errors = np.clip(errors + more.normal(0, 0.02, classes), 0, 1)
        matrix = np.zeros((classes, classes), np.int64)
        for index in range(classes):
            wrong = round(target[index] * errors[index])
            others = [other for other in range(classes) if other != index]
            matrix[index, others] = np.bincount(np.arange(wrong) % len(others), minlength=len(others))
            matrix[index, index] = target[index] - wrong
        counts.add(f"image {place:04d}", matrix)
    return counts


def whole(counts: PerImageCounts) -> ConfusionMatrix:
    matrix = ConfusionMatrix(len(counts.classes))
    for target, prediction, count in (row for pairs in counts.images.values() for row in pairs.T):
        matrix.counts[target, prediction] += count
    return matrix


def judged(name: str, seed: int) -> Judged:
    target, prediction = np.random.default_rng(seed).integers(0, 3, (2, 8, 9)).astype(np.uint8)
    target[0] = 255
    return Judged(torch.zeros(1), prediction, target, np.zeros((8, 9, 3), np.uint8), Record(name), seed)


def test_the_sums_are_those_of_each_image() -> None:
    counts = PerImageCounts(CLASSES)
    for place in (2, 0, 1):
        counts.update(judged(f"image {place}", place))
    assert counts.names == ["image 0", "image 1", "image 2"]
    for place in range(3):
        one = judged("", place)
        labelled = one.target != 255
        for index in range(3):
            true, found = one.target == index, (one.prediction == index) & labelled
            assert counts.sums()[:, place, index].tolist() == [(true & found).sum(), true.sum(), found.sum()]


def test_the_middle_of_the_intervals_is_the_dataset_score() -> None:
    counts = simulated(80, 0)
    found, scores = intervals(counts, resamples=500), whole(counts).compute()
    assert found["images"] == 80
    assert (found["level"], found["resamples"]) == (0.95, 500)
    scored = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
    for name, value in scored.items():
        low, high = found[name]
        assert low < value < high
        assert (low + high) / 2 == pytest.approx(value, abs=0.005)
        assert 0.01 < high - low < 0.1
    for name, value in zip(CLASSES, scores.iou, strict=True):
        assert found["iou"][name][0] < value < found["iou"][name][1]


def test_intervals_against_draws_written_out() -> None:
    counts = simulated(30, 1)
    matrices = np.zeros((30, 3, 3))
    for matrix, name in zip(matrices, counts.names, strict=True):
        target, prediction, count = counts.images[name]
        matrix[target, prediction] = count
    generator = np.random.default_rng(7)
    drawn = []
    for _ in range(4000):
        total = matrices[generator.choice(30, 30)].sum(0)
        right = total.diagonal()
        drawn.append(np.mean(right / (total.sum(0) + total.sum(1) - right)))
    expected = np.quantile(drawn, [0.025, 0.975])
    found = intervals(counts, resamples=4000, seed=3)["miou"]
    assert np.abs(found - expected).max() < 0.06 * (expected[1] - expected[0])


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    # The truth is the score of very many images; each trial sees 80 of them.
    truth = whole(simulated(8000, 10**6)).miou()
    trials, hits = 150, 0
    for seed in range(trials):
        low, high = intervals(simulated(80, seed), resamples=300, seed=seed)["miou"]
        hits += low <= truth <= high
    assert 0.90 <= hits / trials <= 0.99


def test_a_higher_level_is_wider_and_the_seed_decides() -> None:
    counts = simulated(40, 0)
    narrow, wide = (intervals(counts, resamples=400, level=level)["miou"] for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert intervals(counts, resamples=400, seed=1) == intervals(counts, resamples=400, seed=1)
    assert intervals(counts, resamples=400, seed=1) != intervals(counts, resamples=400, seed=2)


def test_a_class_that_is_nowhere_has_no_interval() -> None:
    counts = PerImageCounts([*CLASSES, "never"])
    for place in range(20):
        counts.update(judged(f"image {place}", place))
    found = intervals(counts, resamples=50)
    assert all(math.isnan(value) for value in found["iou"]["never"])
    assert all(math.isfinite(value) for value in [*found["miou"], *found["iou"]["sky"]])
    tests = paired(counts, counts, resamples=50)
    assert math.isnan(tests["iou"]["never"]["p_holm"])
    assert tests["iou"]["sky"]["p_holm"] == 1
    empty = intervals(PerImageCounts(CLASSES), resamples=10)
    assert empty["images"] == 0
    assert all(math.isnan(value) for value in empty["miou"])


def test_a_rare_class_is_scored_only_where_it_was_drawn() -> None:
    counts = PerImageCounts(CLASSES)
    for place in range(10):
        counts.add(f"image {place}", np.diag([50, 50, 0]))
    counts.add("image rare", np.array([[50, 0, 0], [0, 50, 0], [0, 0, 7]]))
    found = intervals(counts, resamples=300)
    # Where the image was not drawn, tree is nowhere; as 0 it would pull the interval down.
    assert found["iou"]["tree"] == [1, 1]
    assert found["miou"] == [1, 1]


def test_identical_runs_do_not_differ() -> None:
    found = paired(simulated(50, 0), simulated(50, 0), resamples=300)
    for one in (found["miou"], found["pixel_accuracy"], *found["iou"].values()):
        assert (one["difference"], one["interval"], one["p"]) == (0.0, [0.0, 0.0], 1.0)
        assert one["a"] == one["b"]


def test_a_clear_improvement_is_found_in_its_direction() -> None:
    worse, better = simulated(60, 0), simulated(60, 0, skill=0.1)
    found = paired(worse, better, resamples=2000)
    miou = found["miou"]
    assert miou["p"] < 0.01
    assert miou["difference"] == pytest.approx(whole(better).miou() - whole(worse).miou(), rel=1e-12)
    assert 0 < miou["interval"][0] < miou["difference"] < miou["interval"][1]
    assert found["images"] == 60
    for one in found["iou"].values():
        assert one["p"] <= one["p_holm"] < 0.01
    back = paired(better, worse, resamples=2000)["miou"]
    assert back["difference"] == -miou["difference"]
    assert back["p"] == miou["p"]
    # Paired draws see it although the intervals of the two overlap.
    assert intervals(worse)["miou"][1] > intervals(better)["miou"][0]


def test_equal_skill_is_called_different_as_often_as_chance_allows() -> None:
    runs = 120
    p = [
        paired(simulated(60, seed, noise=1 + seed), simulated(60, seed, noise=5000 + seed), resamples=200)["miou"]["p"]
        for seed in range(runs)
    ]
    assert sum(one < 0.05 for one in p) / runs < 0.12
    assert sum(one < 0.5 for one in p) / runs == pytest.approx(0.5, abs=0.2)


def test_p_has_its_least_value_at_two_in_the_draws() -> None:
    found = paired(simulated(40, 0), simulated(40, 0, skill=0.9), resamples=99)
    assert found["miou"]["p"] == pytest.approx(2 / 100)
    assert found["iou"]["sky"]["p_holm"] == pytest.approx(6 / 100)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        # Holm 1979: 0.01*4, 0.02*3, 0.03*2 and 0.04*1, of which none may be below the one before.
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.01, math.nan, 0.04], [0.02, math.nan, 0.04]),
        ([], []),
    ],
)
def test_holm(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected, nan_ok=True)


def test_other_images_or_classes_are_not_paired() -> None:
    a, b = simulated(5, 0), simulated(6, 0)
    b.images["later"] = b.images.pop("image 0002")
    with pytest.raises(ValueError, match=r"cannot be paired: only a has image 0002; only b has image 0005, later"):
        paired(a, b)
    with pytest.raises(ValueError, match="other classes: sky, road, tree; and sky, road"):
        paired(a, simulated(5, 0, classes=2))


def test_an_image_counted_twice_is_refused() -> None:
    counts = PerImageCounts(CLASSES)
    counts.update(judged("street", 0))
    with pytest.raises(ValueError, match="image street was counted twice"):
        counts.update(judged("street", 1))
    with pytest.raises(ValueError, match="image street was counted twice"):
        counts.merge(counts.state())


def test_a_file_comes_back_and_does_not_depend_on_order_or_ranks(tmp_path: Path) -> None:
    names = ["b/2", "a", "ü", "c", "none"]
    images = [judged(name, place) for place, name in enumerate(names)]
    images[-1].target[:] = 255
    whole, first, second = (PerImageCounts(CLASSES) for _ in range(3))
    for image in images:
        whole.update(image)
    for place, image in reversed(list(enumerate(images))):
        (first if place % 2 else second).update(image)
    first.merge(pickle.loads(pickle.dumps(second.state())))
    whole.save(tmp_path / "whole.npz")
    first.save(tmp_path / "parts.npz")
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()
    back = PerImageCounts.load(tmp_path / "whole.npz")
    assert back.classes == CLASSES
    assert back.names == sorted(names)
    assert np.array_equal(back.sums(), whole.sums())
    assert intervals(back, resamples=20) == intervals(whole, resamples=20)
    assert paired(back, first, resamples=20)["miou"]["p"] == 1
    json.dumps([intervals(back, resamples=20), paired(back, first, resamples=20)])


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 cut off", "other", "pickle"])
def test_a_file_that_is_no_such_file_is_an_error_of_the_data(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "per_image.npz"
    if content == "other":
        np.savez(path, classes=np.array(CLASSES))
    elif content == "pickle":
        simulated(2, 0).save(path)
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, "names": np.array([{}], dtype=object)})
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="counts per image cannot be read") as error:
        PerImageCounts.load(path)
    assert error.value.where == str(path)
    assert error.value.fix is not None


def test_no_images_are_a_file_too(tmp_path: Path) -> None:
    PerImageCounts(CLASSES).save(tmp_path / "none.npz")
    assert PerImageCounts.load(tmp_path / "none.npz").names == []

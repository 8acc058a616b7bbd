"""Boundary scores against published definitions' worked examples and a count pixel by pixel."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.metrics.base import Judged
from segtrain.metrics.boundary import BoundaryScores, band_width, boundary_f, inner_band, label_edges, outline
from segtrain.types import Record

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "metrics.json").read_text(encoding="utf-8"))


def judged(target: np.ndarray, prediction: np.ndarray, name: str = "one") -> Judged:
    target, prediction = target.astype(np.uint8), prediction.astype(np.uint8)
    image = np.zeros((*target.shape, 3), np.uint8)
    return Judged(torch.zeros(2, *target.shape), prediction, target, image, Record(name), 0)


def scored(metric: BoundaryScores, *pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    for target, prediction in pairs:
        metric.update(judged(target, prediction))
    return metric.compute()["boundary"]


def disc(shape: tuple[int, int], row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def random_maps(seed: int, shape: tuple[int, int] = (24, 31), classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, a prediction like the target but for blobs of its own, and void here and there."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, classes, (2, 6, 8))
    target, other = (np.kron(one, np.ones((4, 4), int))[: shape[0], : shape[1]].astype(np.uint8) for one in coarse)
    prediction = np.where(generator.random(shape) < 0.9, np.roll(target, 1, axis=1), other).astype(np.uint8)
    target[disc(shape, 10, 12, 4)] = 255
    return target, prediction


@pytest.mark.parametrize("case", ["disc_in_image", "touches_border", "cityscapes_ratio"])
def test_boundary_iou_of_the_worked_examples(case: str) -> None:
    golden = GOLDEN["boundary_iou"][case]
    shape, ratio = tuple(golden["size_hw"]), golden["dilation_ratio"]
    target, prediction = disc(shape, *golden["gt_disc_cy_cx_r"]), disc(shape, *golden["pred_disc"])
    width = band_width(shape, ratio)
    assert width == golden["d"]
    assert inner_band(target, width).sum() == golden["gt_band_pixels"]
    assert inner_band(prediction, width).sum() == golden["pred_band_pixels"]
    metric = BoundaryScores(["background", "disc"], dilation_ratio=ratio)
    scores = scored(metric, (target, prediction))
    assert metric.sums["band"][:, 1].tolist() == [golden["intersection"], golden["union"]]
    assert scores["iou"]["disc"] == pytest.approx(golden["boundary_iou"], rel=1e-15)
    assert scores["min_iou"]["disc"] == pytest.approx(min(golden["boundary_iou"], golden["mask_iou"]), rel=1e-15)


def test_the_lesser_of_mask_and_boundary_iou_counts() -> None:
    shape = (100, 100)
    small, large = np.zeros((2, *shape), dtype=bool)
    small[5:15, 5:15] = large[40:80, 40:80] = True
    # An invented square of 40x40 beside a found one of 10x10: with bands of one pixel their outlines are compared.
    scores = scored(BoundaryScores(["rest", "square"], dilation_ratio=0.005), (small, small | large))
    assert scores["iou"]["square"] == 36 / (36 + 156)
    assert scores["min_iou"]["square"] == 100 / 1700
    # A hole of one pixel costs the mask little and its outline more.
    hole = large.copy()
    hole[60, 60] = False
    scores = scored(BoundaryScores(["rest", "square"], dilation_ratio=0.005), (large, hole))
    assert scores["min_iou"]["square"] == scores["iou"]["square"] == 156 / (156 + 8)


@pytest.mark.parametrize("theta", ["0.7500", "1.0000", "2.0000", "3.0000"])
def test_boundary_f_of_the_worked_example(theta: str) -> None:
    golden = GOLDEN["bf"]
    shape = tuple(golden["size_hw"])
    target, prediction = disc(shape, *golden["gt_disc"]), disc(shape, *golden["pred_disc"])
    assert outline(target).sum() == golden["n_gt_edge"]
    assert outline(prediction).sum() == golden["n_pred_edge"]
    assert boundary_f(target, prediction, float(theta)) == pytest.approx(golden["per_theta"][theta]["bf"], rel=1e-14)
    # The same through the metric, whose sums have a precision of twelve digits; 0.75 % of 100 px are 0.75 px.
    metric = BoundaryScores(["background", "disc"], f_tolerance=float(theta) / 100)
    scores = scored(metric, (target, prediction))
    assert scores["f"]["disc"] == pytest.approx(golden["per_theta"][theta]["bf"], abs=1e-11)
    assert scores["mean_f"] == pytest.approx((scores["f"]["disc"] + scores["f"]["background"]) / 2, abs=1e-11)


@pytest.mark.parametrize("band", ["void", "edges"])
def test_trimap_curves_of_the_worked_example(band: Any) -> None:
    golden = GOLDEN["trimap"][f"{band.removesuffix('s')}_band"]
    shape = tuple(GOLDEN["trimap"]["size_hw"])
    target, prediction = disc(shape, 12, 16, 7).astype(np.uint8), disc(shape, 12, 18, 8)
    if band == "void":
        target[disc(shape, 12, 16, 8) & ~disc(shape, 12, 16, 6)] = 255
    metric = BoundaryScores(["background", "disc"], radii=(1, 2, 4, 8))
    curve = scored(metric, (target, prediction))["trimap"]
    assert curve["band"] == band
    assert curve["radius"] == [1, 2, 4, 8]
    for place, radius in enumerate(("1", "2", "4", "8")):
        assert curve["pixels"][place] == golden[radius]["pixels"]
        assert curve["miou"][place] == pytest.approx(golden[radius]["miou"], rel=1e-15)
        right = metric.sums[band][place].trace() / golden[radius]["pixels"]
        assert curve["pixel_accuracy"][place] == pytest.approx(right, rel=1e-15)


def brute_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels from which a square of `width` reaches outside the mask or the image."""
    found = np.zeros(mask.shape, dtype=bool)
    for row, column in np.argwhere(mask):
        top, left = row - width, column - width
        bottom, right = row + width + 1, column + width + 1
        inside = top >= 0 and left >= 0 and bottom <= mask.shape[0] and right <= mask.shape[1]
        found[row, column] = not (inside and mask[top:bottom, left:right].all())
    return found


def brute_f(target: np.ndarray, prediction: np.ndarray, tolerance: float) -> float:
    def edge(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        found = []
        for row, column in np.argwhere(mask).tolist():
            around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            if any(0 <= y < height and 0 <= x < width and not mask[y, x] for y, x in around):
                found.append((row, column))
        return found

    def share(of: list[tuple[int, int]], to: list[tuple[int, int]]) -> float:
        return sum(any(math.dist(one, two) <= tolerance for two in to) for one in of) / len(of) if of else 0.0

    true, found = edge(target), edge(prediction)
    if not true and not found:
        return math.nan
    precision, recall = share(found, true), share(true, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_random_maps_against_a_count_pixel_by_pixel(seed: int) -> None:
    pairs = [random_maps(seed * 10 + more) for more in range(2)]
    names = ["a", "b", "c", "d", "never"]
    metric = BoundaryScores(names, dilation_ratio=0.05, f_tolerance=0.04, radii=(1, 3))
    scores = scored(metric, *pairs)
    diagonal = math.hypot(24, 31)
    image_f, every_f = [], {name: [] for name in names}
    bands = np.zeros((5, 2), int)
    for target, prediction in pairs:
        found = []
        for index, name in enumerate(names):
            true, drawn = target == index, (prediction == index) & (target != 255)
            true_band, drawn_band = brute_band(true, round(0.05 * diagonal)), brute_band(drawn, round(0.05 * diagonal))
            bands[index] += ((true_band & drawn_band).sum(), (true_band | drawn_band).sum())
            if true.any() or drawn.any():
                found.append(brute_f(true, drawn, 0.04 * diagonal))
                every_f[name].append(found[-1])
        image_f.append(sum(found) / len(found))
    for index, name in enumerate(names[:4]):
        assert scores["iou"][name] == bands[index, 0] / bands[index, 1]
        assert scores["f"][name] == pytest.approx(sum(every_f[name]) / len(every_f[name]), abs=1e-11)
    assert math.isnan(scores["iou"]["never"])
    assert math.isnan(scores["f"]["never"])
    assert scores["mean_f"] == pytest.approx(sum(image_f) / 2, abs=1e-11)
    assert scores["mean_iou"] == pytest.approx(np.mean([scores["iou"][name] for name in names[:4]]))


@pytest.mark.parametrize("band", ["void", "edges"])
def test_the_trimap_curve_of_random_maps_against_a_count_pixel_by_pixel(band: Any) -> None:
    pairs = [random_maps(seed) for seed in (3, 4)]
    radii = (1, 2, 5)
    curve = scored(BoundaryScores(list("abcd"), radii=radii, trimap=band), *pairs)["trimap"]
    for place, radius in enumerate(radii):
        right = total = 0
        for target, prediction in pairs:
            centres = np.argwhere(target == 255 if band == "void" else label_edges(target))
            for row, column in np.argwhere(target != 255):
                if (((centres - (row, column)) ** 2).sum(1) <= radius**2).any():
                    total += 1
                    right += target[row, column] == prediction[row, column]
        assert curve["pixels"][place] == total
        assert curve["pixel_accuracy"][place] == pytest.approx(right / total, rel=1e-15)


def test_edges_lie_between_labelled_pixels_only() -> None:
    target = np.array([[0, 0, 1, 255, 2], [0, 0, 1, 255, 2]])
    assert label_edges(target).tolist() == [[False, True, True, False, False]] * 2
    target = np.array([[0, 0], [3, 0]])
    assert label_edges(target).tolist() == [[True, False], [True, True]]


def test_what_is_drawn_inside_the_void_changes_nothing() -> None:
    target = disc((60, 80), 30, 40, 18).astype(np.uint8)
    ring = disc((60, 80), 30, 40, 20) & ~disc((60, 80), 30, 40, 15)
    target[ring] = 255
    generator = np.random.default_rng(0)
    results = []
    for radius in (15, 18, 20):
        prediction = disc((60, 80), 30, 40, radius).astype(np.uint8)
        prediction[ring] ^= generator.integers(0, 2, ring.sum(), dtype=np.uint8)
        results.append(scored(BoundaryScores(["background", "disc"]), (target, prediction)))
    assert results[0] == results[1] == results[2]
    assert results[0]["mean_iou"] == results[0]["mean_f"] == results[0]["mean_min_iou"] == 1
    assert results[0]["trimap"]["miou"] == [1] * 6


def test_a_class_without_an_outline_is_left_out_of_f() -> None:
    full, half = np.zeros((20, 20)), np.zeros((20, 20))
    half[:, 10:] = 1
    names = ["a", "b"]
    alone = scored(BoundaryScores(names), (full, full))
    assert math.isnan(alone["mean_f"])
    assert alone["iou"]["a"] == 1  # the image's border bounds the band, though it is no edge
    assert math.isnan(alone["trimap"]["miou"][0])
    assert alone["trimap"]["pixels"] == [0] * 6
    both = scored(BoundaryScores(names), (full, full), (half, half), (half, full))
    assert both["f"] == {"a": 0.5, "b": 0.5}
    assert both["mean_f"] == 0.5


def test_an_image_without_labels_counts_nothing() -> None:
    target, prediction = random_maps(0)
    void = np.full(target.shape, 255)
    names = list("abcd")
    alone = scored(BoundaryScores(names, trimap="edges"), (target, prediction))
    assert scored(BoundaryScores(names, trimap="edges"), (void, prediction), (target, prediction)) == alone


def test_order_and_ranks_change_nothing() -> None:
    pairs = [random_maps(seed) for seed in range(6)]
    make: Callable[[], BoundaryScores] = lambda: BoundaryScores(list("abcd"))  # noqa: E731
    whole = scored(make(), *pairs)
    assert scored(make(), *reversed(pairs)) == whole
    first, second = make(), make()
    scored(first, *pairs[:2])
    scored(second, *pairs[2:])
    second.merge(first.state())
    assert second.compute()["boundary"] == whole
    json.dumps(whole)  # plain numbers only


@pytest.mark.parametrize("radii", [(), (2, 1), (1, 1)])
def test_radii_that_do_not_ascend_are_refused(radii: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        BoundaryScores(["a", "b"], radii=radii)

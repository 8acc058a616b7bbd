"""Panoptic quality is panopticapi's, whatever the segments, crowds and voids, in any order and on any rank."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.errors import DataError
from segtrain.metrics.panoptic import PanopticQuality
from segtrain.panoptic import Panoptic, Segment

CLASSES = ["tree", "bus", "cat"]
THINGS = {"bus", "cat"}

# The worked example, whose counts panopticapi confirms. Rectangles `id, (y0, x0, y1, x1)` are painted in order.
TRUE_RECTS = [
    (1, (0, 0, 12, 6)), (2, (0, 6, 6, 12)), (3, (6, 6, 12, 9)), (4, (6, 9, 12, 12)), (0, (0, 10, 2, 12)),
    (5, (12, 0, 16, 6)), (6, (12, 6, 16, 12)),
]  # fmt: skip
TRUE_SEGMENTS = {1: (10, False), 2: (20, False), 3: (20, False), 4: (20, True), 5: (11, False), 6: (30, False)}
FOUND_RECTS = [
    (101, (0, 0, 12, 7)), (102, (0, 7, 6, 12)), (103, (6, 7, 10, 9)), (104, (6, 9, 12, 12)), (105, (12, 0, 16, 2)),
    (106, (12, 2, 16, 12)), (107, (0, 10, 2, 12)), (108, (10, 7, 12, 9)),
]  # fmt: skip
FOUND_SEGMENTS = {101: 10, 102: 20, 103: 20, 104: 20, 105: 11, 106: 30, 107: 21, 108: 20}
CATEGORIES = [10, 11, 20, 21, 30]
PER_CATEGORY = {  # tp, fp, fn, sq, rq, pq
    10: (1, 0, 0, 0.8571428571428571, 1.0, 0.8571428571428571),
    11: (0, 1, 1, 0.0, 0.0, 0.0),
    20: (1, 2, 1, 0.8125, 0.4, 0.325),
    30: (1, 0, 0, 0.6, 1.0, 0.6),
}


def painted(rects: list[tuple[int, tuple[int, int, int, int]]]) -> np.ndarray:
    ids = np.zeros((16, 12), np.int32)
    for number, (y0, x0, y1, x1) in rects:
        ids[y0:y1, x0:x1] = number
    return ids


def example() -> tuple[Panoptic, Panoptic]:
    place = {category: n for n, category in enumerate(CATEGORIES)}
    truth = [Segment(n, place[c], thing=c != 30, crowd=crowd) for n, (c, crowd) in TRUE_SEGMENTS.items()]
    found = [Segment(n, place[c], thing=c != 30) for n, c in FOUND_SEGMENTS.items()]
    return Panoptic(painted(FOUND_RECTS), found), Panoptic(painted(TRUE_RECTS), truth)


def test_the_worked_example_has_the_figures_of_panopticapi() -> None:
    quality = PanopticQuality([str(c) for c in CATEGORIES], {"10", "11", "20", "21"})
    quality.update(*example())
    scores = quality.compute()
    for category, (tp, fp, fn, sq, rq, pq) in PER_CATEGORY.items():
        name = str(category)
        assert [scores[f"{count}_per_class"][name] for count in ("tp", "fp", "fn")] == [tp, fp, fn]
        for score, expected in (("sq", sq), ("rq", rq), ("pq", pq)):
            assert scores[f"{score}_per_class"][name] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(scores["pq_per_class"]["21"]), "found on void alone: not counted"
    assert scores["pq"] == pytest.approx(0.44553571428571426, abs=1e-12)
    assert scores["sq"] == pytest.approx(0.5674107142857143, abs=1e-12)
    assert scores["rq"] == pytest.approx(0.6, abs=1e-12)
    assert scores["classes_counted"] == 4
    things = [PER_CATEGORY[c] for c in (10, 11, 20)]
    for place, score in ((3, "sq"), (4, "rq"), (5, "pq")):
        assert scores[f"{score}_things"] == pytest.approx(sum(row[place] for row in things) / 3, abs=1e-12)
        assert scores[f"{score}_stuff"] == pytest.approx(PER_CATEGORY[30][place], abs=1e-12)
    assert (scores["classes_counted_things"], scores["classes_counted_stuff"]) == (3, 1)


def slow(pairs: list[tuple[Panoptic, Panoptic]]) -> dict[str, list[float]]:
    """Per class TP, FP, FN and the sum of IoU by the definition, pixel by pixel, with sets of coordinates."""
    counts = {name: [0.0] * len(CLASSES) for name in ("tp", "fp", "fn", "iou")}
    for found, true in pairs:
        pixels = list(product(range(true.size[0]), range(true.size[1])))
        of_true = {s.id: {p for p in pixels if true.ids[p] == s.id} for s in true.segments}
        of_found = {s.id: {p for p in pixels if found.ids[p] == s.id} for s in found.segments}
        void = {p for p in pixels if true.ids[p] == 0}
        matched_true, matched_found = set(), set()
        for t, f in product(true.segments, found.segments):
            if t.crowd or t.category != f.category:
                continue
            iou = len(of_true[t.id] & of_found[f.id]) / len(of_true[t.id] | (of_found[f.id] - void))
            if iou > 0.5:
                counts["tp"][t.category] += 1
                counts["iou"][t.category] += iou
                matched_true.add(t.id)
                matched_found.add(f.id)
        last_crowd = {s.category: of_true[s.id] for s in true.segments if s.crowd}
        for t in true.segments:
            counts["fn"][t.category] += not t.crowd and t.id not in matched_true
        for f in found.segments:
            ignored = of_found[f.id] & (void | last_crowd.get(f.category, set()))
            counts["fp"][f.category] += f.id not in matched_found and len(ignored) <= len(of_found[f.id]) / 2
    return counts


def cut(ids: np.ndarray, rng: np.random.Generator, crowds: bool) -> Panoptic:
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        category = int(rng.integers(3))
        crowd = crowds and category > 0 and rng.random() < 0.3
        segments.append(Segment(number, category, thing=category > 0, crowd=bool(crowd)))
    return Panoptic(ids, segments)


def scene(seed: int) -> tuple[Panoptic, Panoptic]:
    """A prediction that is the truth with some pixels and classes changed, so that IoUs lie on both sides of 1/2."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.repeat(rng.integers(0, 7, (3, 4)), 3, 0), 2, 1).astype(np.int32)
    truth = cut(ids, rng, crowds=True)
    other = np.where(rng.random(ids.shape) < rng.uniform(0, 0.6), rng.integers(0, 7, ids.shape), ids).astype(np.int32)
    same = {segment.id: segment.category for segment in truth.segments}
    found = cut(other, rng, crowds=False)
    kept = [
        Segment(s.id, same.get(s.id, s.category) if rng.random() < 0.7 else s.category, s.thing) for s in found.segments
    ]
    # Ids as COCO's, which fill three bytes.
    far = [Segment(s.id * 1_000_003, s.category, s.thing) for s in kept]
    return Panoptic(other * 1_000_003, far), truth


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_scene_counts_as_by_the_definition(seed: int) -> None:
    pairs = [scene(seed), scene(seed + 1)]
    quality = PanopticQuality(CLASSES, THINGS)
    for pair in pairs:
        quality.update(*pair)
    expected, scores = slow(pairs), quality.compute()
    for n, name in enumerate(CLASSES):
        tp, fp, fn, iou = (expected[count][n] for count in ("tp", "fp", "fn", "iou"))
        assert [scores[f"{count}_per_class"][name] for count in ("tp", "fp", "fn")] == [tp, fp, fn]
        if tp + fp + fn == 0:
            assert math.isnan(scores["pq_per_class"][name])
            continue
        assert scores["pq_per_class"][name] == pytest.approx(iou / (tp + fp / 2 + fn / 2), abs=1e-12)
        assert scores["sq_per_class"][name] == pytest.approx(iou / tp if tp else 0, abs=1e-12)
        product_of = scores["sq_per_class"][name] * scores["rq_per_class"][name]
        assert scores["pq_per_class"][name] == pytest.approx(product_of, abs=1e-12)


def test_the_scenes_have_what_the_rules_are_about() -> None:
    """The property above would be empty without crowds, voids and all three outcomes."""
    pairs = [scene(seed) for seed in range(60)]
    total = slow(pairs)
    assert min(min(total[name]) for name in ("tp", "fp", "fn")) > 0
    crowds = [[s.category for s in truth.segments if s.crowd] for _, truth in pairs]
    assert any(len(one) > len(set(one)) for one in crowds), "two crowds of one class"
    assert any((truth.ids == 0).any() for _, truth in pairs)


def test_of_two_crowds_the_last_one_listed_excuses_a_find() -> None:
    ids = np.array([[1, 1, 2, 2]], np.int32)
    found = Panoptic(np.array([[1, 1, 1, 0]], np.int32), [Segment(1, 1, True)])
    for order, invented in (((2, 1), 0), ((1, 2), 1)):
        truth = Panoptic(ids, [Segment(number, 1, True, crowd=True) for number in order])
        quality = PanopticQuality(CLASSES, THINGS)
        quality.update(found, truth)
        assert quality.counts["fp"] == [0, invented, 0]
        assert quality.counts["fn"] == [0, 0, 0], "a crowd is never missed"


def test_half_is_not_enough_in_any_rule() -> None:
    truth = Panoptic(np.array([[1, 1, 0, 0]], np.int32), [Segment(1, 1, True)])
    half = Panoptic(np.array([[1, 0, 0, 0]], np.int32), [Segment(1, 1, True)])
    quality = PanopticQuality(CLASSES, THINGS)
    quality.update(half, truth)
    assert [quality.counts[name][1] for name in ("tp", "fp", "fn")] == [0, 1, 1]
    on_void = Panoptic(np.array([[0, 1, 1, 0]], np.int32), [Segment(1, 2, True)])
    quality = PanopticQuality(CLASSES, THINGS)
    quality.update(on_void, truth)
    assert quality.counts["fp"] == [0, 0, 1], "exactly half of it on void: still false"


def test_ranks_and_order_change_no_bit() -> None:
    pairs = [scene(seed) for seed in range(40)]
    whole, backwards = PanopticQuality(CLASSES, THINGS), PanopticQuality(CLASSES, THINGS)
    for pair in pairs:
        whole.update(*pair)
    for pair in reversed(pairs):
        backwards.update(*pair)
    ranks = [PanopticQuality(CLASSES, THINGS) for _ in range(3)]
    for n, pair in enumerate(pairs):
        ranks[n % 3].update(*pair)
    for rank in ranks[:2]:
        ranks[2].merge(rank.state())
    assert whole.state() == backwards.state() == ranks[2].state()
    assert whole.compute() == ranks[2].compute()


def test_a_perfect_prediction_scores_one_and_nothing_scores_nan() -> None:
    quality = PanopticQuality(CLASSES, THINGS)
    assert math.isnan(quality.compute()["pq"])
    assert quality.compute()["classes_counted"] == 0
    truth = Panoptic(np.array([[1, 1, 5, 0]], np.int32), [Segment(1, 0, False), Segment(5, 1, True)])
    quality.update(truth, truth)
    scores = quality.compute()
    assert [scores[name] for name in ("pq", "sq", "rq", "pq_things", "pq_stuff")] == [1.0] * 5
    assert math.isnan(scores["pq_per_class"]["cat"])


@pytest.mark.parametrize(
    ("segments", "ids", "message"),
    [
        ([Segment(1, 0, False)], [[1, 2]], "that the list of segments has not: 2"),
        ([Segment(1, 0, False)], [[1, -3]], "that the list of segments has not: -3"),
        ([Segment(1, 0, False), Segment(2, 0, False)], [[1, 0]], "that no pixel has: 2"),
        ([Segment(1, 0, False), Segment(1, 1, True)], [[1, 1]], "several segments have the id 1"),
        ([Segment(0, 0, False)], [[0, 0]], "have the id 0"),
        ([Segment(2**24, 0, False)], [[2**24, 0]], "have the id 16777216"),
        ([Segment(1, 3, False)], [[1, 1]], "class index 3"),
        ([], [[0, 0, 0]], "1 pixels for a truth of 2x1|3x1 pixels for a truth of 2x1"),
    ],
)
def test_what_is_no_panoptic_image_is_refused_by_name(
    segments: list[Segment], ids: list[list[int]], message: str
) -> None:
    truth = Panoptic(np.zeros((1, 2), np.int32), [])
    quality = PanopticQuality(CLASSES, THINGS)
    with pytest.raises(DataError, match=message) as caught:
        quality.update(Panoptic(np.array(ids, np.int32), segments), truth, where="0001.png")
    assert caught.value.where == "0001.png"
    with pytest.raises(ValueError, match="dog"):
        PanopticQuality(CLASSES, {"dog"})

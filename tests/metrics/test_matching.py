"""Which detection is which object: by hand, and as COCO's evaluation matches at the same threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segtrain.instances import Detections, Instances
from segtrain.metrics.coco_ap import AveragePrecision
from segtrain.metrics.matching import Match, Matches, match

SIZE = (40, 60)


def stripes(*columns: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(columns), *SIZE, dtype=torch.uint8)
    for mask, (first, last) in zip(masks, columns, strict=True):
        mask[:, first:last] = 1
    return masks


def found(masks: Tensor, labels: list[int], scores: list[float]) -> Detections:
    return Detections(torch.zeros(len(masks), 4), torch.tensor(labels).long(), torch.tensor(scores), masks)


def true(masks: Tensor, labels: list[int], crowd: list[bool] | None = None) -> Instances:
    group = None if crowd is None else torch.tensor(crowd)
    return Instances.of(masks, torch.tensor(labels).long(), crowd=group)


def test_everything_found_is_perfect() -> None:
    masks = stripes((0, 10), (20, 40))
    matches = match(found(masks, [1, 2], [0.9, 0.8]), true(masks, [1, 2]))
    assert matches == Matches([Match(0, 0, 1.0), Match(1, 1, 1.0)], [], [], [])
    assert matches.quality == 1


def test_missed_invented_and_a_pair() -> None:
    truth = true(stripes((0, 10), (20, 30)), [1, 1])
    matches = match(found(stripes((0, 8), (40, 50)), [1, 1], [0.9, 0.8]), truth)
    assert matches == Matches([Match(0, 0, 0.8)], missed=[1], invented=[1], on_crowds=[])
    assert matches.quality == pytest.approx(0.8 / 2)


def test_the_likelier_of_two_takes_the_object() -> None:
    truth = true(stripes((0, 10)), [1])
    matches = match(found(stripes((0, 10), (0, 8)), [1, 1], [0.6, 0.7]), truth)
    assert matches.pairs == [Match(1, 0, 0.8)]
    assert matches.invented == [0]


def test_another_class_is_no_match() -> None:
    masks = stripes((0, 10))
    matches = match(found(masks, [2], [0.9]), true(masks, [1]))
    assert (matches.pairs, matches.missed, matches.invented) == ([], [0], [0])
    assert matches.quality == 0


def test_thresholds_decide_who_takes_part() -> None:
    truth, detections = true(stripes((0, 10)), [1]), found(stripes((0, 6)), [1], [0.4])
    assert match(detections, truth) == Matches([], [0], [], [])
    assert match(detections, truth, score=0.4).pairs == [Match(0, 0, 0.6)]
    assert match(detections, truth, score=0.4, iou=0.7).invented == [0]


def test_detections_on_a_crowd_are_neither() -> None:
    truth = true(stripes((0, 30), (0, 10)), [1, 1], [True, False])
    detections = found(stripes((0, 10), (12, 20), (14, 22), (40, 50)), [1, 1, 2, 1], [0.9, 0.8, 0.8, 0.7])
    matches = match(detections, truth)
    assert matches == Matches([Match(0, 1, 1.0)], [], invented=[2, 3], on_crowds=[1])
    only_crowd = match(found(stripes((0, 10)), [1], [0.9]), true(stripes((0, 30)), [1], [True]))
    assert math.isnan(only_crowd.quality)


def test_nothing_on_either_side() -> None:
    nothing, none = found(stripes(), [], []), Instances.none(*SIZE)
    assert math.isnan(match(nothing, none).quality)
    assert match(found(stripes((0, 9)), [1], [0.9]), none).invented == [0]
    assert match(nothing, true(stripes((0, 9)), [1])).missed == [0]


@pytest.mark.parametrize("seed", range(10))
def test_as_many_are_found_as_coco_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def some(count: int) -> Tensor:
        starts = generator.integers(0, 40, count)
        return stripes(*((int(at), int(at + generator.integers(5, 20))) for at in starts))

    truth = true(some(8), generator.integers(1, 3, 8).tolist(), (generator.random(8) < 0.2).tolist())
    detections = found(some(12), generator.integers(1, 3, 12).tolist(), generator.permutation(12).tolist())
    matches = match(detections, truth, score=0)
    metric = AveragePrecision(classes=["background", "a", "b"], boundary=False)
    metric.update(detections, truth, 0)
    recall = metric._verdict("mask").recall[0, :, 0, -1]  # at IoU 0.5, by class
    for label in (1, 2):
        pairs = sum(int(truth.labels[pair.truth]) == label for pair in matches.pairs)
        there = int(((truth.labels == label) & ~truth.crowd).sum())
        assert pairs / there == recall[label - 1]
    named = [pair.detection for pair in matches.pairs] + matches.invented + matches.on_crowds
    assert sorted(named) == list(range(12))
    assert len(matches.pairs) + len(matches.missed) == int((~truth.crowd).sum())

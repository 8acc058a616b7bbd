"""Kinds of errors on drawn cases, one for each rule, and against the rules written out pixel by pixel."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch

from segtrain.metrics.anatomy import (
    BOUNDARY_SLIP,
    CLASS_CONFUSION,
    INVENTED_REGION,
    KINDS,
    MISSED_REGION,
    RIGHT,
    ErrorAnatomy,
    closed,
    error_kinds,
    slip_radius,
)
from segtrain.metrics.base import Judged
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.types import Record

SHAPE = (60, 80)


def square(index: int, top: int, left: int, side: int, on: np.ndarray | None = None) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8) if on is None else on.copy()
    found[top : top + side, left : left + side] = index
    return found


def only_kind(target: np.ndarray, prediction: np.ndarray, radius: float = 2) -> int:
    """The one kind that every wrong pixel has."""
    kinds = error_kinds(target, prediction, radius)
    assert np.array_equal(kinds == RIGHT, (target == prediction) & (target != 255))
    assert np.array_equal(kinds == 255, target == 255)
    (kind,) = np.unique(kinds[(target != prediction) & (target != 255)])
    return int(kind)


@pytest.mark.parametrize(
    ("shift", "columns"),
    [(1, [True]), (2, [True, True]), (3, [False, True, False]), (4, [False] * 4)],
)
def test_an_edge_moved_by_no_more_than_the_radius_is_a_slip(shift: int, columns: list[bool]) -> None:
    kinds = error_kinds(square(1, 20, 20, 20), square(1, 20, 20 + shift, 20), 2)
    # Of an edge that moved by 3 only the column in the middle has both classes within 2 px. Rows far from corners:
    for row in range(23, 37):
        assert (kinds[row, 20 : 20 + shift] == BOUNDARY_SLIP).tolist() == columns
        assert (kinds[row, 40 : 40 + shift] == BOUNDARY_SLIP).tolist() == columns


def test_a_wrong_edge_needs_both_classes_at_hand() -> None:
    # A speck of class 1 beside nothing: class 1 is nowhere in the target, however near the background is.
    assert only_kind(square(0, 0, 0, 1), square(1, 30, 30, 2)) == INVENTED_REGION
    assert only_kind(square(1, 30, 30, 2), square(0, 0, 0, 1)) == MISSED_REGION


def test_a_region_called_by_another_name_is_a_confusion() -> None:
    assert only_kind(square(1, 20, 20, 20), square(2, 20, 20, 20)) == CLASS_CONFUSION
    # Found and a little too small: still the same region, but for its rim.
    kinds = error_kinds(square(1, 20, 20, 20), square(2, 22, 22, 16), 2)
    assert np.all(kinds[22:38, 22:38] == CLASS_CONFUSION)
    # With just half of it in common it is no longer the same: the target's was missed.
    half = square(2, 20, 20, 20)
    half[20:40, 30:40] = 0
    assert only_kind(square(1, 20, 20, 20), half, 0) == MISSED_REGION


def test_a_region_predicted_as_background_is_missed() -> None:
    assert only_kind(square(1, 20, 20, 20), square(0, 0, 0, 1)) == MISSED_REGION
    # A corner of it found: still missed, and what of the background was right does not matter.
    target, prediction = square(1, 20, 20, 20), square(1, 20, 20, 8)
    kinds = error_kinds(target, prediction, 0)
    assert set(np.unique(kinds[target != prediction])) == {MISSED_REGION}


def test_a_region_where_nothing_is_is_invented() -> None:
    assert only_kind(square(0, 0, 0, 1), square(1, 20, 20, 20)) == INVENTED_REGION


def test_half_found_is_neither_missed_nor_invented() -> None:
    target, prediction = square(1, 20, 20, 20), square(1, 20, 20, 20)
    prediction[20:40, 30:40] = 0
    assert only_kind(target, prediction, 0) == CLASS_CONFUSION  # just half of T: rule 5
    prediction[20, 29] = 0
    assert only_kind(target, prediction, 0) == MISSED_REGION


def test_regions_touch_at_corners() -> None:
    target, prediction = square(0, 0, 0, 1), square(0, 0, 0, 1)
    target[10:20, 10:20] = target[20:30, 20:30] = 1
    prediction[10:20, 10:20] = 1
    # One region in two squares of which one was found: half of it, so it is not missed.
    assert only_kind(target, prediction, 0) == CLASS_CONFUSION
    target[20:30, 20:30] = 0
    target[21:31, 21:31] = 1
    assert only_kind(target, prediction, 0) == MISSED_REGION


def test_only_labelled_pixels_count_for_overlaps() -> None:
    # The region's name is wrong; that it goes on in the void makes it no less the same region.
    target, prediction = square(1, 20, 20, 20), square(2, 10, 10, 45)
    target[(target == 0) & (prediction == 2)] = 255
    assert only_kind(target, prediction) == CLASS_CONFUSION


def test_the_radius_follows_the_image() -> None:
    assert slip_radius((60, 80)) == 2
    assert slip_radius((300, 400)) == pytest.approx(3.75)
    target, prediction = (np.zeros((600, 800), np.uint8) for _ in range(2))
    target[:, :400], prediction[:, :407] = 1, 1
    assert set(np.unique(error_kinds(target, prediction))) == {RIGHT, BOUNDARY_SLIP}
    assert only_kind(target, prediction, 2) == CLASS_CONFUSION  # both regions were mostly found: rule 5


def brute_regions(labels: np.ndarray) -> np.ndarray:
    ids = np.full(labels.shape, -1)
    for start in np.ndindex(*labels.shape):
        if ids[start] >= 0:
            continue
        ids[start] = name = ids.max() + 1
        stack = [start]
        while stack:
            row, column = stack.pop()
            for y in range(max(0, row - 1), min(labels.shape[0], row + 2)):
                for x in range(max(0, column - 1), min(labels.shape[1], column + 2)):
                    if ids[y, x] < 0 and labels[y, x] == labels[row, column]:
                        ids[y, x] = name
                        stack.append((y, x))
    return ids


def brute_kinds(target: np.ndarray, prediction: np.ndarray, radius: float) -> np.ndarray:
    labelled = target != 255
    kinds = np.where(labelled, RIGHT, 255)
    truth, drawn = brute_regions(target), brute_regions(prediction)
    for row, column in np.argwhere(labelled & (target != prediction)):
        own, found = target[row, column], prediction[row, column]

        def close(places: np.ndarray, row: int = row, column: int = column) -> bool:
            return any(math.dist(place, (row, column)) <= radius for place in np.argwhere(places))

        t = (truth == truth[row, column]) & labelled
        p = (drawn == drawn[row, column]) & labelled
        if close(closed(target) == found) and close(prediction == own):
            kinds[row, column] = BOUNDARY_SLIP
        elif (t & p).sum() / (t | p).sum() > 0.5:
            kinds[row, column] = CLASS_CONFUSION
        elif (prediction[t] == own).mean() < 0.5:
            kinds[row, column] = MISSED_REGION
        elif (target[p] == found).mean() < 0.5:
            kinds[row, column] = INVENTED_REGION
        else:
            kinds[row, column] = CLASS_CONFUSION
    return kinds


def random_maps(seed: int, shape: tuple[int, int] = (18, 22)) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 4, (2, 6, 6))
    target, other = (np.kron(one, np.ones((4, 4), int))[: shape[0], : shape[1]].astype(np.uint8) for one in coarse)
    renamed = np.array([0, 2, 1, 3], np.uint8)[np.roll(target, 1, axis=1)]
    prediction = np.choose(
        generator.integers(0, 3, (6, 6)).repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]],
        [np.roll(target, 1, axis=0), renamed, other],
    )
    target[generator.random(shape) < 0.1] = 255
    return target, prediction.astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_random_maps_against_the_rules_written_out(seed: int) -> None:
    target, prediction = random_maps(seed)
    for radius in (0.0, 1.5):
        assert np.array_equal(error_kinds(target, prediction, radius), brute_kinds(target, prediction, radius))


def test_every_kind_occurs_in_the_random_maps() -> None:
    # Else the comparison above would say nothing of it.
    seen = set().union(*(np.unique(error_kinds(*random_maps(seed), 1.5)).tolist() for seed in range(8)))
    assert seen == {RIGHT, *KINDS.values(), 255}


def anatomy(*pairs: tuple[np.ndarray, np.ndarray], classes: int = 4) -> ErrorAnatomy:
    metric = ErrorAnatomy([f"class {index}" for index in range(classes)])
    for place, (target, prediction) in enumerate(pairs):
        image = np.zeros((*target.shape, 3), np.uint8)
        metric.update(Judged(torch.zeros(1), prediction, target, image, Record(str(place)), place))
    return metric


def miou(*pairs: tuple[np.ndarray, np.ndarray]) -> float:
    matrix = ConfusionMatrix(4)
    for target, prediction in pairs:
        matrix.update(prediction, target)
    return matrix.miou()


def test_the_counts_and_the_gains_are_those_of_the_pixels() -> None:
    pairs = [random_maps(seed, (24, 24)) for seed in range(6)]
    found = anatomy(*pairs).compute()["anatomy"]
    kinds = [error_kinds(*pair) for pair in pairs]
    wrong = sum(int(((target != prediction) & (target != 255)).sum()) for target, prediction in pairs)
    assert sum(found["pixels"].values()) == wrong
    assert sum(found["share_of_errors"].values()) == pytest.approx(1)
    for name, kind in KINDS.items():
        assert found["pixels"][name] == sum(int((one == kind).sum()) for one in kinds)
        for index in range(4):
            count = sum(int(((one == kind) & (pair[0] == index)).sum()) for one, pair in zip(kinds, pairs, strict=True))
            assert found["by_class"][f"class {index}"][name] == count
        mended = [
            (target, np.where(one == kind, target, prediction))
            for one, (target, prediction) in zip(kinds, pairs, strict=True)
        ]
        assert found["gain"][name] == pytest.approx(miou(*mended) - miou(*pairs), abs=1e-12)
        assert sum(by[name] for by in found["by_size"].values()) == found["pixels"][name]


def test_the_size_is_that_of_the_targets_region() -> None:
    target = np.zeros((200, 300), np.uint8)
    target[:31, :31] = 1  # 961 px
    target[50:82, 50:82] = 1  # 1024 px
    target[100:196, 100:196] = 1  # 9216 px
    found = anatomy((target, np.zeros_like(target))).compute()["anatomy"]["by_size"]
    assert [found[size]["missed_region"] for size in ("small", "medium", "large")] == [961, 1024, 9216]


def test_pairs_are_the_confusions_by_pixels() -> None:
    target, prediction = square(1, 5, 5, 20, square(2, 30, 30, 10)), square(3, 5, 5, 20, square(1, 30, 30, 10))
    assert anatomy((target, prediction)).compute()["anatomy"]["pairs"] == [
        {"target": "class 1", "prediction": "class 3", "pixels": 400},
        {"target": "class 2", "prediction": "class 1", "pixels": 100},
    ]


def test_no_errors_and_no_labels() -> None:
    target = square(1, 5, 5, 20)
    found = anatomy((target, target), (np.full_like(target, 255), target)).compute()["anatomy"]
    assert set(found["pixels"].values()) == {0}
    assert all(math.isnan(share) for share in found["share_of_errors"].values())
    assert set(found["gain"].values()) == {0.0}
    assert found["pairs"] == []


def test_order_and_ranks_change_nothing() -> None:
    pairs = [random_maps(seed) for seed in range(5)]
    first, second = anatomy(*pairs[3:]), anatomy(*pairs[:3])
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert json.dumps(first.compute()) == json.dumps(anatomy(*pairs).compute())


def test_beside_an_unlabelled_band_an_edge_can_slip_too() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:, 30:] = 1
    target[:, 27:33] = 255  # the edge is somewhere in these six columns
    prediction = np.zeros((40, 60), np.uint8)
    prediction[:, 25:] = 1  # two columns too far
    kinds = error_kinds(target, prediction, radius=5.0)
    assert (kinds[:, 25:27] == BOUNDARY_SLIP).all()
    assert (kinds[:, 27:33] == 255).all()
    assert (kinds[:, :25] == RIGHT).all()
    assert (error_kinds(target, prediction, radius=2.0)[:, 25:27] != BOUNDARY_SLIP).all()


def test_closing_gives_each_unlabelled_pixel_its_nearest_class() -> None:
    target = np.full((5, 9), 255, np.uint8)
    target[2, 1], target[2, 7] = 3, 4
    filled = closed(target)
    assert (filled[:, :4] == 3).all()
    assert (filled[:, 5:] == 4).all()
    assert np.array_equal(closed(filled), filled)
    assert (closed(np.full((2, 2), 255, np.uint8)) == 255).all()

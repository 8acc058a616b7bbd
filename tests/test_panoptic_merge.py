"""Two networks' answers become one by the published heuristic, and their classes by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.errors import ConfigError
from segtrain.instances import Detections, boxes_around
from segtrain.panoptic import Panoptic, Segment
from segtrain.postprocess.panoptic import ClassMaps, map_classes, merge

# The worked example, whose result panopticapi's script gives: score, class, (y0, x0, y1, x1).
INSTANCES = [
    (0.95, 1, (0, 0, 8, 8)),
    (0.9, 2, (0, 4, 8, 12)),
    (0.8, 1, (1, 1, 7, 8)),
    (0.7, 3, (6, 2, 16, 7)),
    (0.4, 2, (10, 8, 14, 12)),
]
SEMANTIC = [(50, (0, 0, 16, 12)), (51, (12, 0, 16, 12)), (52, (0, 11, 3, 12))]
TOP = [*["111111112222"] * 8]
DEFAULT = [*TOP, *["443333344444"] * 4, *["553333355555"] * 4]
LOW = [*TOP, *["553333355555"] * 2, *["553333354444"] * 2, *["663333364444"] * 2, *["663333366666"] * 2]
MAPS = ClassMaps(things={1: 1, 2: 2, 3: 3}, stuff={50: 50, 51: 51, 52: 52})


def detections(found: list[tuple[float, int, tuple[int, int, int, int]]], size: tuple[int, int]) -> Detections:
    masks = torch.zeros(len(found), *size, dtype=torch.uint8)
    for number, (_, _, (y0, x0, y1, x1)) in enumerate(found):
        masks[number, y0:y1, x0:x1] = 1
    return Detections(
        boxes_around(masks),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        torch.tensor([score for score, _, _ in found]),
        masks,
    )


def stuff(rects: list[tuple[int, tuple[int, int, int, int]]], size: tuple[int, int]) -> torch.Tensor:
    labels = torch.zeros(size, dtype=torch.int64)
    for label, (y0, x0, y1, x1) in rects:
        labels[y0:y1, x0:x1] = label
    return labels


def rows(picture: Panoptic) -> list[str]:
    return ["".join(map(str, row)) for row in picture.ids.tolist()]


def test_the_worked_example_is_merged_as_panopticapi_does() -> None:
    found, labels = detections(INSTANCES, (16, 12)), stuff(SEMANTIC, (16, 12))
    merged = merge(found, labels, MAPS, score_threshold=0.5, overlap_threshold=0.5, stuff_area_limit=8)
    assert rows(merged) == DEFAULT
    assert [(s.id, s.category, s.thing) for s in merged.segments] == [
        (1, 1, True), (2, 2, True), (3, 3, True), (4, 50, False), (5, 51, False),
    ]  # fmt: skip
    assert [s.score for s in merged.segments[:3]] == pytest.approx([0.95, 0.9, 0.7])
    merged = merge(found, labels.numpy(), MAPS, score_threshold=0.3, overlap_threshold=0.8, stuff_area_limit=1)
    assert rows(merged) == LOW
    assert [(s.id, s.category, s.thing) for s in merged.segments] == [
        (1, 1, True), (2, 2, True), (3, 3, True), (4, 2, True), (5, 50, False), (6, 51, False),
    ]  # fmt: skip


def test_the_order_of_detections_does_not_matter() -> None:
    labels = stuff(SEMANTIC, (16, 12))
    shuffled = merge(detections(INSTANCES[::-1], (16, 12)), labels, MAPS, stuff_area_limit=8)
    assert rows(shuffled) == DEFAULT


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 20))
def test_every_merge_is_a_panoptic_image_that_keeps_to_its_limits(seed: int, overlap: float, limit: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 8))
    masks = torch.from_numpy((rng.random((count, 6, 7)) < rng.uniform(0, 0.6)).astype(np.uint8))
    labels = torch.from_numpy(rng.integers(1, 6, count))
    scores = torch.from_numpy(rng.random(count).astype(np.float32).round(1))
    classes = torch.from_numpy(rng.integers(0, 4, (6, 7)).astype(np.uint8))
    maps = ClassMaps(things={1: 0, 2: 1, 3: 2}, stuff={1: 3, 3: 4})
    found = Detections(boxes_around(masks), labels, scores, masks)
    merged = merge(found, classes, maps, score_threshold=0.4, overlap_threshold=overlap, stuff_area_limit=limit)
    merged.positions()  # ids and segments are the same set, none without a pixel
    for segment in merged.segments:
        mine = merged.ids == segment.id
        if not segment.thing:
            label = {3: 1, 4: 3}[segment.category]
            assert mine.sum() >= limit
            assert (classes.numpy()[mine] == label).all()
            continue
        assert segment.score is not None
        assert segment.score >= 0.4 - 1e-6
        inside = [
            (masks[n].numpy() >= mine).all() and mine.sum() >= (1 - overlap) * int(masks[n].sum()) - 1e-9
            for n in range(count)
            if maps.things.get(int(labels[n])) == segment.category
        ]
        assert any(inside), "it lies within a detection of its class, of which it has its share"
    scores_down = [s.score for s in merged.segments if s.score is not None]
    assert scores_down == sorted(scores_down, reverse=True)
    assert len({s.category for s in merged.segments if not s.thing}) == sum(not s.thing for s in merged.segments)


def test_classes_without_a_place_take_no_pixels() -> None:
    found = detections([(0.9, 4, (0, 0, 4, 4)), (0.8, 1, (0, 0, 2, 4))], (4, 4))
    merged = merge(found, np.full((4, 4), 7), ClassMaps({1: 2}, {3: 0}), stuff_area_limit=0)
    assert merged.segments == [Segment(1, 2, thing=True, score=pytest.approx(0.8))]
    assert rows(merged) == ["1111", "1111", "0000", "0000"]
    nothing = merge(found, np.full((4, 4), 7), ClassMaps({}, {}))
    assert nothing.segments == []


def test_nothing_found_leaves_the_stuff() -> None:
    merged = merge(detections([], (64, 64)), np.zeros((64, 64), np.uint8), ClassMaps({1: 1}, {0: 0}))
    assert merged.segments == [Segment(1, 0, thing=False)], "4096 pixels are just enough"
    short = np.zeros((64, 64), np.uint8)
    short[0, 0] = 9
    assert merge(detections([], (64, 64)), short, ClassMaps({1: 1}, {0: 0})).segments == []


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks of \(4, 4\) pixels"):
        merge(detections([], (4, 4)), np.zeros((4, 5), np.uint8), ClassMaps({1: 1}, {0: 0}))


def names(**changes: Any) -> ClassMaps:
    given_names = {
        "classes": ["sky", "disc", "ring", "ground"],
        "things": ["disc", "ring"],
        "instance": ["background", "ring", "cup", "disc"],
        "semantic": ["ground", "disc", "ring", "sky", "sea"],
        **changes,
    }
    return map_classes(
        given_names["classes"],
        given_names["things"],
        instance=given_names["instance"],
        semantic=given_names["semantic"],
    )


def test_classes_of_both_networks_meet_by_name() -> None:
    maps = names()
    assert maps.things == {1: 2, 3: 1}
    assert maps.stuff == {0: 3, 3: 0}
    # The background of an instance network is no object, even where the list has stuff of that name.
    maps = names(classes=["background", "disc"], things=["disc"], semantic=["background", "disc"])
    assert (maps.things, maps.stuff) == ({3: 1}, {0: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"things": ["disc", "cup"]}, "things that are no classes: cup"),
        ({"instance": ["background", "disc"]}, "instance network does not know the things ring; the semantic network"),
        ({"instance": ["ring", "disc"]}, "instance network does not know the things ring"),
        ({"classes": ["sky", "disc", "moon"], "things": ["disc", "moon"]}, "does not know the things moon$"),
        ({"classes": ["sky", "disc", "mud"], "things": ["disc"]}, "semantic network does not know the stuff mud$"),
        ({"things": ["disc"], "semantic": ["sky", "ground"]}, "stuff ring; the instance network knows ring"),
    ],
)
def test_a_class_that_the_network_in_question_does_not_know_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        names(**changes)

    assert re.search(message, caught.value.found), caught.value.found
    assert caught.value.expected

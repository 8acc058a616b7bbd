"""Segments from objects, and back to what the other two tasks train on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segtrain.instances import Instances
from segtrain.panoptic import ID_END, Panoptic, Segment, colors_of, from_instances, ids_of


def objects(*masks: list[list[int]], labels: list[int], crowd: list[bool] | None = None) -> Instances:
    return Instances.of(
        torch.tensor(masks, dtype=torch.uint8),
        torch.tensor(labels),
        crowd=None if crowd is None else torch.tensor(crowd),
    )


def test_of_overlapping_objects_the_smaller_lies_on_top_in_either_order() -> None:
    large, small = [[1, 1, 1, 0], [1, 1, 1, 0]], [[0, 1, 0, 0], [0, 0, 0, 0]]
    picture = from_instances(objects(large, small, labels=[2, 1]))
    assert picture.ids.tolist() == [[1, 2, 1, 3], [1, 1, 1, 3]]
    assert picture.segments == [Segment(1, 2, True), Segment(2, 1, True), Segment(3, 0, False)]
    again = from_instances(objects(small, large, labels=[1, 2]))
    assert again.ids.tolist() == [[2, 1, 2, 3], [2, 2, 2, 3]]


def test_crowds_lie_at_the_bottom_and_hidden_objects_are_no_segments() -> None:
    crowd, over = [[1, 1, 0]], [[1, 1, 1]]
    picture = from_instances(objects(crowd, over, labels=[1, 1], crowd=[True, False]), background=None)
    assert picture.segments == [Segment(1, 1, True)]
    picture = from_instances(objects(over, crowd, labels=[1, 2], crowd=[True, False]), background=None)
    assert picture.ids.tolist() == [[2, 2, 1]]
    assert picture.segments == [Segment(1, 1, True, crowd=True), Segment(2, 2, True)]


def test_the_rest_is_void_or_one_stuff_or_a_map_of_stuff() -> None:
    disc = objects([[1, 0, 0, 0]], labels=[3])
    assert from_instances(disc, background=None).ids.tolist() == [[1, 0, 0, 0]]
    stuff = np.array([[7, 5, 255, 4]], np.uint8)
    picture = from_instances(disc, background=stuff)
    assert picture.ids.tolist() == [[1, 3, 0, 2]]
    assert picture.segments == [Segment(1, 3, True), Segment(2, 4, False), Segment(3, 5, False)]
    empty = from_instances(Instances.none(1, 4))
    assert empty.segments == [Segment(1, 0, False)]


def test_objects_come_back_and_labels_hide_crowds() -> None:
    ids = np.array([[9, 9, 4, 0], [9, 2, 4, 4]], np.int32)
    picture = Panoptic(ids, [Segment(9, 3, True), Segment(4, 1, True, crowd=True), Segment(2, 0, False)])
    assert picture.labels().tolist() == [[3, 3, 255, 255], [3, 0, 255, 255]]
    found = picture.instances({3: 1, 1: 2})
    assert found.labels.tolist() == [1, 2]
    assert found.crowd.tolist() == [False, True]
    assert found.ids.tolist() == [9, 4]
    assert found.area.tolist() == [3, 3]
    assert found.boxes.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2]]
    assert found.masks[0].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert len(picture.instances({3: 1})) == 1
    assert len(picture.instances({0: 1})) == 0, "stuff is no object"
    assert picture.instances({}).size == (2, 4)


@given(arrays.arrays(np.int32, (3, 4), elements=st.integers(0, ID_END - 1)))
def test_colors_hold_every_id(ids: np.ndarray) -> None:
    colors = colors_of(ids)
    assert colors.dtype == np.uint8
    assert np.array_equal(ids_of(colors), ids)
    assert np.array_equal((colors.astype(np.int64) * [1, 256, 65536]).sum(-1), ids)


def test_an_image_of_nothing_is_void() -> None:
    nothing = Panoptic(np.zeros((2, 3), np.int32), [])
    assert (nothing.positions() == 0).all()
    assert (nothing.labels() == 255).all()
    assert nothing.size == pytest.approx((2, 3))

"""Overlaps of objects to the last bit as pycocotools measures them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segtrain.metrics.boundary import band_width, inner_band
from segtrain.metrics.object_overlap import boundary_iou, box_iou, cuts, mask_iou

SIZE = (41, 33)


def random_masks(generator: np.random.Generator, count: int) -> np.ndarray:
    """Boxes with and without holes, some at the image's border, some empty."""
    masks = np.zeros((count, *SIZE), np.uint8)
    for mask in masks:
        top, left = generator.integers(-6, 36, 2)
        rows, columns = (slice(max(0, at), max(0, at + generator.integers(0, 30))) for at in (top, left))
        mask[rows, columns] = generator.random(mask[rows, columns].shape) < generator.choice([0.5, 0.9, 1])
    return masks


def rles(masks: np.ndarray) -> list[dict[str, object]]:
    return [coco.encode(np.asfortranarray(mask)) for mask in masks]


@pytest.mark.parametrize("seed", range(8))
def test_masks_overlap_as_in_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    found, true, crowd = random_masks(generator, 9), random_masks(generator, 7), generator.random(7) < 0.3
    iou = mask_iou(cuts(torch.from_numpy(found)), cuts(torch.from_numpy(true)), crowd)
    np.testing.assert_array_equal(iou, coco.iou(rles(found), rles(true), crowd))
    assert (iou > 0).any()


@pytest.mark.parametrize("seed", range(8))
def test_boundaries_overlap_as_bands_of_whole_images(seed: int) -> None:
    generator = np.random.default_rng(seed)
    found, true, crowd = random_masks(generator, 9), random_masks(generator, 7), generator.random(7) < 0.3
    found_cuts, true_cuts = cuts(torch.from_numpy(found)), cuts(torch.from_numpy(true))
    masks = mask_iou(found_cuts, true_cuts, crowd)
    iou = boundary_iou(masks, found_cuts, true_cuts, crowd, SIZE, 0.04)
    width = band_width(SIZE, 0.04)
    bands = [
        rles(np.stack([inner_band(one.astype(bool), width) for one in side]).view(np.uint8)) for side in (found, true)
    ]
    np.testing.assert_array_equal(iou, np.where(crowd, masks, np.minimum(masks, coco.iou(*bands, np.zeros(7)))))
    assert width == 2
    assert (iou < masks).any()


def test_a_crowd_takes_what_lies_on_it() -> None:
    found, true = np.array([[0.0, 0.0, 4.0, 4.0]]), np.array([[2.0, 0.0, 8.0, 4.0]] * 2)
    np.testing.assert_array_equal(box_iou(found, true, np.array([False, True])), [[8 / 40, 8 / 16]])


def test_sides_may_be_empty() -> None:
    none, one = np.zeros((0, 4)), np.ones((3, 4))
    nothing = cuts(torch.zeros(0, *SIZE, dtype=torch.uint8))
    some = cuts(torch.ones(3, *SIZE, dtype=torch.uint8))
    for boxes, other_boxes, masks, others in ((none, one, nothing, some), (one, none, some, nothing)):
        crowd = np.zeros(len(others), bool)
        assert box_iou(boxes, other_boxes, crowd).shape == (len(masks), len(others))
        iou = mask_iou(masks, others, crowd)
        assert iou.shape == boundary_iou(iou, masks, others, crowd, SIZE, 0.02).shape == (len(masks), len(others))

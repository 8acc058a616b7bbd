"""Pictures of objects: each its own shade, the same one where it was found; small objects and names stay visible."""

from __future__ import annotations

import numpy as np
import torch

from segtrain.instances import Detections, Instances, boxes_around
from segtrain.metrics.matching import match
from segtrain.object_pictures import largest_first, object_panel, outlines, shades, shades_of_found, with_objects

CLASSES = ["background", "cat", "dog"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def rectangles(*corners: tuple[int, int, int, int], size: tuple[int, int] = (200, 240)) -> torch.Tensor:
    """Masks (N, H, W) of `top, left, bottom, right`."""
    masks = torch.zeros(len(corners), *size, dtype=torch.uint8)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def found(masks: torch.Tensor, labels: list[int], scores: list[float]) -> Detections:
    return Detections(boxes_around(masks), torch.tensor(labels), torch.tensor(scores), masks)


def test_no_two_objects_of_an_image_share_a_color() -> None:
    colors = shades([1] * 20 + [2] * 20, PALETTE)
    assert len(set(colors)) == 40


def test_an_object_that_was_found_has_one_color_in_truth_and_prediction() -> None:
    masks = rectangles((10, 10, 60, 60), (10, 100, 60, 160), (100, 10, 160, 60))
    truth = Instances.of(masks, torch.tensor([1, 1, 2]))
    detections = found(masks[[1, 2, 2]], [1, 2, 1], [0.9, 0.8, 0.7])
    matches = match(detections, truth)
    colors, true_colors = shades_of_found(detections, truth, matches, PALETTE), shades([1, 1, 2], PALETTE)
    assert colors[:2] == [true_colors[1], true_colors[2]]
    assert colors[2] not in true_colors  # a cat that is none of the cats


def test_a_small_object_is_seen_inside_a_large_one_in_any_order() -> None:
    masks = rectangles((10, 10, 190, 230), (90, 100, 120, 140))
    for order in ([0, 1], [1, 0]):
        assert largest_first(masks[order].numpy())[-1] == order.index(1)
    equal = rectangles((0, 0, 9, 9), (5, 5, 14, 14))
    assert largest_first(equal.numpy()) == [1, 0]  # the first, and likeliest, on top
    assert largest_first(masks[:0].numpy()) == []


def test_a_crowd_is_outlined_and_not_filled() -> None:
    image = np.full((200, 240, 3), 100, np.uint8)
    masks = rectangles((40, 40, 160, 200))
    for crowd in (False, True):
        truth = Instances.of(masks, torch.tensor([1]), crowd=torch.tensor([crowd]))
        picture = with_objects(image, truth, CLASSES, PALETTE)
        assert (picture[150, 120] == 100).all() == crowd
        assert (picture[40, 150] != 100).any()
    assert (image == 100).all()


def test_holes_have_an_edge_too() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    mask[10:20, 10:20] = False
    assert len(outlines(mask)) == 2


def test_names_do_not_cover_one_another() -> None:
    image = np.zeros((200, 240, 3), np.uint8)
    masks = rectangles((50, 20, 150, 120))
    alone = with_objects(image, found(masks, [1], [0.9]), CLASSES, PALETTE)
    both = with_objects(image, found(masks[[0, 0]], [1, 2], [0.9, 0.8]), CLASSES, PALETTE)
    above = (slice(30, 49), slice(0, 240))  # where the name stands
    assert alone[above].any()
    np.testing.assert_array_equal(alone[above], both[above])


def test_a_small_picture_is_not_hidden_by_names() -> None:
    """Objects and boxes are drawn in it, and nothing more."""
    for height, named in ((159, False), (160, True)):
        masks = rectangles((60, 20, 150, 150), size=(height, 200))
        picture = with_objects(np.zeros((height, 200, 3), np.uint8), found(masks, [1], [0.9]), CLASSES, PALETTE)
        assert picture[60:150, 20:150].any()
        assert picture[:60].any() == named


def test_a_name_is_not_much_of_its_object_and_the_box_stays() -> None:
    """Of 200 objects the large one alone is named; a name's surface would hide the others."""
    corners = [(y, x, y + 8, x + 8) for y in range(250, 450, 20) for x in range(0, 400, 20)]
    masks = rectangles((40, 100, 200, 300), *corners, size=(480, 640))
    scores = [0.5, *[0.9] * len(corners)]
    picture = with_objects(np.zeros((480, 640, 3), np.uint8), found(masks, [1] * 201, scores), CLASSES, PALETTE)
    bare = picture.any(-1)  # what is drawn, on black
    assert bare[20:40, 100:160].any(), "the name of the large one"
    for y, x, bottom, right in corners:
        assert bare[[y, bottom - 1], [x, right - 1]].all(), "the corners of its box"
        bare[y:bottom, x:right] = False
    assert not bare[210:].any(), "beside the small ones nothing is written"


def test_names_and_lines_grow_with_the_picture() -> None:
    heights = []
    for factor in (1, 4):
        size = (480 * factor, 640 * factor)
        masks = rectangles((200 * factor, 100 * factor, 300 * factor, 300 * factor), size=size)
        picture = with_objects(np.zeros((*size, 3), np.uint8), found(masks, [1], [0.9]), CLASSES, PALETTE)
        heights.append(int(picture[: 199 * factor].any((1, 2)).sum()))
    assert heights[1] >= 3 * heights[0]


def test_a_panel_takes_images_without_objects_and_of_one_channel() -> None:
    for height in (32, 200):
        nothing = Instances.none(height, 60)
        panel = object_panel(
            np.zeros((height, 60, 1), np.uint8),
            nothing,
            found(nothing.masks, [], []),
            CLASSES,
            PALETTE,
        )
        factor = max(1, 192 // height)
        assert panel.shape == (height * factor + 18, 3 * (60 * factor + 2), 3)

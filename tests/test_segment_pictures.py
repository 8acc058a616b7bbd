"""Pictures of segments: stuff in its class's color, objects in shades of their own, lines between them."""

from __future__ import annotations

import numpy as np

from segtrain.panoptic import Panoptic, Segment
from segtrain.pictures import VOID
from segtrain.segment_pictures import segment_colors, with_segments

PALETTE = [[10, 20, 30], [120, 60, 200]]
IDS = np.repeat(np.array([[0, 5, 7, 9, 11]], np.int32), 4, axis=1).repeat(6, axis=0)
FOUND = Panoptic(
    IDS, [Segment(5, 0, False), Segment(7, 1, True), Segment(9, 1, True), Segment(11, 1, True, crowd=True)]
)


def test_each_object_has_a_shade_and_stuff_the_color_of_its_class() -> None:
    colors = segment_colors(FOUND, PALETTE)
    void, stuff, first, second, crowd = colors[0, ::4].tolist()
    assert (colors.shape, colors.dtype) == ((6, 20, 3), np.uint8)
    assert stuff == PALETTE[0]
    assert void == crowd == segment_colors(Panoptic(np.zeros((1, 1), np.int32), []), PALETTE)[0, 0].tolist()
    assert void == list(VOID)
    assert len({tuple(color) for color in (void, stuff, first, second)}) == 4
    assert (colors.reshape(6, 5, 4, 3) == colors[:1, ::4].reshape(1, 5, 1, 3)).all(), "one color in a segment"


def test_lines_part_segments_and_the_image_shines_through_between_them() -> None:
    image = np.full((6, 20, 3), 100, np.uint8)
    picture = with_segments(image, FOUND, PALETTE)
    assert (picture[:, [4, 8, 12, 16]] == 255).all()
    inside = np.setdiff1d(np.arange(20), [4, 8, 12, 16])
    blended = (100 * 0.35 + segment_colors(FOUND, PALETTE) * 0.65).round()
    assert np.array_equal(picture[:, inside], blended[:, inside])
    assert (image == 100).all(), "the image itself is left alone"
    gray = with_segments(image[..., :1], FOUND, PALETTE)
    assert np.array_equal(gray, picture)
    assert np.array_equal(with_segments(image, FOUND, PALETTE, opacity=0)[:, inside], image[:, inside])

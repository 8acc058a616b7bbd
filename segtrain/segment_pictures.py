"""Segments as pictures: stuff in its class's color, each object in a shade of its own. RGB uint8 (H, W, 3)."""

from __future__ import annotations

import numpy as np

from segtrain.object_pictures import shade
from segtrain.panoptic import Panoptic
from segtrain.pictures import VOID, to_rgb


def segment_colors(found: Panoptic, palette: list[list[int]]) -> np.ndarray:
    """Colors (H, W, 3) of all pixels; void and crowds as unlabelled pixels are."""
    table = np.empty((len(found.segments) + 1, 3), np.uint8)
    table[0] = VOID
    seen: dict[int, int] = {}
    for place, segment in enumerate(found.segments, 1):
        number = seen.get(segment.category, 0)
        seen[segment.category] = number + 1
        color = palette[segment.category]
        table[place] = VOID if segment.crowd else shade(color, number) if segment.thing else color
    return table[found.positions()]


def with_segments(image: np.ndarray, found: Panoptic, palette: list[list[int]], opacity: float = 0.65) -> np.ndarray:
    """The image (H, W, 1|3) with its segments laid over it, and a thin line between them."""
    picture, colors = to_rgb(image), segment_colors(found, palette)
    blended = (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    edge = np.zeros(found.size, bool)
    edge[:, 1:] |= found.ids[:, 1:] != found.ids[:, :-1]
    edge[1:] |= found.ids[1:] != found.ids[:-1]
    blended[edge] = 255
    return blended

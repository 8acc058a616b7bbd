"""The outlines of all objects of a split in a few arrays, which worker processes share and need not copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segtrain.data.coco.reading import Outline

_CHUNK = 1 << 15
"""Outlines looked at together: intermediate arrays of all points at once would be the peak of memory."""
_PIECE = 1 << 20
"""Numbers converted together, likewise."""
_STORAGES = (("<u2", 100.0), ("<i4", 100.0))
"""Type and parts of a pixel that coordinates with two decimals, as COCO's, fit into; others stay float64."""


class Outlines:
    """N outlines, each polygons or run lengths.

    The coordinates of train2017 take 2 bytes each in place of 32 as floats in lists, and none is rounded: what does
    not come back to the bit is kept as float64.
    """

    def __init__(self, outlines: Sequence[Outline]) -> None:
        polygons = [polygon for outline in outlines for polygon in outline.polygons]
        self._points, self._scale = _compact(np.frombuffer(b"".join(polygons), "<f8"))
        self._polygon_ends = _ends([len(polygon) // 8 for polygon in polygons])
        self._outline_ends = _ends([len(outline.polygons) for outline in outlines])
        self._runs = np.frombuffer(b"".join(outline.runs for outline in outlines), np.uint8)
        self._run_ends = _ends([len(outline.runs) for outline in outlines])

    def __len__(self) -> int:
        return len(self._outline_ends) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def segmentation(self, number: int, height: int, width: int) -> Any:
        """Outline `number` as COCO's JSON has it, of an image of that size."""
        first, last = self._outline_ends[number], self._outline_ends[number + 1]
        if first == last:
            runs = self._runs[self._run_ends[number] : self._run_ends[number + 1]]
            return {"size": [height, width], "counts": runs.tobytes().decode("ascii")}
        return [self._polygon(polygon).tolist() for polygon in range(first, last)]

    def _polygon(self, number: int) -> np.ndarray:
        points = self._points[self._polygon_ends[number] : self._polygon_ends[number + 1]]
        return points if self._scale is None else points / self._scale

    def extents(self) -> np.ndarray:
        """Around the polygons of each outline: x0, y0, x1, y1 (N, 4) float64 in pixels, NaN for run lengths."""
        found = np.full((len(self), 4), np.nan)
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            first, last = self._outline_ends[start], self._outline_ends[stop]
            if first == last:
                continue
            points, starts = self._points_of(first, last)
            drawn = np.flatnonzero(np.diff(self._outline_ends[start : stop + 1]))
            of_outline = starts[self._outline_ends[start + drawn] - first]
            found[start + drawn] = np.hstack(
                [np.minimum.reduceat(points, of_outline), np.maximum.reduceat(points, of_outline)]
            )
        return found

    def _points_of(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The points (M, 2) float64 of polygons first to last - 1, and where each polygon begins among them."""
        ends = self._polygon_ends[first : last + 1]
        points = self._points[ends[0] : ends[-1]].reshape(-1, 2) / (self._scale or 1.0)
        return points, (ends[:-1] - ends[0]) // 2

    def doubtful(self, sizes: np.ndarray) -> np.ndarray:
        """Numbers of the outlines that may cover no pixel of their images, sizes (N, 2) height, width.

        All others cover one for sure: a polygon of area A and perimeter P holds a disc of radius A / P, and a disc of
        radius 1 holds the center of a pixel, wherever it lies.
        """
        sure = np.zeros(len(self), bool)
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            sure[start:stop] = self._surely_seen(start, stop, sizes[start:stop])
        return np.flatnonzero(~sure)

    def _surely_seen(self, start: int, stop: int, sizes: np.ndarray) -> np.ndarray:
        seen = np.zeros(stop - start, bool)
        first, last = self._outline_ends[start], self._outline_ends[stop]
        if first == last:
            return seen
        points, starts = self._points_of(first, last)
        follower = np.arange(1, len(points) + 1)
        follower[np.append(starts[1:], len(points)) - 1] = starts  # the last point of each polygon goes on to its first
        step = points[follower] - points
        perimeter = np.add.reduceat(np.hypot(step[:, 0], step[:, 1]), starts)
        cross = points[:, 0] * points[follower, 1] - points[:, 1] * points[follower, 0]
        area = np.abs(np.add.reduceat(cross, starts)) / 2
        owner = np.repeat(np.arange(stop - start), np.diff(self._outline_ends[start : stop + 1]))
        inside = np.minimum.reduceat(points.min(1), starts) >= 0
        inside &= np.maximum.reduceat(points[:, 0], starts) <= sizes[owner, 1]
        inside &= np.maximum.reduceat(points[:, 1], starts) <= sizes[owner, 0]
        seen[owner[inside & (area > perimeter)]] = True
        return seen


def _ends(lengths: Sequence[int]) -> np.ndarray:
    """Where each piece begins and, last, where all end: (N + 1,) int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, np.int64))])


def _compact(numbers: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The same numbers in as few bytes as hold them exactly, and what to divide them by."""
    pieces = [slice(start, start + _PIECE) for start in range(0, len(numbers), _PIECE)]
    for dtype, scale in _STORAGES:
        if all(_fits(numbers[piece], dtype, scale) for piece in pieces):
            compact = np.empty(len(numbers), dtype)
            for piece in pieces:
                compact[piece] = np.rint(numbers[piece] * scale)
            return compact, scale
    return numbers, None


def _fits(numbers: np.ndarray, dtype: str, scale: float) -> bool:
    scaled = np.rint(numbers * scale)
    limits = np.iinfo(dtype)
    return bool(scaled.min() >= limits.min and scaled.max() <= limits.max and np.array_equal(scaled / scale, numbers))

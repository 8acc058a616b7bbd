"""Masks as COCO writes them: polygons and run lengths. The package pycocotools is the codec."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import ConfigError, DataError

Rle = dict[str, Any]
"""Run lengths of one mask, column by column: `size` [H, W] and `counts`, COCO's compressed text; fit for JSON."""


def coco_mask() -> ModuleType:
    """The module `pycocotools.mask`.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        import pycocotools.mask
    except ImportError as error:
        raise ConfigError(
            f"objects in COCO's format need the package pycocotools: {error}",
            expected="the optional package pycocotools",
            fix="pip install 'segtrain[instances]'",
        ) from error
    return pycocotools.mask


def encode(masks: Tensor) -> list[Rle]:
    """Masks (N, H, W) uint8, 0 or 1, on any device -> their run lengths."""
    if not len(masks):
        return []
    columns = masks.mT.contiguous().cpu().numpy()  # the package wants Fortran's order, which is rows last
    return [{**rle, "counts": rle["counts"].decode("ascii")} for rle in coco_mask().encode(columns.T)]


def decode(rles: list[Rle], height: int, width: int) -> Tensor:
    """Run lengths of N masks of that size, as `encode` or `parse` give them -> (N, H, W) uint8."""
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.from_numpy(coco_mask().decode(rles).T).mT.contiguous()


def parse(segmentation: Any, height: int, width: int, *, where: object) -> Rle:
    """What a COCO annotation calls its segmentation -> run lengths, pixel for pixel those of pycocotools' `annToRLE`.

    Args:
        segmentation: polygons `[[x, y, x, y, …], …]` in pixels, of which the mask is the union; or run lengths
            `{"size": [H, W], "counts": …}`, a list of numbers or COCO's compressed text. Polygons may lie partly
            outside the image.
        height: of the image.
        width: of the image.
        where: file and annotation, for the error.

    Raises:
        DataError: no such thing. The package itself takes some of these for a box or leaves pixels to chance.
    """
    found = _fault(segmentation, height, width)
    if found:
        raise DataError(
            found,
            where=where,
            expected=f"polygons of three points or more, or run lengths of an image {height}x{width} (height x width)",
            fix="mend or remove this annotation",
        )
    mask = coco_mask()
    if isinstance(segmentation, list):
        rle = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def _fault(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong, as a sentence; None where nothing is."""
    if isinstance(segmentation, list):
        return _polygon_fault(segmentation)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "the segmentation is neither a list of polygons nor run lengths with size and counts"
    if list(segmentation["size"]) != [height, width]:
        return f"run lengths are of an image {segmentation['size']}, the image is [{height}, {width}] (height, width)"
    counts = segmentation["counts"]
    runs = _runs(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        return "run lengths are no whole numbers from 0 on, nor COCO's compressed text"
    if sum(runs) != height * width:
        return f"run lengths add up to {sum(runs)} pixels, the image has {height * width}"
    return None


def _polygon_fault(polygons: list[Any]) -> str | None:
    if not polygons:
        return "the segmentation has no polygon"
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or not all(isinstance(value, int | float) for value in polygon):
            return f"polygon {number} is no list of numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon {number} has {len(polygon)} numbers: at least three pairs x, y are needed"
        if not all(math.isfinite(value) for value in polygon):
            return f"polygon {number} has a number that is not finite"
    return None


def _runs(text: str | bytes) -> list[int] | None:
    """COCO's compressed text -> run lengths; None where it is none.

    Each number is written low bits first, five to a character (code - 48); bit 5 says that more follow, bit 4 of the
    last is the sign. From the fourth number on what is written is the difference to the number two before.
    Source: maskApi.c of cocodataset/cocoapi.
    """
    codes = np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, np.uint8).astype(int) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63 or codes[-1] & 32):
        return None
    runs: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs

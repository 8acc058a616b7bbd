"""What can be wrong with the annotations of a COCO file: each kind is told at once, with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from segtrain.data.coco.reading import Annotation, Fault
from segtrain.errors import DataError

OnBad = Literal["stop", "drop"]
"""`stop`: an error names the faulty annotations; `drop`: they are left out, and counted; of a few polygons, the bad."""

_SHOWN = 10
_LISTED = "an id that the file lists; both are kept apart when files are put together"
KINDS: dict[str, tuple[str, str]] = {
    "field": (
        "lack a field, or have one that cannot be",
        "image_id and category_id as whole numbers; id likewise, area >= 0, bbox x, y, width, height, iscrowd 0 or 1, "
        "where they are there",
    ),
    "id": ("have the id of another", "each id once"),
    "image": ("are of images that the file does not list", _LISTED),
    "category": ("are of categories that the file does not list", _LISTED),
    "box": ("have a box without area inside the image", "x, y, width, height in pixels, width and height above 0"),
    "outline": (
        "have no usable segmentation",
        "polygons [[x, y, x, y, x, y, …], …] of three points or more, or run lengths that add up to the image",
    ),
    "part": (
        "have a polygon of less than three points beside others",
        "polygons [[x, y, x, y, x, y, …], …] of three points or more",
    ),
    "size": ("have run lengths of another size than the image", "size [height, width] as the image is listed"),
    "empty": ("cover no pixel of the image", "polygons inside the image that are not all but a line or a point"),
    "misplaced": ("have a box that does not hold their mask", "x, y, width, height around the mask, in pixels"),
}
"""Kind -> what such annotations do, and what is expected; in the order in which they are told."""

Found = tuple[Annotation, Fault]


def settle(found: Sequence[Found], total: int, path: Path, on_bad: OnBad) -> dict[str, int]:
    """How many annotations of `total` are left out, by what is wrong with them.

    Raises:
        DataError: `on_bad` is `stop` and there are any: one error for all of the first kind that occurs.
    """
    counts = Counter(fault.kind for _, fault in found)
    if not found or on_bad == "drop":
        return {KINDS[kind][0]: counts[kind] for kind in KINDS if counts[kind]}
    kind = next(kind for kind in KINDS if counts[kind])
    lines = [
        f"annotation {'without id' if annotation.id is None else annotation.id}: {fault.found}"
        for annotation, fault in found
        if fault.kind == kind
    ]
    more = [f"and {len(lines) - _SHOWN:,} more"] * (len(lines) > _SHOWN)
    more += [f"besides, {counts[other]:,} {KINDS[other][0]}" for other in KINDS if other != kind and counts[other]]
    raise DataError(
        f"{counts[kind]:,} of {total:,} annotations {KINDS[kind][0]}",
        where="\n".join([str(path), *lines[:_SHOWN], *more]),
        expected=KINDS[kind][1],
        fix="mend the file, or set data.on_bad_annotation=drop to go without these annotations",
    )

"""One file of COCO's JSON, taken apart while it is parsed: what is not needed never piles up.

The file of train2017 has 448 MB and 860,001 annotations; as plain dicts and lists they would take gigabytes.
Format: cocodataset.org/#format-data, "object detection".
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from segtrain.errors import DataError, listed
from segtrain.rle import parse

_FAR = 10**6
"""Pixels from the image's corner beyond which no image reaches; to trace an edge that long takes memory and minutes."""
_FIX = "export the file again as COCO JSON of objects ('instances'), with images, annotations and categories"


class ListedImage(NamedTuple):
    """An entry of `images`; sizes in pixels."""

    id: int
    name: str
    height: int
    width: int


class Category(NamedTuple):
    """An entry of `categories`."""

    id: int
    name: str
    group: str


class Outline(NamedTuple):
    """The mask of one annotation: polygons, each the bytes of float64 x, y, x, y, …; or run lengths as COCO's text."""

    polygons: tuple[bytes, ...] = ()
    runs: bytes = b""
    size: tuple[int, int] | None = None
    """Height and width that the run lengths are of."""


class Fault(NamedTuple):
    """What is wrong with an annotation: a kind that `segtrain.data.coco.faults` knows, and what was found."""

    kind: str
    found: str


class Annotation(NamedTuple):
    """An entry of `annotations`; `fault` is what can be seen without the image's size, and then the rest is a filler.

    With a fault of the kind `part` the rest is as usual, and the outline goes without the polygons that are none.
    `area` in pixels, None where the file has none; `box` x, y, width, height in pixels, () where the file has none.
    """

    id: int | None
    image: int = 0
    category: int = 0
    crowd: bool = False
    area: float | None = 0.0
    box: tuple[float, ...] = ()
    outline: Outline = Outline()
    fault: Fault | None = None


class CocoFile(NamedTuple):
    """What a file lists, in its order."""

    images: list[ListedImage]
    annotations: list[Annotation]
    categories: list[Category]


def read_coco(path: Path) -> CocoFile:
    """Reads a file of objects; faulty annotations come with their fault.

    Raises:
        DataError: it is no such file, or an image or category is not as it should be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_taken_apart)
    except OSError as error:
        raise DataError(f"annotations cannot be read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:  # damaged JSON, or bytes that are no Unicode
        raise DataError(f"annotations are no JSON: {error}", where=path, fix="get the file again") from error
    sections = [_section(content, name, path) for name in ("images", "annotations", "categories")]
    images = [_image(entry, number, path) for number, entry in enumerate(sections[0])]
    categories = [_category(entry, number, path) for number, entry in enumerate(sections[2])]
    _refuse_repeated("images", "id", [image.id for image in images], path)
    _refuse_repeated("categories", "id", [category.id for category in categories], path)
    _refuse_repeated("categories", "name", [category.name for category in categories], path)
    annotations = [
        entry if isinstance(entry, Annotation) else Annotation(None, fault=Fault("field", "it is no object annotation"))
        for entry in sections[1]
    ]
    return CocoFile(images, annotations, categories)


def _taken_apart(entry: dict[str, Any]) -> Any:
    """Called by the parser for every {} of the file as soon as it is complete."""
    if "image_id" in entry and ("segmentation" in entry or "category_id" in entry):
        return _annotation(entry)
    if "file_name" in entry:  # of an image five of ten keys are needed
        return {key: entry[key] for key in ("id", "file_name", "height", "width", "image_id") if key in entry}
    return entry


def _section(content: Any, name: str, path: Path) -> list[Any]:
    section = content.get(name) if isinstance(content, dict) else None
    if not isinstance(section, list):
        raise DataError(
            f"annotations have no list '{name}'",
            where=path,
            expected='{"images": […], "annotations": […], "categories": […]}',
            fix=_FIX,
        )
    return section


def _image(entry: Any, number: int, path: Path) -> ListedImage:
    entry = entry if isinstance(entry, dict) else {}
    number_of, height, width = (_whole(entry.get(key)) for key in ("id", "height", "width"))
    name = entry.get("file_name")
    if number_of is None or not height or not width or min(height, width) < 1 or not isinstance(name, str):
        raise DataError(
            f"entry {number} of 'images' is not usable: {json.dumps(entry, default=str)[:200]}",
            where=path,
            expected="id, height and width as whole numbers, file_name as text",
            fix=_FIX,
        )
    return ListedImage(number_of, name, height, width)


def _category(entry: Any, number: int, path: Path) -> Category:
    entry = entry if isinstance(entry, dict) else {}
    number_of, name = _whole(entry.get("id")), entry.get("name")
    if number_of is None or not isinstance(name, str) or not name:
        raise DataError(
            f"entry {number} of 'categories' is not usable: {json.dumps(entry, default=str)[:200]}",
            where=path,
            expected="id as a whole number, name as text",
            fix=_FIX,
        )
    return Category(number_of, name, str(entry.get("supercategory")))


def _refuse_repeated(section: str, key: str, values: list[Any], path: Path) -> None:
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise DataError(
            f"'{section}' repeats the {key} of {len(twice)} entries: {listed(twice)}",
            where=path,
            expected=f"entries that differ in their {key}",
            fix=f"give each its own {key}, in the annotations too; files of two exports do not simply add up",
        )


def _whole(value: Any) -> int | None:
    """The whole number that a value is, written as 64 or 64.0."""
    if type(value) is float and value.is_integer():  # as tables that have gaps elsewhere are written
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None  # True is no number


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _annotation(entry: dict[str, Any]) -> Annotation:
    number, image, category = _whole(entry.get("id")), _whole(entry.get("image_id")), _whole(entry.get("category_id"))
    crowd, area, box = entry.get("iscrowd"), entry.get("area"), entry.get("bbox")
    crowd = 0 if crowd is None else crowd  # not every tool writes it, and then none is
    if number is None and entry.get("id") is not None:
        return Annotation(number, fault=Fault("field", _shown("id", entry)))
    if image is None or category is None:
        return Annotation(number, fault=Fault("field", _shown("image_id" if image is None else "category_id", entry)))
    if crowd not in (0, 1):
        return Annotation(number, fault=Fault("field", _shown("iscrowd", entry)))
    if area is not None and not (_is_number(area) and area >= 0):
        return Annotation(number, fault=Fault("field", _shown("area", entry)))
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
        return Annotation(number, fault=Fault("field", _shown("bbox", entry)))
    outline, fault = _outline(entry.get("segmentation"))
    if outline is None:
        return Annotation(number, fault=fault)
    corners = () if box is None else tuple(map(float, box))
    return Annotation(
        number, image, category, bool(crowd), None if area is None else float(area), corners, outline, fault
    )


def _shown(key: str, entry: dict[str, Any]) -> str:
    return f"{key} is {json.dumps(entry[key], default=str)[:80]}" if key in entry else f"{key} is missing"


def _outline(segmentation: Any) -> tuple[Outline | None, Fault | None]:
    """A segmentation packed, and what is wrong with it, as far as that shows without the image's size."""
    if isinstance(segmentation, list):
        return _polygons(segmentation)
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return None, Fault("outline", "neither a list of polygons nor run lengths with size and counts")
    try:
        rle = parse(segmentation, *size, where="")
    except DataError as error:
        return None, Fault("outline", error.found)
    return Outline(runs=rle["counts"].encode("ascii"), size=(size[0], size[1])), None


def _polygons(segmentation: list[Any]) -> tuple[Outline | None, Fault | None]:
    whole, short = [], None
    for number, polygon in enumerate(segmentation):
        packed = _packed(polygon)
        if isinstance(packed, bytes):
            whole.append(packed)
        elif isinstance(polygon, list) and len(polygon) in (0, 2, 4):  # a slip of the hand: the others are what counts
            short = short or f"polygon {number} {packed}"
        else:
            return None, Fault("outline", f"polygon {number} {packed}")
    if not whole:
        return None, Fault("outline", short or "no polygon")
    return Outline(polygons=tuple(whole)), Fault("part", short) if short else None


def _packed(polygon: Any) -> bytes | str:
    """Bytes of float64, or what is wrong."""
    try:
        numbers = array("d", polygon)
    except (TypeError, ValueError, OverflowError):
        return "is no list of numbers"
    if len(numbers) < 6 or len(numbers) % 2:
        return f"has {len(numbers)} numbers, at least three pairs x, y are needed"
    if not math.isfinite(sum(numbers)):
        return "has a number that is not finite"
    if max(numbers) > _FAR or min(numbers) < -_FAR:
        return f"reaches further than {_FAR:,} pixels"
    return numbers.tobytes()

"""Reads COCO's panoptic format: one JSON for a set of images, and for each image a PNG of segment ids.

    {"images":      [{"id": 139, "file_name": "0139.jpg", "height": 426, "width": 640}, ...],
     "annotations": [{"image_id": 139, "file_name": "0139.png",
                      "segments_info": [{"id": 3226956, "category_id": 1, "iscrowd": 0, ...}, ...]}, ...],
     "categories":  [{"id": 1, "name": "person", "isthing": 1, ...}, ...]}

A segment's `id` is R + 256 G + 256^2 B of its pixels; 0 is void. `area` and `bbox` are not read: the pixels say them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from segtrain.data.inside import refuse_outside
from segtrain.data.reading import read_mask
from segtrain.errors import DataError, listed
from segtrain.panoptic import VOID, Panoptic, Segment, ids_of

KEYS = ("images", "annotations", "categories")
EXPORT = "export the file again; https://cocodataset.org/#format-data tells the format"


class Category(NamedTuple):
    """What the file says of one category."""

    name: str
    thing: bool


class Listed(NamedTuple):
    """One entry of an image's `segments_info`."""

    id: int
    category: int
    crowd: bool
    score: float | None


@dataclass(frozen=True)
class Annotated:
    """One image of the file with its segments: `image` and `png` are the names of its files."""

    image_id: int | str
    image: str
    png: str
    segments: tuple[Listed, ...]


@dataclass(frozen=True)
class Index:
    """What the JSON holds: categories by their ids, images in its order."""

    path: Path
    categories: dict[int, Category]
    images: list[Annotated]


def read_index(path: Path) -> Index:
    """The JSON of a panoptic set, checked as far as it goes without the PNG files.

    Raises:
        DataError: missing, no JSON, an entry lacks a key or has one of another kind, an image is not listed, has no
            annotation or several, a category id is unknown, or a file name leaves its folder.
    """
    content = _content(path)
    try:
        categories = {int(c["id"]): Category(str(c["name"]), bool(c["isthing"])) for c in content["categories"]}
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        images = [_annotated(entry, names, path) for entry in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        told = f"an entry has no {error}" if isinstance(error, KeyError) else f"an entry is of another kind: {error}"
        raise DataError(told, where=path, expected="COCO's panoptic format", fix=EXPORT) from error
    _check_images(images, list(names), path)
    for image in images:
        strange = [f"segment {one.id}: {one.category}" for one in image.segments if one.category not in categories]
        if strange:
            raise DataError(
                f"image {image.image_id} has segments of unknown category ids: {listed(strange)}",
                where=path,
                expected=f"ids under `categories`: {listed(categories, 20)}",
                fix="add the categories, or correct the segments' category_id",
            )
    return Index(path, categories, images)


def read_panoptic(
    png: Path, image: Annotated, class_of: Mapping[int, int], things: set[int], *, max_pixels: int | None = None
) -> Panoptic:
    """The segments of one image.

    Args:
        class_of: category id -> class index; segments of other categories become void.
        things: the category ids that are objects.

    Raises:
        DataError: the PNG is missing, damaged, not RGB, or its ids and the JSON's are not the same.
    """
    colors = read_mask(png, keep_channels=True, max_pixels=max_pixels)
    if colors.ndim != 3:
        raise DataError(
            "the file of segment ids has one channel",
            where=png,
            expected="RGB, of which id = R + 256 G + 65536 B",
            fix="save it as RGB without changing a value",
        )
    every = [Segment(one.id, one.category, one.category in things, one.crowd, one.score) for one in image.segments]
    whole = Panoptic(ids_of(colors), every)
    places = whole.positions(f"{png} (image {image.image_id})")
    for place, segment in enumerate(every, 1):
        if segment.category not in class_of:
            whole.ids[places == place] = VOID
    whole.segments = [
        Segment(one.id, class_of[one.category], one.thing, one.crowd, one.score)
        for one in every
        if one.category in class_of
    ]
    return whole


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("the list of segments is missing", where=path, expected="COCO's panoptic JSON") from error
    except (OSError, ValueError) as error:
        raise DataError(f"the list of segments cannot be read: {error}", where=path, fix=EXPORT) from error
    absent = list(KEYS) if not isinstance(content, dict) else [key for key in KEYS if key not in content]
    if absent:
        raise DataError(f"the file has no {listed(absent)}", where=path, expected=f"keys {listed(KEYS)}", fix=EXPORT)
    return content


def _annotated(entry: Mapping[str, Any], names: Mapping[Any, str], path: Path) -> Annotated:
    image_id, png = entry["image_id"], str(entry["file_name"])
    if image_id not in names:
        raise DataError(
            f"an annotation is of image {image_id}, which `images` has not",
            where=path,
            expected="one entry under `images` for each annotation",
            fix="add the image, or remove the annotation",
        )
    refuse_outside((names[image_id], png), path, below="the folder of images", fix="remove the entry")
    segments = tuple(
        Listed(int(one["id"]), int(one["category_id"]), bool(one.get("iscrowd", 0)), one.get("score"))
        for one in entry["segments_info"]
    )
    return Annotated(image_id, names[image_id], png, segments)


def _check_images(images: list[Annotated], listed_ids: list[Any], path: Path) -> None:
    seen = Counter(image.image_id for image in images)
    twice = [one for one, count in seen.items() if count > 1]
    if twice:
        raise DataError(
            f"images have several annotations: {listed(twice)}",
            where=path,
            expected="one annotation per image",
            fix="remove all but one",
        )
    bare = [one for one in listed_ids if one not in seen]
    if bare:
        raise DataError(
            f"{len(bare)} images have no annotation: {listed(bare)}",
            where=path,
            expected="one annotation per image, with an empty segments_info where there is nothing",
            fix="add annotations, or take the images out of the list",
        )

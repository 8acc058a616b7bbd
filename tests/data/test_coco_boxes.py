"""A file's boxes against its masks, and what is measured where it has no box, area or id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.coco.folder import FolderInstances
from segtrain.errors import DataError

codec = pytest.importorskip("pycocotools.mask")

WIDTH, HEIGHT = 200, 100
RUNS = {"size": [HEIGHT, WIDTH], "counts": [60 * HEIGHT + 10, 40, 60, 40, WIDTH * HEIGHT - 60 * HEIGHT - 150]}
"""Columns 60 and 61, rows 10 to 49."""


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def entry(number: int | None, box: Any, *polygons: list[float], **changes: Any) -> dict[str, Any]:
    """An object; `...` takes a field away."""
    content = {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "segmentation": list(polygons),
        "bbox": box,
        "area": 5,
        "iscrowd": 0,
        **changes,
    }
    return {key: value for key, value in content.items() if value is not ...}


def folder(root: Path, *annotations: dict[str, Any], on_bad: str = "stop", **image: Any) -> FolderInstances:
    images = [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, **image}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nut"}]}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    (root / "annotations/train.json").write_text(json.dumps(content))
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    options: dict[str, Any] = {"split": "train", "root": str(root), "classes": ["background", "nut"]}
    return FolderInstances(**options, on_bad_annotation=on_bad)


def test_corners_in_place_of_sizes_are_found_though_such_a_box_holds_its_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 annotations have a box that does not hold their mask") as caught:
        folder(
            tmp_path,
            entry(1, [50, 40, 80, 70], polygon(50, 40, 30, 30)),
            entry(2, [50, 40, 30, 30], polygon(50, 40, 30, 30)),
        )
    assert "annotation 1: box [50.0, 40.0, 80.0, 70.0], that of its mask is [50.0, 40.0, 30.0, 30.0]" in str(
        caught.value.where
    )
    assert "it fits as x0, y0, x1, y1" in str(caught.value.where)


ELSEWHERE = [
    ([120, 40, 30, 30], [polygon(50, 40, 30, 30)]),
    ([0.25, 0.4, 0.15, 0.3], [polygon(50, 40, 30, 30)]),  # parts of the image
    ([50, 40, 10, 30], [polygon(50, 40, 10, 30), polygon(100, 40, 10, 30)]),  # of the first of two polygons
]


@pytest.mark.parametrize(("box", "polygons"), ELSEWHERE)
def test_a_box_elsewhere_is_a_fault_and_its_object_dropped(tmp_path: Path, box: Any, polygons: Any) -> None:
    good = entry(2, [50, 40, 30, 30], polygon(50, 40, 30, 30))
    dataset = folder(tmp_path, entry(1, box, *polygons), good, on_bad="drop")
    assert dataset[0][1].ids.tolist() == [2]
    assert dataset[0][1].boxes.tolist() == [[50, 40, 80, 70]]
    assert list(dataset.dropped.values()) == [1]


def test_run_lengths_have_boxes_too_and_groups_any(tmp_path: Path) -> None:
    objects = [
        entry(1, [60, 10, 2, 40], segmentation=RUNS),
        entry(2, [160, 10, 2, 40], segmentation=RUNS),
        entry(3, [160, 10, 2, 40], segmentation=RUNS, iscrowd=1),
        entry(4, [160, 10, 2, 40], polygon(5, 5, 9, 9), iscrowd=1),
    ]
    assert folder(tmp_path, *objects, on_bad="drop")[0][1].ids.tolist() == [1, 3, 4]


GENEROUS = [
    [10, 5, 150, 90],  # of all of an object that is partly hidden
    [51.5, 41.5, 27, 27],
    [52, 42, 26, 26],
    [45, 35, 36, 36],
]


@pytest.mark.parametrize("box", GENEROUS)
def test_boxes_that_are_loose_or_a_little_off_pass(tmp_path: Path, box: list[float]) -> None:
    found = folder(tmp_path, entry(1, box, polygon(50, 40, 30, 30)))[0][1]
    assert found.boxes.tolist() == [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]


def test_small_objects_may_miss_their_box_by_two_pixels(tmp_path: Path) -> None:
    near, far = entry(1, [12, 12, 3, 3], polygon(10, 10, 3, 3)), entry(2, [13, 13, 3, 3], polygon(10, 10, 3, 3))
    assert folder(tmp_path, near, far, on_bad="drop")[0][1].ids.tolist() == [1]


def test_the_mask_is_compared_as_far_as_the_image_goes(tmp_path: Path) -> None:
    beyond = entry(1, [150, 40, 50, 30], polygon(150, 40, 500, 30))
    assert len(folder(tmp_path, beyond)[0][1]) == 1


def test_what_the_file_leaves_out_is_measured_and_told(tmp_path: Path) -> None:
    shape = [50.2, 40.6, 80.3, 44.1, 61.7, 70.9]
    rle = codec.merge(codec.frPyObjects([shape], HEIGHT, WIDTH))
    dataset = folder(
        tmp_path,
        entry(1, ..., shape),
        entry(2, None, area=None, segmentation=RUNS),
        entry(3, [50, 40, 31, 31], shape, area=...),
    )
    found = dataset[0][1]
    x, y, width, height = codec.toBbox(rle)
    assert found.boxes.tolist() == [[x, y, x + width, y + height], [60, 10, 62, 50], [50, 40, 81, 71]]
    assert found.area.tolist() == [5, 80, codec.area(rle)]
    assert dataset.notes == [
        "2 of 3 annotations had no bbox: it is drawn around the mask",
        "2 of 3 annotations had no area: it is the mask's",
    ]


def test_objects_without_an_id_are_numbered_beside_those_that_have_one(tmp_path: Path) -> None:
    box, shape = [50, 40, 30, 30], polygon(50, 40, 30, 30)
    dataset = folder(tmp_path, entry(2, box, shape), entry(None, box, shape), entry(..., box, shape))  # type: ignore[arg-type]
    assert dataset[0][1].ids.tolist() == [2, 1, 3]
    assert dataset.notes == ["2 of 3 annotations had no id: they are numbered"]


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    shape = polygon(50, 40, 30, 30)
    odd = entry(4.0, [50, 40, 30, 30], shape, category_id=1.0, image_id=1.0, iscrowd=0.0)  # type: ignore[arg-type]
    dataset = folder(tmp_path, odd, width=float(WIDTH), id=1.0)
    assert dataset[0][1].ids.tolist() == [4]
    assert dataset.records[0].extra["id"] == 1
    assert dataset[0][1].size == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match="entry 0 of 'images' is not usable"):
        folder(tmp_path, odd, width=WIDTH + 0.5)


@pytest.mark.parametrize("slip", [[3, 4, 5, 6], [3, 4], []])
def test_a_polygon_of_two_points_goes_and_the_others_stay(tmp_path: Path, slip: list[float]) -> None:
    good = polygon(50, 40, 30, 30)
    objects = entry(1, [50, 40, 30, 30], slip, good), entry(2, [50, 40, 30, 30], good)
    with pytest.raises(DataError, match="1 of 2 annotations have a polygon of less than three points") as caught:
        folder(tmp_path, *objects)
    assert f"annotation 1: polygon 0 has {len(slip)} numbers" in str(caught.value.where)
    dataset = folder(tmp_path, *objects, on_bad="drop")
    masks = dataset[0][1].masks.numpy()
    assert len(masks) == 2
    assert np.array_equal(masks[0], masks[1])
    assert dataset.dropped == {}
    assert dataset.notes == ["1 of 2 annotations had polygons of less than three points, which are left out"]

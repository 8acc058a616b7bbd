"""COCO's objects as one class per pixel: who is on top, what is unlabelled, which images are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.coco.semantic import CocoSemantic
from segtrain.data.scan import scan
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose

pytest.importorskip("pycocotools")

CLASSES = ["background", "table", "cup", "cat"]
CATEGORIES = [{"id": 60, "name": "table"}, {"id": 40, "name": "cup"}, {"id": 10, "name": "cat"}]


def square(x: int, y: int, side: int) -> list[list[float]]:
    """A polygon that covers `side` x `side` pixels from (x, y) on."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def entry(number: int, category: int, x: int, y: int, side: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "segmentation": square(x, y, side),
        "area": side**2,
        "bbox": [x, y, side, side],
        "iscrowd": 0,
        **changes,
    }


def write(root: Path, *annotations: dict[str, Any], split: str = "train") -> Path:
    """Two images of 10x8 pixels with annotations."""
    images = [{"id": number, "file_name": f"{number}.png", "height": 8, "width": 10} for number in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / f"{split}2017").mkdir(exist_ok=True)
    for image in images:
        Image.new("RGB", (10, 8)).save(root / f"{split}2017" / str(image["file_name"]))
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def drawn(root: Path, split: str = "train", **options: Any) -> CocoSemantic:
    return CocoSemantic(**{"split": split, "root": str(root), "classes": CLASSES, **options})


CROWD = entry(9, 10, 4, 4, 4, iscrowd=1)


def expected(*squares: tuple[int, int, int, int]) -> np.ndarray:
    """Value, x, y and side of squares painted one over the other."""
    target = np.zeros((8, 10), np.uint8)
    for value, x, y, side in squares:
        target[y : y + side, x : x + side] = value
    return target


@pytest.mark.parametrize("turned", [False, True])
def test_the_smaller_is_on_top_whatever_the_order(tmp_path: Path, turned: bool) -> None:
    annotations = [entry(1, 40, 2, 2, 2), entry(2, 60, 1, 1, 5), CROWD]
    dataset = drawn(write(tmp_path, *(reversed(annotations) if turned else annotations)))
    assert np.array_equal(dataset[0][1], expected((255, 4, 4, 4), (1, 1, 1, 5), (2, 2, 2, 2)))
    assert dataset[0][1].dtype == np.uint8
    assert not dataset[1][1].any(), "an image without objects is background"


def test_size_is_the_area_that_the_file_states_and_the_later_of_equals_is_on_top(tmp_path: Path) -> None:
    big, small = entry(1, 40, 2, 2, 4, area=3), entry(2, 60, 1, 1, 3, area=5)
    assert np.array_equal(drawn(write(tmp_path, big, small))[0][1], expected((1, 1, 1, 3), (2, 2, 2, 4)))
    equal = [entry(1, 40, 1, 1, 4), entry(2, 60, 2, 2, 4)]
    assert np.array_equal(drawn(write(tmp_path, *equal))[0][1], expected((2, 1, 1, 4), (1, 2, 2, 4)))


def test_overlaps_may_be_unlabelled_also_of_one_class_and_groups_always_are(tmp_path: Path) -> None:
    root = write(tmp_path, entry(1, 40, 0, 0, 3), entry(2, 40, 2, 2, 3), CROWD)
    target = expected((2, 0, 0, 3), (2, 2, 2, 3), (255, 2, 2, 1), (255, 4, 4, 4))
    assert np.array_equal(drawn(root, overlap="ignore")[0][1], target)


def test_some_categories_under_other_names_and_the_rest_is_background(tmp_path: Path) -> None:
    root = write(tmp_path, entry(1, 40, 1, 1, 2), entry(2, 60, 4, 4, 3), entry(3, 10, 4, 1, 2))
    dataset = drawn(root, classes=["background", "animal", "mug"], categories={"cup": "mug", "cat": "animal"})
    assert np.array_equal(dataset[0][1], expected((2, 1, 1, 2), (1, 4, 1, 2)))
    with pytest.raises(ConfigError, match=r"data\.categories leads to bowl"):
        drawn(root, categories={"cup": "bowl"})
    with pytest.raises(DataError, match=r"no category of the file is in data\.categories"):
        drawn(root, categories={"Cup": "cup"})


@pytest.mark.parametrize(("area", "images"), [(12, 1), (13, 0)])
def test_images_of_train_with_little_in_them_are_left_out(tmp_path: Path, area: int, images: int) -> None:
    annotations = [entry(1, 40, 1, 1, 2), entry(2, 10, 4, 4, 3, iscrowd=1), entry(3, 60, 0, 0, 8)]
    options: dict[str, Any] = {"categories": {"cup": "cup", "cat": "cat"}, "min_area": area}
    root = write(write(tmp_path, *annotations), *annotations, split="val")
    assert len(drawn(root, "val", **options)) == 2, "val is whole"
    if images:  # 4 of a cup and 9 of a group of cats are 13; the table does not count
        assert [record.name for record in drawn(root, **options).records] == ["1"]
    else:
        with pytest.raises(DataError, match="no samples"):
            drawn(root, **options)


def test_labels_are_counted_without_an_image(tmp_path: Path) -> None:
    root = write(tmp_path, entry(1, 40, 1, 1, 2), entry(2, 60, 4, 4, 3), entry(3, 10, 0, 5, 3, iscrowd=1))
    found = scan(drawn(root))
    assert found.pixels.tolist() == [160 - 4 - 9 - 9, 9, 4, 0]
    assert found.ignored == 9


def test_an_image_of_another_size_is_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, entry(1, 40, 1, 1, 2))
    Image.new("RGB", (8, 10)).save(root / "train2017/1.png")
    with pytest.raises(DataError, match="another size than the annotations say") as caught:
        drawn(root)[0]
    assert "is 8x10" in str(caught.value.where)
    assert "as 10x8" in str(caught.value.where)


def test_faulty_annotations_stop_or_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, entry(1, 40, 1, 1, 2), entry(2, 40, 1, 1, 2, bbox=[1, 1, 0, 2]))
    with pytest.raises(DataError, match="1 of 2 annotations have a box without area"):
        drawn(root)
    assert drawn(root, on_bad_annotation="drop").dropped == {"have a box without area inside the image": 1}


@pytest.mark.parametrize(("name", "classes"), [("coco_semantic", 81), ("coco_voc", 21)])
def test_the_configs_fit_the_dataset(tmp_path: Path, name: str, classes: int) -> None:
    config = compose([f"data={name}"])
    assert config.data.num_classes == classes
    assert config.data.palette is None or len(config.data.palette) == classes
    named = config.data.categories or {}
    cup = [{"id": 47, "name": "cup"}, {"id": 62, "name": "chair"}]
    root = write(tmp_path, entry(1, 47, 1, 1, 2), entry(2, 62, 4, 4, 3), split="val")
    path = root / "annotations/instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": cup}))
    dataset = build_dataset(compose([f"data={name}", f"data.root={root}"]), "val")
    chair = list(config.data.classes).index(named.get("chair", "chair"))
    cups = [] if named else [(list(config.data.classes).index("cup"), 1, 1, 2)]
    assert np.array_equal(dataset[0][1], expected(*cups, (chair, 4, 4, 3)))

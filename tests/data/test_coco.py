"""COCO's JSON as objects: masks as pycocotools draws them, classes by name, faults named by annotation."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.data.coco.instances import Coco
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import compose

pytest.importorskip("pycocotools")
from pycocotools import mask as codec

HEIGHT, WIDTH = 20, 30
SIZE = [HEIGHT, WIDTH]
CLASSES = ["background", "cat", "traffic light", "dog"]
FILE = "annotations/instances_train2017.json"
RUNS = [45, 5, 15, 6, HEIGHT * WIDTH - 71]
Make = Callable[..., Path]


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    """A usable annotation with other fields where `changes` says so; `...` takes a field away."""
    entry = {
        "id": number,
        "image_id": 7,
        "category_id": 18,
        "segmentation": [[2.0, 2.0, 12.5, 2.0, 12.5, 9.25, 2.0, 9.25]],
        "area": 76.1,
        "bbox": [2.0, 2.0, 10.5, 7.25],
        "iscrowd": 0,
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not ...}


@pytest.fixture
def coco(tmp_path: Path) -> Make:
    """Writes a train split of three images, the second without objects, and its annotations."""

    def write(*annotations: Any, **sections: Any) -> Path:
        images = [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH} for number in (9, 3, 7)
        ]
        content = {
            "images": images,
            "annotations": list(annotations),
            "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
            **sections,
        }
        folder = tmp_path / "train2017"
        folder.mkdir(exist_ok=True)
        for number in (9, 3, 7):
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number:012d}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / FILE).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def train(root: Path, **options: Any) -> Coco:
    return Coco(**{"split": "train", "root": str(root), "classes": CLASSES, **options})


def test_masks_are_those_of_pycocotools_in_every_form(coco: Make) -> None:
    rle = codec.frPyObjects({"size": SIZE, "counts": RUNS}, *SIZE)
    forms: dict[int, Any] = {
        4: [[2.0, 2.0, 12.5, 2.0, 12.5, 9.25, 2.0, 9.25], [20, 3, 28, 3, 24, 17]],  # two parts
        5: [[-3.5, 5.001, 8.125, 5, 33.3, 26.2]],  # beyond the borders, more than two decimals
        6: {"size": SIZE, "counts": RUNS},
        8: {"size": SIZE, "counts": rle["counts"].decode()},
    }
    dataset = train(coco(*(annotation(number, segmentation=form, bbox=...) for number, form in forms.items())))
    found = dataset[2][1]
    assert found.ids.tolist() == list(forms)
    for mask, form in zip(found.masks, forms.values(), strict=True):
        rles = codec.frPyObjects(form, *SIZE) if isinstance(form, list) else [rle]
        assert np.array_equal(mask.numpy(), codec.decode(codec.merge(rles)))
    assert found.masks.dtype == torch.uint8
    assert found.masks.shape == (4, HEIGHT, WIDTH)


def test_fields_are_the_files_and_boxes_end_at_the_image(coco: Make) -> None:
    crowd = {"size": SIZE, "counts": RUNS}
    root = coco(
        annotation(5, bbox=[-4.5, 3, 40, 30.5], area=12.25),
        annotation(6, category_id=17, iscrowd=1, segmentation=crowd, image_id=9),
        annotation(2**40, image_id=9, iscrowd=...),
        annotation(8, image_id=9, iscrowd=None),
    )
    dataset = train(root)
    last, first = dataset[2][1], dataset[0][1]
    assert last.boxes.tolist() == [[0, 3, WIDTH, HEIGHT]]
    assert last.boxes.dtype == torch.float32
    assert (last.area.tolist(), last.area.dtype) == ([12.25], torch.float64)
    assert (first.ids.tolist(), first.labels.tolist()) == ([6, 2**40, 8], [1, 3, 3]), "by name, not by category id"
    assert first.crowd.tolist() == [True, False, False]
    assert first.boxes[1].tolist() == [2, 2, 12.5, 9.25]
    assert dataset.category_ids == {1: 17, 2: 19, 3: 18}, "a class that the file has not is none of its categories"


def test_images_are_in_the_files_order_and_those_without_objects_stay(coco: Make) -> None:
    dataset = train(coco(annotation(1), annotation(2, image_id=9), annotation(3)))
    assert [record.extra["id"] for record in dataset.records] == [9, 3, 7]
    assert [len(dataset[i][1]) for i in range(3)] == [1, 0, 2]
    assert dataset[1][1].masks.shape == (0, HEIGHT, WIDTH)
    assert dataset[1][1].boxes.shape == (0, 4)
    assert len(train(dataset.root, limit=2)) == 2


def test_objects_and_shapes_are_known_without_drawing(coco: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(9, 10, 40), (3, 30, 10), (7, HEIGHT, WIDTH)]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": h, "width": w} for i, h, w in sizes]
    crowd = annotation(4, iscrowd=1, segmentation={"size": SIZE, "counts": RUNS})
    dataset = train(coco(annotation(1), annotation(2, category_id=17), annotation(3), crowd, images=images))
    monkeypatch.delattr("segtrain.data.coco.annotations.Annotations.masks")
    assert dataset.count_objects(2).tolist() == [0, 1, 0, 2]
    assert dataset.count_objects(0).tolist() == [0, 0, 0, 0]
    assert dataset.aspect_ratios().tolist() == [4.0, 1 / 3, 1.5]
    dataset.records = dataset.records[2:]
    assert dataset.aspect_ratios().tolist() == [1.5]


def test_a_copy_in_another_process_has_the_same_objects(coco: Make) -> None:
    dataset = train(coco(annotation(1), annotation(2, segmentation={"size": SIZE, "counts": RUNS})))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2][1].masks, dataset[2][1].masks)


def test_a_file_of_another_class_list_gives_the_line_to_paste(coco: Make) -> None:
    categories = [{"id": 18, "name": "dog"}, {"id": 2, "name": 'a "b", c'}, {"id": 3, "name": "on"}]
    root = coco(annotation(1), categories=categories)
    with pytest.raises(DataError, match=r"2 of 3 categories are not in data\.classes") as caught:
        train(root)
    assert caught.value.where == str(root / FILE)
    line = str(caught.value.fix).removeprefix("set '").removesuffix("'")
    config = compose(["data=coco", f"data.root={root}", line])
    assert config.data.classes == ["background", 'a "b", c', "on", "dog"], "the file's names and no others"
    assert train(root, classes=list(config.data.classes))[2][1].labels.tolist() == [3]


def test_classes_that_share_nothing_with_the_file_are_replaced_in_the_line(coco: Make) -> None:
    with pytest.raises(DataError) as caught:
        train(coco(annotation(1)), classes=["background", "x"])
    assert caught.value.fix == "set 'data.classes=[background,cat,dog]'"


def test_a_category_that_only_groups_others_is_no_class(coco: Make) -> None:
    tree = [{"id": 0, "name": "pets"}, {"id": 18, "name": "dog", "supercategory": "pets"}]
    assert len(train(coco(annotation(1), categories=tree))[2][1]) == 1
    with pytest.raises(DataError, match=r"categories are not in data\.classes: pets"):
        train(coco(annotation(1), annotation(2, category_id=0), categories=tree))


@pytest.mark.parametrize("classes", [["cat", "dog"], ["background", "cat", "dog", "cat"], []])
def test_classes_begin_with_the_background_and_differ(coco: Make, classes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes"):
        train(coco(annotation(1)), classes=classes)


def test_objects_of_the_background_are_refused(coco: Make) -> None:
    categories = [{"id": 18, "name": "background"}, {"id": 17, "name": "cat"}]
    with pytest.raises(DataError, match="objects of a category 'background'"):
        train(coco(annotation(1), categories=categories))
    assert len(train(coco(annotation(1, category_id=17), categories=categories))[2][1]) == 1


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"bbox": [5, 5, 3, 0.0]}, "box without area", "box [5.0, 5.0, 3.0, 0.0]"),
    ({"bbox": [5, 5, 1e-6, 3]}, "box without area", "box [5.0, 5.0, 1e-06, 3.0]"),
    ({"bbox": [31, 5, 3, 4]}, "box without area", "of 30x20"),
    ({"bbox": [5, 5, 3]}, "lack a field", "bbox is [5, 5, 3]"),
    ({"bbox": [5, 5, 3, float("nan")]}, "lack a field", "bbox is"),
    ({"id": "2"}, "lack a field", 'id is "2"'),
    ({"image_id": 7.5}, "lack a field", "image_id is 7.5"),
    ({"bbox": "1 2 3 4"}, "lack a field", 'bbox is "1 2 3 4"'),
    ({"area": -1}, "lack a field", "area is -1"),
    ({"iscrowd": 2}, "lack a field", "iscrowd is 2"),
    ({"category_id": "dog"}, "lack a field", 'category_id is "dog"'),
    ({"image_id": True}, "lack a field", "image_id is true"),
    ({"segmentation": ...}, "no usable segmentation", "neither a list of polygons nor run lengths"),
    ({"segmentation": []}, "no usable segmentation", "no polygon"),
    ({"segmentation": [[1, 1, 5, 5]]}, "no usable segmentation", "polygon 0 has 4 numbers"),
    ({"segmentation": [[1, 1, 5, 5, 9, 2], [1, 1, 5, 5, 9]]}, "no usable segmentation", "polygon 1 has 5 numbers"),
    ({"segmentation": [[1, 1, float("nan"), 5, 9, 2]]}, "no usable segmentation", "not finite"),
    ({"segmentation": [[1, 1, 5e8, 5, 9, 2]]}, "no usable segmentation", "reaches further"),
    ({"segmentation": [1, 1, 5, 5, 9, 2]}, "no usable segmentation", "polygon 0 is no list"),
    ({"segmentation": [["1", 1, 5, 5, 9, 2]]}, "no usable segmentation", "polygon 0 is no list of numbers"),
    ({"segmentation": {"size": SIZE, "counts": [600, 1]}}, "no usable segmentation", "add up to 601"),
    ({"segmentation": {"size": SIZE, "counts": "zzz"}}, "no usable segmentation", "run lengths"),
    ({"segmentation": {"size": [30, 20], "counts": [100, 500]}}, "another size", "of 20x30, image 7 is 30x20"),
    ({"segmentation": {"size": SIZE, "counts": [600]}}, "cover no pixel", "empty"),
    *(
        ({"segmentation": [[x, y, x + 20, y, x + 20, y + 15, x, y + 15]]}, "cover no pixel", "empty")
        for x, y in ((31, 2), (2, 21), (-21, 2), (2, -16))
    ),
    ({"segmentation": [[3, 3, 9, 3, 6, 3]]}, "cover no pixel", "empty"),
    ({"image_id": 8}, "images that the file does not list", "image_id 8"),
    ({"category_id": 5}, "categories that the file does not list", "category_id 5"),
    ({"id": 1}, "have the id of another", "annotation 1"),
    ({"bbox": [20, 2, 10.5, 7.25]}, "have a box that does not hold their mask", "is [2.0, 2.0, 10.5, 7.25]"),
    ({"bbox": [2, 2, 3, 7.25]}, "have a box that does not hold their mask", "box [2.0, 2.0, 3.0, 7.25]"),
    ({"segmentation": {"size": SIZE, "counts": RUNS}, "bbox": [20, 9, 9, 9]}, "does not hold their mask", "[20.0, 9.0"),
]
NAMED: dict[object, object] = {1: 1, "2": "without id"}


@pytest.mark.parametrize(
    ("changes", "kind", "told"), BAD, ids=[f"{number} {kind}" for number, (_, kind, _) in enumerate(BAD)]
)
def test_a_faulty_annotation_is_named_or_dropped(coco: Make, changes: dict[str, Any], kind: str, told: str) -> None:
    root = coco(annotation(1), annotation(**{"number": 2, **changes}), annotation(3))
    with pytest.raises(DataError, match=kind) as caught:
        train(root)
    where = str(caught.value.where)
    assert where.startswith(str(root / FILE))
    assert f"annotation {NAMED.get(changes.get('id'), 2)}: " in where
    assert told in where
    assert "data.on_bad_annotation=drop" in str(caught.value.fix)
    dataset = train(root, on_bad_annotation="drop")
    assert dataset[2][1].ids.tolist() == [1, 3]
    assert list(dataset.dropped.values()) == [1]
    assert kind in dataset.notes[0]
    assert "1 of 3 annotations left out" in dataset.notes[0]


def test_all_faults_of_a_kind_are_one_error_that_counts_the_others(coco: Make) -> None:
    flat = [annotation(number, bbox=[1, 1, 0, 5]) for number in range(10, 25)]
    root = coco(annotation(1), *flat, annotation(30, segmentation=[]), annotation(31, segmentation=[]))
    with pytest.raises(DataError, match="15 of 18 annotations have a box without area") as caught:
        train(root)
    lines = str(caught.value.where).splitlines()
    assert lines[1].startswith("annotation 10: ")
    assert len(lines) == 13
    assert lines[-2:] == ["and 5 more", "besides, 2 have no usable segmentation"]


def test_whether_a_mask_is_empty_is_as_pycocotools_draws_it(coco: Make) -> None:
    """Only thin and outer polygons are drawn when a file is read: none that is empty may be passed over."""
    draws = np.random.default_rng(0)
    polygons = []
    for _ in range(600):
        around = draws.uniform([-3, -3], [WIDTH + 3, HEIGHT + 3])
        spread = draws.choice([0.2, 0.6, 1.5, 4.0], 2)
        polygons.append(
            np.round(around + draws.uniform(-spread, spread, (draws.integers(3, 7), 2)), 2).ravel().tolist()
        )
    drawn = {number: codec.area(codec.frPyObjects([points], *SIZE))[0] for number, points in enumerate(polygons)}
    full = [0, 0, WIDTH, HEIGHT]
    root = coco(*(annotation(n, segmentation=[points], bbox=full) for n, points in enumerate(polygons)))
    dataset = train(root, on_bad_annotation="drop")
    kept = [number for number, area in drawn.items() if area > 0]
    assert 100 < len(kept) < 500, "the polygons must be of both kinds"
    assert dataset[2][1].ids.tolist() == kept
    assert dataset[2][1].masks.flatten(1).sum(1).tolist() == [drawn[number] for number in kept]


@pytest.mark.parametrize("decimals", [2, 3])
def test_coordinates_lose_no_bit_however_they_are_kept(coco: Make, decimals: int) -> None:
    points = np.round(np.random.default_rng(1).uniform(-5, 25, 60), decimals).tolist()
    for shift in (0, 5):  # without negative ones there is a shorter way to keep them
        shifted = [round(value + shift, decimals) for value in points]
        dataset = train(coco(annotation(1, segmentation=[shifted], bbox=[1, 1, 20, 15])))
        assert dataset.annotations.outlines.segmentation(0, *SIZE) == [shifted]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", ""])
def test_a_file_cannot_reach_images_elsewhere(coco: Make, name: str) -> None:
    images = [{"id": 7, "file_name": name, "height": HEIGHT, "width": WIDTH}]
    with pytest.raises(DataError, match="1 images of the file lie outside its folder"):
        train(coco(annotation(1), images=images))


def test_images_that_are_not_there_are_named_together(coco: Make) -> None:
    root = coco(annotation(1))
    for number in (9, 3):
        (root / f"train2017/{number:012d}.jpg").unlink()
    with pytest.raises(DataError, match="2 of 3 files of split 'train' are missing") as caught:
        train(root)
    assert "000000000003.jpg" in str(caught.value.where)
    assert "cocodataset.org" in str(caught.value.fix)


def test_an_image_of_another_size_than_listed_is_an_error(coco: Make) -> None:
    root = coco(annotation(1))
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(root / "train2017/000000000007.jpg")
    with pytest.raises(DataError, match="image and objects have different sizes"):
        train(root)[2]


TWICE = {"id": 9, "file_name": "a.jpg", "height": 2, "width": 2}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"annotations": None}, "no list 'annotations'"),
        ({"categories": {}}, "no list 'categories'"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "entry 0 of 'images' is not usable"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 0, "width": 5}]}, "entry 0 of 'images'"),
        ({"images": [TWICE, {**TWICE, "file_name": "b.jpg"}]}, "'images' repeats the id of 1 entries: 9"),
        ({"categories": [{"id": 1, "name": ""}]}, "entry 0 of 'categories' is not usable"),
        (
            {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}]},
            "repeats the name of 1 entries: dog",
        ),
    ],
)
def test_a_file_that_is_none_of_objects_says_what_is_wrong(coco: Make, sections: dict[str, Any], told: str) -> None:
    root = coco(annotation(1), **sections)
    with pytest.raises(DataError, match=told) as caught:
        train(root)
    assert caught.value.where == str(root / FILE)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"[]", b"3"])
def test_a_damaged_file_is_no_crash(coco: Make, text: bytes) -> None:
    root = coco(annotation(1))
    (root / FILE).write_bytes(text)
    with pytest.raises(DataError, match=r"annotations (are no JSON|have no list)"):
        train(root)


def test_panoptic_segments_are_told_from_objects(coco: Make) -> None:
    segments = {"image_id": 7, "file_name": "7.png", "segments_info": [{"id": 3, "category_id": 18}]}
    with pytest.raises(DataError, match="1 of 1 annotations lack a field"):
        train(coco(segments))


def test_the_folder_may_be_named_or_be_root_and_nothing_is_downloaded(coco: Make, tmp_path: Path) -> None:
    root = coco(annotation(1))
    home = tmp_path / "above/coco"
    home.mkdir(parents=True)
    for name in ("annotations", "train2017"):
        (root / name).rename(home / name)
    assert len(train(tmp_path / "above")) == len(train(home)) == 3
    with pytest.raises(DataError, match="not found") as caught:
        train(tmp_path)
    assert "instances_{train,val}2017.json" in str(caught.value.expected)
    with pytest.raises(ConfigError, match="cannot be downloaded") as refused:
        train(home, download=True)
    assert "cocodataset.org" in str(refused.value.fix)

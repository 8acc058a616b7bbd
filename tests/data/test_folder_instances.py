"""`folder_instances` finds what annotation tools write, and says which classes to name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.data.coco.folder import FolderInstances
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose

pytest.importorskip("pycocotools")

CLASSES = ["background", "crack", "hole"]
AREA = {"segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4], "area": 8, "iscrowd": 0, "image_id": 0}


def write(root: Path, annotations: str, images: str, name: str = "a.jpg", **sections: Any) -> None:
    """One image of 8x6 pixels with one object."""
    content = {
        "images": [{"id": 0, "file_name": name, "width": 8, "height": 6}],
        "annotations": [{"id": 0, "category_id": 1, **AREA}],
        "categories": [{"id": 1, "name": "hole"}],
        **sections,
    }
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(content))
    (root / images / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(root / images / name)


def folder(root: Path, split: str = "train", **options: Any) -> FolderInstances:
    return FolderInstances(**{"split": split, "root": str(root), "classes": CLASSES, **options})


LAYOUTS = [
    ("{0}/_annotations.coco.json", "{0}"),
    ("annotations/{0}.json", "{0}"),
    ("annotations/{0}.json", "images/{0}"),
    ("annotations/{0}.json", "images"),
    ("annotations/instances_{0}.json", "images/{0}"),
    ("annotations/instances_{0}.json", "images"),
]


@pytest.mark.parametrize(("annotations", "images"), LAYOUTS)
def test_the_layouts_of_tools(tmp_path: Path, annotations: str, images: str) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path, annotations.format(split), images.format(split), f"{split}.jpg")
    for split in ("train", "val", "test"):
        dataset = folder(tmp_path, split)
        assert [record.name for record in dataset.records] == [split]
        assert dataset.records[0].image == tmp_path / images.format(split) / f"{split}.jpg"
        assert dataset[0][1].labels.tolist() == [2]


def test_roboflows_valid_is_val_and_its_group_no_class(tmp_path: Path) -> None:
    group = [{"id": 0, "name": "damage", "supercategory": "none"}]
    categories = [*group, {"id": 1, "name": "hole", "supercategory": "damage"}]
    write(tmp_path, "valid/_annotations.coco.json", "valid", categories=categories)
    assert len(folder(tmp_path, "val")) == 1
    with pytest.raises(DataError, match="annotations of split 'train' not found"):
        folder(tmp_path)


def test_names_of_ones_own_with_or_without_the_split(tmp_path: Path) -> None:
    write(tmp_path, "out/train-7.json", "pictures/all")
    named = folder(tmp_path, annotations="out/{split}-7.json", images="pictures/all")
    assert named.records[0].image == tmp_path / "pictures/all/a.jpg"
    assert len(folder(tmp_path, "val", annotations="out/train-7.json", images="pictures/all")) == 1
    with pytest.raises(DataError, match="annotations of split 'val' not found") as caught:
        folder(tmp_path, "val", annotations="out/{split}-7.json", images="pictures/all")
    assert caught.value.where == str(tmp_path / "out/val-7.json")
    with pytest.raises(DataError, match="folder of images of split 'train' not found"):
        folder(tmp_path, annotations="out/{split}-7.json", images="pictures/{split}")


@pytest.mark.parametrize("pattern", ["../{split}.json", "/etc/{split}.json"])
@pytest.mark.parametrize("key", ["annotations", "images"])
def test_names_of_ones_own_stay_below_root(tmp_path: Path, key: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}="):
        folder(tmp_path, **{key: pattern})


def test_images_in_folders_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "annotations/train.json", "images", "one/day/a.jpg")
    dataset = folder(tmp_path)
    assert dataset.records[0].name == "one/day/a"
    assert dataset[0][0].shape == (6, 8, 3)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, "annotations/train.json", "images")
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(DataError, match="files of split 'train' are missing") as caught:
        folder(tmp_path)
    assert str(tmp_path / "images/a.jpg") in str(caught.value.where)


def test_an_empty_root_says_what_may_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotations of split 'train' not found") as caught:
        folder(tmp_path)
    assert "_annotations.coco.json" in str(caught.value.expected)
    assert "data.annotations=" in str(caught.value.fix)


def test_any_wrong_class_list_shows_the_right_one(tmp_path: Path) -> None:
    categories = [{"id": 2, "name": "crack"}, {"id": 1, "name": "hole"}]
    write(tmp_path, "annotations/val.json", "images", categories=categories)
    config = ["data=folder_instances", f"data.root={tmp_path}"]
    with pytest.raises(DataError) as caught:
        build_dataset(compose([*config, "data.classes=[background,x]"]), "val")
    line = str(caught.value.fix).removeprefix("set '").removesuffix("'")
    assert line == "data.classes=[background,hole,crack]"
    assert build_dataset(compose([*config, line]), "val")[0][1].labels.tolist() == [1]
    with pytest.raises(ConfigError, match=r"data\.classes is not set"):
        build_dataset(compose(config), "val")

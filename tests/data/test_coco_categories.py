"""Which ids classes have in results, and what is said of class lists that are not the file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segtrain.data.coco.folder import FolderInstances
from segtrain.errors import DataError, SegtrainError
from segtrain.instances import Detections
from segtrain.object_exports import coco_results

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO

AREA = {"segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4], "area": 8, "iscrowd": 0, "image_id": 0}


def folder(root: Path, classes: list[str], categories: dict[int, str], *used: int) -> FolderInstances:
    """One image with one object of each used category."""
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"id": number, "category_id": id_, **AREA} for number, id_ in enumerate(used, 1)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/val.json").write_text(json.dumps(content))
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 6)).save(root / "images/a.png")
    return FolderInstances(split="val", root=str(root), classes=classes)


def test_classes_that_a_split_lacks_have_ids_that_none_of_its_categories_has(tmp_path: Path) -> None:
    classes = ["background", "screw", "nut", "washer", "bolt"]
    dataset = folder(tmp_path, classes, {5: "screw", 7: "washer", 9: "_background_"}, 7)
    assert dataset.category_ids == {1: 5, 2: 10, 3: 7, 4: 11}
    ones = torch.ones(4, 6, 8, dtype=torch.uint8)
    found = Detections(torch.tensor([[0.0, 0, 8, 6]] * 4), torch.arange(1, 5), torch.full((4,), 0.5), ones)
    results: list[dict[str, Any]] = coco_results(found, 0, dataset.category_ids)
    judge = COCO(str(tmp_path / "annotations/val.json"))
    assert [entry["category_id"] for entry in results] == [5, 10, 7, 11]
    assert len(judge.loadRes(results).getAnnIds(catIds=[5, 7])) == 2


@pytest.mark.parametrize("name", ["_background_", "Background", "__BACKGROUND__", "background"])
def test_a_background_without_objects_is_no_class(tmp_path: Path, name: str) -> None:
    dataset = folder(tmp_path, ["background", "nut"], {0: name, 1: "nut"}, 1)
    assert dataset[0][1].labels.tolist() == [1]
    with pytest.raises(DataError, match=f"objects of a category '{name}'"):
        folder(tmp_path, ["background", "nut"], {0: name, 1: "nut"}, 1, 0)


WRONG = [
    ["background", "Screw", "nut"],
    ["background", "screw"],
    ["background", "nut", "hammer"],
    ["nut", "screw"],
    ["screw", "background"],
    ["x"],
    [],
]


@pytest.mark.parametrize("classes", WRONG)
def test_the_line_to_paste_has_the_files_names_and_no_others(tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(SegtrainError, match=r"data\.classes") as caught:
        folder(tmp_path, classes, {3: "nut", 0: "_background_", 1: "screw"}, 1, 3)
    assert caught.value.fix == "set 'data.classes=[background,screw,nut]'"
    assert caught.value.where == str(tmp_path / "annotations/val.json")


def test_names_that_differ_in_case_alone_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only the case differs") as caught:
        folder(tmp_path, ["background", "Screw", "nut"], {1: "screw", 3: "washer", 4: "nut"}, 1)
    assert caught.value.found.endswith(": 'Screw' in data.classes, 'screw' in the file")

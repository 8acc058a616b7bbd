"""The script that makes panoptic files of COCO's instance files: what it writes is read back as what was there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from segtrain.data.panoptic.coco import CocoPanoptic

ROOT = Path(__file__).parents[1]


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def test_objects_become_segments_and_all_else_is_one_kind_of_stuff(tmp_path: Path) -> None:
    for folder in ("annotations", "val2017"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "val2017" / "7.jpg")
    whole = {"counts": [0, 600], "size": [20, 30]}
    objects = [
        {"id": 1, "category_id": 18, "bbox": [0, 0, 20, 20], "segmentation": box(0, 0, 20, 20), "area": 400},
        {"id": 2, "category_id": 1, "bbox": [5, 5, 5, 10], "segmentation": box(5, 5, 5, 10), "area": 50},
        {"id": 3, "category_id": 18, "bbox": [0, 0, 30, 20], "segmentation": whole, "area": 600, "iscrowd": 1},
    ]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "7.jpg", "height": 20, "width": 30}],
                "annotations": [{"iscrowd": 0, **one, "image_id": 7} for one in objects],
                "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
            }
        )
    )
    command = [sys.executable, str(ROOT / "scripts" / "panoptic_from_instances.py"), "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "'data.classes=[background,person,dog]' 'data.things=[person,dog]'" in done.stdout
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    data = CocoPanoptic(
        split="val", root=str(tmp_path), classes=["background", "person", "dog"], things=["person", "dog"]
    )
    _, found, record = data[0]
    assert record.extra["image_id"] == 7
    kinds = {(one.category, one.thing, one.crowd): (found.ids == one.id).sum() for one in found.segments}
    assert kinds == {(2, True, False): 350, (1, True, False): 50, (2, True, True): 200}

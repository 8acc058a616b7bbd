"""Real images of COCO, where there are any: every mask is pycocotools' own, every object is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from segtrain.data.coco.instances import Coco
from segtrain.data.coco.semantic import CocoSemantic
from segtrain.experiment import compose

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO

ROOT = Path(__file__).parents[2] / "../shared/data/coco128"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real data at {ROOT}")


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 40, 416, 4), ("val", 14, 85, 1)])
def test_every_mask_is_that_of_pycocotools(split: str, images: int, objects: int, crowds: int) -> None:
    judge = COCO(str(ROOT / f"annotations/instances_{split}2017.json"))
    dataset = Coco(split=split, root=str(ROOT), classes=list(compose(["data=coco"]).data.classes))
    assert dataset.dropped == {}
    counted = [0, 0]
    for index, record in enumerate(dataset.records):
        found = dataset[index][1]
        expected = judge.imgToAnns[record.extra["id"]]
        assert found.ids.tolist() == [entry["id"] for entry in expected]
        for mask, label, entry in zip(found.masks, found.labels.tolist(), expected, strict=True):
            assert np.array_equal(mask.numpy(), judge.annToMask(entry))
            assert dataset.category_ids[label] == entry["category_id"]
            assert dataset.classes[label] == judge.cats[entry["category_id"]]["name"]
        assert dataset.count_objects(index).sum() == int((~found.crowd).sum())
        counted[0] += len(found)
        counted[1] += int(found.crowd.sum())
    assert (len(dataset), *counted) == (images, objects, crowds)


IDS = [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
"""VOC's classes as COCO's category ids (pytorch/vision, references/segmentation/coco_utils.py)."""


def test_vocs_classes_are_drawn_by_the_rule_of_torchvisions_references() -> None:
    path = ROOT / "annotations/instances_train2017.json"
    judge = COCO(str(path))
    config = compose(["data=coco_voc"]).data
    keys = ("classes", "palette", "categories", "overlap", "min_area", "on_bad_annotation", "label_map")
    arguments = {key: OmegaConf.to_object(config)[key] for key in keys}  # type: ignore[index]
    dataset = CocoSemantic(split="train", root=str(ROOT), **arguments)
    wanted = {
        image: [entry for entry in entries if entry["category_id"] in IDS] for image, entries in judge.imgToAnns.items()
    }
    kept = [image for image in judge.imgs if sum(entry["area"] for entry in wanted.get(image, [])) > 1000]
    assert [record.extra["id"] for record in dataset.records] == kept
    assert 0 < len(kept) < len(judge.imgs)
    for index, image in enumerate(kept):
        masks = np.stack([judge.annToMask(entry) for entry in wanted[image]])
        numbers = np.array([IDS.index(entry["category_id"]) for entry in wanted[image]], np.uint8)
        target = (masks * numbers[:, None, None]).max(0)
        target[masks.sum(0) > 1] = 255
        for mask, entry in zip(masks, wanted[image], strict=True):
            if entry["iscrowd"]:
                target[mask > 0] = 255  # where ours differs: a group has no class
        assert np.array_equal(dataset[index][1], target)

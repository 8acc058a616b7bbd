"""COCO's results: what pycocotools decodes from them is what was found, from one process or several."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.instances import Detections, Instances, boxes_around
from segtrain.metrics.coco_ap import AveragePrecision
from segtrain.metrics.objects import JudgedObjects
from segtrain.object_exports import CocoExport, coco_results, image_id_of
from segtrain.rle import encode
from segtrain.types import Record

pytest.importorskip("pycocotools")
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IDS = {1: 18, 2: 90}


def found(seed: int, count: int = 3) -> Detections:
    draw = torch.Generator().manual_seed(seed)
    masks = (torch.rand(count, 9, 13, generator=draw) > 0.7).to(torch.uint8)
    scores = torch.rand(count, generator=draw).sort(descending=True).values
    return Detections(boxes_around(masks) + 0.125, torch.arange(count) % 2 + 1, scores, masks)


def judged(index: int, record: Record, count: int = 3) -> JudgedObjects:
    return JudgedObjects(torch.zeros(9, 13, 3), found(index, count), Instances.none(9, 13), record, index)


def test_what_the_file_says_is_what_was_found() -> None:
    detections = found(0)
    results = json.loads(json.dumps(coco_results(detections, 42, IDS)))
    assert [one["image_id"] for one in results] == [42, 42, 42]
    assert [one["category_id"] for one in results] == [18, 90, 18]
    for number, one in enumerate(results):
        assert np.array_equal(codec.decode(one["segmentation"]), detections.masks[number].numpy())
        x0, y0, x1, y1 = detections.boxes[number].tolist()
        assert one["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert np.float32(one["score"]) == detections.scores[number].numpy()


def test_cocos_code_gives_our_scores_of_the_file_where_all_scores_are_near_one(tmp_path: Path) -> None:
    """A network that is sure says 0.9999994 and 0.9999996: six decimals would make ties of them."""
    draw = np.random.default_rng(3)
    ours = AveragePrecision(classes=["background", "cat"], boundary=False)
    export, truth = CocoExport(tmp_path / "results.json", {1: 5}), COCO()
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 5}]}
    for index in range(12):
        true = torch.zeros(4, 40, 40, dtype=torch.uint8)
        for number, (top, left) in enumerate(((1, 1), (1, 21), (21, 1), (21, 21))):
            true[number, top : top + 15, left : left + 15] = 1
        objects = Instances.of(true, torch.ones(4, dtype=torch.int64))
        masks = torch.cat([true.roll(int(shift), 1) for shift in draw.integers(0, 5, 3)])
        scores = torch.tensor(1 - draw.integers(0, 40, 12) * 2.0**-24, dtype=torch.float32)
        boxes = boxes_around(masks) + torch.tensor(draw.uniform(-2, 2, (12, 4)), dtype=torch.float32)
        order = torch.argsort(-scores, stable=True)
        found = Detections(boxes[order], torch.ones(12, dtype=torch.int64), scores[order], masks[order])
        export.update(
            JudgedObjects(torch.zeros(40, 40, 3), found, objects, Record(str(index), extra={"id": index}), index)
        )
        ours.update(found, objects, index)
        content["images"].append({"id": index, "height": 40, "width": 40})
        for box, mask, area in zip(objects.boxes.tolist(), encode(true), objects.area.tolist(), strict=True):
            entry = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "segmentation": mask, "area": area}
            entry |= {"id": len(content["annotations"]) + 1, "image_id": index, "category_id": 5, "iscrowd": 0}
            content["annotations"].append(entry)
    export.write()
    scores_of = ours.compute()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {**content, "info": {}}
        truth.createIndex()
        for kind, theirs in (("box", "bbox"), ("mask", "segm")):
            judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), theirs)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            names = ("ap", "ap50", "ap75")
            assert [scores_of[f"{kind}_{name}"] for name in names] == judge.stats[:3].tolist()
            assert 0.1 < scores_of[f"{kind}_ap"] < 0.9


def test_an_image_of_nothing_adds_nothing() -> None:
    assert coco_results(found(0, 0), 1, IDS) == []


def test_an_image_is_called_by_its_publishers_number_or_by_its_name() -> None:
    assert image_id_of(Record("a/b", extra={"image_id": 7, "id": 8})) == 7
    assert image_id_of(Record("a/b", extra={"id": 8})) == 8
    assert image_id_of(Record("a/b")) == "a/b"


def test_several_processes_write_what_one_writes(tmp_path: Path) -> None:
    records = [Record(str(number), extra={"id": 100 - number}) for number in range(4)]
    whole = CocoExport(tmp_path / "one.json", IDS)
    ranks = [CocoExport(tmp_path / "two.json", IDS) for _ in range(2)]
    for index, record in enumerate(records):
        whole.update(judged(index, record, 3 * (index != 2)))
    for index in (3, 1, 2, 0):
        ranks[index % 2].update(judged(index, records[index], 3 * (index != 2)))
    ranks[0].merge(ranks[1].state())
    for export in (whole, ranks[0]):
        export.write()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    content = json.loads((tmp_path / "one.json").read_text())
    assert [one["image_id"] for one in content] == [100] * 3 + [99] * 3 + [97] * 3
    assert whole.compute() == {"export": {"path": str(tmp_path / "one.json"), "detections": 9}}

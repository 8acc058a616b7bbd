"""COCO's results: what pycocotools decodes from them is what was found, from one process or several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.instances import Detections, Instances, boxes_around
from segtrain.metrics.objects import JudgedObjects
from segtrain.object_exports import CocoExport, coco_results, image_id_of
from segtrain.types import Record

pytest.importorskip("pycocotools")
from pycocotools import mask as codec

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
        assert one["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.0051)
        assert one["score"] == pytest.approx(detections.scores[number].item(), abs=5e-7)


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

"""Objects found, as COCO's tools and servers read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtrain.atomic import write_atomically
from segtrain.instances import Detections
from segtrain.metrics.objects import JudgedObjects
from segtrain.rle import encode
from segtrain.types import Record


def coco_results(found: Detections, image_id: int | str, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format: boxes as x, y, width, height, masks as run lengths.

    Boxes and the order of scores are those of `found` to the last bit: rounded scores would tie, and COCO's code would
    sort and score other detections than ours.

    Args:
        found: in pixels of the image.
        image_id: the data's number of the image, or its name where it has none.
        category_ids: class index -> the data's number of the category.
    """
    boxes, labels = found.boxes.cpu().tolist(), found.labels.cpu().tolist()
    scores = [float(str(score)) for score in found.scores.cpu().float().numpy()]  # the fewest digits of a float32
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": mask,
        }
        for (x0, y0, x1, y1), score, label, mask in zip(boxes, scores, labels, encode(found.masks.cpu()), strict=True)
    ]


def image_id_of(record: Record) -> int | str:
    """The publisher's number of an image, or its name."""
    found: int | str = record.extra.get("image_id", record.extra.get("id", record.name))
    return found


class CocoExport:
    """An `ObjectMetric` that writes all detections into one file, as COCO's server takes them.

    Args:
        path: the file.
        category_ids: class index -> the data's number of the category.
    """

    def __init__(self, path: Path, category_ids: Mapping[int, int]) -> None:
        self.path = path
        self.category_ids = category_ids
        self.found: dict[int, list[dict[str, Any]]] = {}

    def update(self, judged: JudgedObjects) -> None:
        """Takes in one image."""
        self.found[judged.index] = coco_results(judged.detections, image_id_of(judged.record), self.category_ids)

    def state(self) -> dict[int, list[dict[str, Any]]]:
        """The detections by place of their image in the dataset."""
        return self.found

    def merge(self, state: dict[int, list[dict[str, Any]]]) -> None:
        """Adds those of another rank."""
        self.found |= state

    def compute(self) -> dict[str, Any]:
        """`export`: where the file will be and how many detections it has."""
        return {"export": {"path": str(self.path), "detections": sum(map(len, self.found.values()))}}

    def write(self) -> None:
        """Writes the file, images in the order of the dataset."""
        everything = [one for index in sorted(self.found) for one in self.found[index]]
        write_atomically(self.path, json.dumps(everything).encode())

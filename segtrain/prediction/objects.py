"""Results where each object has a mask of its own: pictures, ids of objects, and COCO's results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from segtrain.atomic import write_atomically
from segtrain.data.coco.instances import Coco
from segtrain.instances import Detections
from segtrain.object_exports import coco_results
from segtrain.object_pictures import with_objects
from segtrain.prediction.collected import frames_of, image_ids
from segtrain.prediction.files import ALWAYS, KINDS, Legend, overlay_step, write_labels, write_overlay, write_png
from segtrain.prediction.journal import Journal
from segtrain.prediction.results import Asked
from segtrain.prediction.tally import ObjectTally
from segtrain.segmenter import Segmenter
from segtrain.types import Fraction

COLLECTION = "coco_results.json"
BYTES_PER_PIXEL = 3
"""What masks are reckoned in: an image that waits has as many for each pixel."""


class Objects:
    """What the network says of one image.

    Args:
        found: all of it, in the main memory, the likeliest first.
        score: what is less likely is neither shown nor counted.
    """

    def __init__(self, found: Detections, score: float) -> None:
        self.found = found
        self.score = score

    @cached_property
    def shown(self) -> Detections:
        """The objects of pictures and maps; the number of one is its place, counted from 1."""
        return self.found.keep(self.found.scores >= self.score)

    @cached_property
    def ids(self) -> np.ndarray:
        """(H, W) uint16: the number of each pixel's object, the likeliest where they overlap; 0 where none is."""
        masks = self.shown.masks.numpy()
        ids = np.zeros(masks.shape[1:], np.uint16)
        for number in range(len(masks), 0, -1):
            ids[masks[number - 1] != 0] = number
        return ids

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8 class indices, 0 where no object is."""
        return np.array([0, *self.shown.labels.tolist()], np.uint8)[self.ids]


class ObjectResults:
    """`masks/`, `overlays/`, `areas/`, `instances/` of the objects that are sure enough, `detections/` of all.

    `detections/NAME.json` lists what the network found in COCO's results format, but for `image_id`; from these files
    `coco_results.json` is made. The methods are those of `segtrain.prediction.results.Results`.

    Args:
        legend: what the pictures share.
        score: objects from it on are shown.
        category_ids: class index -> the publisher's id of the category.
    """

    def __init__(self, legend: Legend, score: Fraction, category_ids: Mapping[int, int]) -> None:
        self.legend = legend
        self.score = score
        self.category_ids = category_ids
        self.tally = ObjectTally(legend, legend.classes[1:])
        self.kinds = {kind: KINDS[kind] for kind in (*ALWAYS, "instances", "detections")}
        self.settings = {"score": score, "opacity": legend.opacity, "category_ids": sorted(category_ids.items())}
        self.collection = COLLECTION

    @classmethod
    def of(cls, segmenter: Segmenter, asked: Asked) -> ObjectResults:
        """Raises a ConfigError where something is asked for that only pixels have."""
        asked.refuse_wishes_for_pixels(segmenter.task.name, "score=0.7 shows surer objects alone")
        return cls(Legend(segmenter.classes, segmenter.palette, asked.opacity), asked.score, category_ids(segmenter))

    def ask(self, segmenter: Segmenter, batch: Tensor) -> list[Objects]:
        return [Objects(one.cpu(), self.score) for one in segmenter.task.predict(segmenter.model, batch)]

    def held(self, answer: Objects) -> int:
        masks = answer.found.masks
        return masks.shape[1] * masks.shape[2] + masks.numel() // BYTES_PER_PIXEL

    def count(self, answer: Objects | None) -> np.ndarray:
        if answer is None:
            return self.tally.count(None, [])
        return self.tally.count(answer.labels, answer.shown.labels.tolist())

    def areas(self, counts: np.ndarray) -> np.ndarray:
        return self.tally.areas(counts)

    def line(self, counts: np.ndarray) -> dict[str, Any]:
        return self.tally.line(counts)

    def described(self, counts: np.ndarray, answer: Objects | None) -> dict[str, Any]:
        objects = {} if answer is None else {"objects": self._listed(answer.shown)}
        return {"counts": self.tally.objects(counts), **objects}

    def overlay(self, image: np.ndarray, answer: Objects) -> np.ndarray:
        return with_objects(image, answer.shown, self.legend.classes, self.legend.palette, self.legend.opacity)

    def write(self, files: Mapping[str, Path], image: np.ndarray, answer: Objects) -> None:
        write_labels(files["masks"], answer.labels, self.legend.palette)
        write_png(files["instances"], Image.fromarray(answer.ids))
        if "overlays" in files:
            step = overlay_step(image.shape[0], image.shape[1])
            shown = np.ascontiguousarray(image[::step, ::step])
            write_overlay(files["overlays"], self.overlay(shown, Objects(_thinned(answer.found, step), self.score)))
        entries = coco_results(answer.found, "", self.category_ids)
        nameless = [{key: value for key, value in entry.items() if key != "image_id"} for entry in entries]
        write_atomically(files["detections"], (json.dumps(nameless) + "\n").encode())

    def summary(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self.tally.summary(lines)

    def collect(self, journal: Journal) -> None:
        """Writes `coco_results.json`: every detection of every image, each image named by `image_ids`."""
        found: list[str] = []
        lines = journal.current()
        names = image_ids(lines)
        for name, _ in frames_of(lines):
            entries = json.loads((journal.output / "detections" / f"{name}.json").read_bytes())
            found += [json.dumps({"image_id": names.get(name, name), **entry}) for entry in entries]
        write_atomically(journal.output / COLLECTION, ("[" + ",\n".join(found) + "]\n").encode())

    def _listed(self, shown: Detections) -> list[dict[str, Any]]:
        sizes = shown.masks.flatten(1).sum(1).tolist()
        rows = zip(shown.labels.tolist(), shown.scores.tolist(), shown.boxes.tolist(), sizes, strict=True)
        return [
            {
                "id": number,
                "class": self.legend.classes[label],
                "score": round(score, 6),
                "box": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                "area": area,
            }
            for number, (label, score, (x0, y0, x1, y1), area) in enumerate(rows, 1)
        ]


def category_ids(segmenter: Segmenter) -> dict[int, int]:
    """Class index -> the id that results name the class by: that of the training data's publisher.

    Published weights and older checkpoints do not tell it. Of them, classes have COCO's own ids where the config's
    data are COCO's, which are 1 to 90 with gaps as torchvision lists them, and others their index.
    """
    if segmenter.category_ids is not None:
        return segmenter.category_ids
    kind = segmenter.settings.target("data")
    if isinstance(kind, type) and issubclass(kind, Coco):
        published = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        if set(segmenter.classes[1:]) <= set(published):
            return {index: published.index(name) for index, name in enumerate(segmenter.classes) if index}
    return {index: index for index in range(1, len(segmenter.classes))}


def _thinned(found: Detections, step: int) -> Detections:
    """The detections in an image of which every `step`-th pixel is left."""
    if step == 1:
        return found
    masks = found.masks[:, ::step, ::step].contiguous()
    return Detections(found.boxes / step, found.labels, found.scores, masks)

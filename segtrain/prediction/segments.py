"""Results where each pixel belongs to one segment: an object, or stuff of a class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from torch import Tensor

from segtrain.atomic import write_atomically
from segtrain.panoptic import Panoptic
from segtrain.panoptic_files import PanopticWriter
from segtrain.prediction.collected import frames_of, image_ids
from segtrain.prediction.files import ALWAYS, KINDS, Legend, overlay_step, write_labels, write_overlay
from segtrain.prediction.journal import Journal
from segtrain.prediction.results import Asked
from segtrain.prediction.tally import ObjectTally
from segtrain.segment_pictures import with_segments
from segtrain.segmenter import Segmenter


class SegmentResults:
    """`masks/`, `overlays/`, `areas/`, and COCO's panoptic format: `panoptic/` and what it is in `segments/`.

    `segments/NAME.json` is the list that COCO calls `segments_info`; from these files `panoptic.json` is made, which
    with `panoptic/` is what panopticapi scores. A class's `category_id` is 1 + its index. The methods are those of
    `segtrain.prediction.results.Results`.

    Args:
        legend: what the pictures share.
        things: the names of the classes that have objects.
    """

    def __init__(self, legend: Legend, things: list[str]) -> None:
        self.legend = legend
        self.things = things
        self.tally = ObjectTally(legend, things)
        self.kinds = {kind: KINDS[kind] for kind in (*ALWAYS, "panoptic", "segments")}
        self.settings = {"opacity": legend.opacity, "things": things}
        self.collection = "panoptic.json"

    @classmethod
    def of(cls, segmenter: Segmenter, asked: Asked) -> SegmentResults:
        """Raises a ConfigError where something is asked for that segments have not."""
        task = segmenter.task
        asked.refuse_wishes_for_pixels(task.name, "task.score_threshold=0.7 keeps surer objects alone")
        asked.refuse_score(
            f"task={task.name}, whose segments leave no room for less sure ones",
            f"task.score_threshold={asked.score:g}",
        )
        return cls(Legend(segmenter.classes, segmenter.palette, asked.opacity), list(task.things))

    def ask(self, segmenter: Segmenter, batch: Tensor) -> list[Panoptic]:
        found: list[Panoptic] = segmenter.task.predict(segmenter.model, batch)
        return found

    def held(self, answer: Panoptic) -> int:
        return 2 * answer.ids.size

    def count(self, answer: Panoptic | None) -> np.ndarray:
        if answer is None:
            return self.tally.count(None, [])
        return self.tally.count(answer.labels(), [one.category for one in answer.segments if one.thing])

    def areas(self, counts: np.ndarray) -> np.ndarray:
        return self.tally.areas(counts)

    def line(self, counts: np.ndarray) -> dict[str, Any]:
        return {**self.tally.line(counts), "abstained": self._void(counts)}

    def described(self, counts: np.ndarray, answer: Panoptic | None) -> dict[str, Any]:
        void = {"pixels": self._void(counts), "share": self._void(counts) / max(1, int(self.areas(counts).sum()))}
        segments = {} if answer is None else {"segments": self._listed(answer)}
        return {"abstained": void, "counts": self.tally.objects(counts), **segments}

    def overlay(self, image: np.ndarray, answer: Panoptic) -> np.ndarray:
        return with_segments(image, answer, self.legend.palette, self.legend.opacity)

    def write(self, files: Mapping[str, Path], image: np.ndarray, answer: Panoptic) -> None:
        write_labels(files["masks"], answer.labels(), self.legend.palette)
        if "overlays" in files:
            step = overlay_step(*answer.size)
            write_overlay(files["overlays"], np.ascontiguousarray(self.overlay(image, answer)[::step, ::step]))
        writer = self._writer(files["panoptic"].parent)
        writer.add(answer, image_id=0, image=files["panoptic"].name)
        segments = writer.annotations[0]["segments_info"]
        write_atomically(files["segments"], (json.dumps(segments) + "\n").encode())

    def summary(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.tally.summary(lines), "abstained": sum(line["abstained"] for line in lines)}

    def collect(self, journal: Journal) -> None:
        """Writes `panoptic.json`: the segments of every image, each image named by `image_ids`."""
        lines = journal.current()
        names, writer = image_ids(lines), self._writer(journal.output / "panoptic")
        for name, line in frames_of(lines):
            number = names.get(name, name)
            height, width = line["size"]
            suffix = ".png" if "frames" in line else PurePath(line["file"]).suffix
            image = {"id": number, "file_name": f"{name}{suffix}", "height": height, "width": width}
            segments = json.loads((journal.output / "segments" / f"{name}.json").read_bytes())
            annotation = {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
            writer.merge(({number: image}, {number: annotation}))
        writer.finish()

    def _writer(self, folder: Path) -> PanopticWriter:
        return PanopticWriter(folder, classes=self.legend.classes, things=self.things, palette=self.legend.palette)

    def _void(self, counts: np.ndarray) -> int:
        return int(self.areas(counts)[-1])

    def _listed(self, found: Panoptic) -> list[dict[str, Any]]:
        areas = np.bincount(found.positions().ravel(), minlength=len(found.segments) + 1)[1:].tolist()
        return [
            {
                "id": one.id,
                "class": self.legend.classes[one.category],
                "thing": one.thing,
                "area": area,
                **({} if one.score is None else {"score": round(one.score, 6)}),
            }
            for one, area in zip(found.segments, areas, strict=True)
        ]

"""Beside panoptic quality: predictions as COCO's panoptic files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.data.images import ImageDataset
from segtrain.errors import ConfigError, listed
from segtrain.metrics.digest import DataDigest
from segtrain.panoptic_files import PanopticWriter
from segtrain.scoring.base import ScoringOptions
from segtrain.segmenter import Segmenter
from segtrain.tasks.panoptic import JudgedSegments, PanopticMeter
from segtrain.types import Record


class SegmentDigest(DataDigest):
    """The fingerprint of images and their segments: ids, and what each is."""

    def update(self, judged: JudgedSegments) -> None:  # type: ignore[override]
        about = [[one.id, one.category, one.thing, one.crowd] for one in judged.truth.segments]
        self.add(judged.record.name, judged.image.cpu().numpy(), judged.truth.ids, np.array(about, np.int64))


class PanopticExport:
    """A `SegmentMetric` that writes each prediction as a PNG, and their list as JSON.

    Files are called as the records are, with their folders: images of several folders often share their files' names.
    """

    def __init__(self, writer: PanopticWriter) -> None:
        self.writer = writer

    def update(self, judged: JudgedSegments) -> None:
        """Writes one image."""
        record = judged.record
        suffix = ".png" if record.image is None else record.image.suffix
        self.writer.add(judged.prediction, image_id=record.extra["image_id"], image=f"{record.name}{suffix}")

    def state(self) -> Any:
        """What this rank wrote."""
        return self.writer.state()

    def merge(self, state: Any) -> None:
        """Adds what another rank wrote."""
        self.writer.merge(state)

    def compute(self) -> dict[str, Any]:
        """`export`: where the files are."""
        return {"export": {"path": str(self.writer.folder), "images": len(self.writer.images)}}


class PanopticScoring:
    """For merged answers of two networks."""

    main = "pq"
    convention = "left out of the mean where neither targets nor predictions have them; a pair matches above IoU 0.5"

    def __init__(self, options: ScoringOptions, segmenter: Segmenter, dataset: ImageDataset[Any], folder: Path) -> None:
        if options.report or options.scores == "full":
            raise ConfigError(
                f"{'report=true' if options.report else 'scores=full'} with task=panoptic",
                expected="scores=basic report=false: all of panoptic quality is basic",
                fix="evaluate the two checkpoints alone with report=true",
            )
        self.digest: DataDigest = SegmentDigest()
        self.export = _export(options, segmenter, dataset, folder)
        extra: list[Any] = [self.digest, *([self.export] if self.export is not None else [])]
        self.meter: PanopticMeter = segmenter.task.meter(extra)

    def finish(self, scores: dict[str, Any]) -> None:
        """All is computed already."""

    def summary(self, scores: dict[str, Any]) -> list[str]:
        return [f"{scores['images_per_second']:.1f} images/s"]

    def write(self, scores: dict[str, Any], title: str, say: Callable[[str], None]) -> None:
        if self.export is not None:
            say(f"export: {self.export.writer.finish()}")


def _export(
    options: ScoringOptions, segmenter: Segmenter, dataset: ImageDataset[Any], folder: Path
) -> PanopticExport | None:
    if options.export == "none":
        return None
    if options.export != "coco":
        raise ConfigError(
            f"export={options.export} with task=panoptic",
            expected="none or coco",
            fix="export=coco writes COCO's panoptic PNGs and their list",
        )
    refuse_namesakes(dataset.records)
    writer = PanopticWriter(
        folder / "panoptic",
        classes=dataset.classes,
        things=segmenter.task.things,
        palette=segmenter.palette,
        category_ids=getattr(dataset, "category_ids", None),
    )
    return PanopticExport(writer)


def refuse_namesakes(records: Iterable[Record]) -> None:
    """Raises a ConfigError where the PNG of one image would overwrite that of another."""
    times = Counter(record.name for record in records)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise ConfigError(
            f"export=coco with several images of one name: {listed(twice)}",
            expected="names that differ in more than .jpg or .png: the PNGs of segments are called by them",
            fix="rename the images in the data, or export=none",
        )

"""Beside COCO's average precision: curves, the worst images, results as COCO's servers take them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from segtrain.atomic import write_atomically
from segtrain.data.images import ImageDataset
from segtrain.data.instances.dataset import InstanceDataset
from segtrain.errors import ConfigError
from segtrain.metrics.digest import DataDigest, ObjectDigest
from segtrain.object_exports import CocoExport
from segtrain.object_gallery import ObjectGallery
from segtrain.report.objects import instance_page
from segtrain.scoring.base import REPORT, ScoringOptions
from segtrain.segmenter import Segmenter
from segtrain.tasks.instance import InstanceMeter


class InstanceScoring:
    """For tasks of one mask per object; full scores have boundary AP too."""

    main = "mask_ap"
    convention = (
        "left out of the mean where no target has them; AP over IoU 0.50:0.05:0.95, at most 100 detections of a class"
    )

    def __init__(self, options: ScoringOptions, segmenter: Segmenter, dataset: ImageDataset[Any], folder: Path) -> None:
        self.segmenter = segmenter
        self.folder = folder
        self.digest: DataDigest = ObjectDigest()
        self.gallery = ObjectGallery(segmenter.classes, segmenter.palette) if options.report else None
        self.export = _export(options, dataset, folder)
        if options.scores == "full" or options.report:
            segmenter.task.boundary_ap = True
        metrics = [self.digest, *(one for one in (self.gallery, self.export) if one is not None)]
        self.meter: InstanceMeter = segmenter.task.meter(metrics)

    def finish(self, scores: dict[str, Any]) -> None:
        """All is computed already."""

    def summary(self, scores: dict[str, Any]) -> list[str]:
        loss = "" if math.isnan(scores["loss"]) else f"loss {scores['loss']:.4f}   "
        return [f"{loss}{scores['images_per_second']:.1f} images/s"]

    def write(self, scores: dict[str, Any], title: str, say: Callable[[str], None]) -> None:
        if self.export is not None:
            self.export.write()
            say(f"export: {self.export.path}")
        if self.gallery is not None:
            precision = self.meter.precision
            page = instance_page(
                title,
                scores,
                self.segmenter.classes,
                self.segmenter.palette,
                curves=precision.curves(),
                by_size=precision.by_size(),
                by_threshold={kind: precision.by_threshold(kind) for kind in precision.kinds},
                worst=self.gallery.worst(),
            )
            write_atomically(self.folder / REPORT, page.encode())
            say(f"report: {self.folder / REPORT}")


def _export(options: ScoringOptions, dataset: ImageDataset[Any], folder: Path) -> CocoExport | None:
    if options.export == "none":
        return None
    if options.export != "coco":
        raise ConfigError(
            f"export={options.export} with a checkpoint that finds objects",
            expected="none or coco",
            fix="export=coco writes coco_results.json",
        )
    return CocoExport(folder / "coco_results.json", cast(InstanceDataset, dataset).category_ids)

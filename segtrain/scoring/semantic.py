"""Beside the scores of classes: intervals, boundaries, calibration, an anatomy of the errors, the worst images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segtrain.atomic import write_atomically
from segtrain.data.images import ImageDataset
from segtrain.errors import ConfigError
from segtrain.export_formats import CityscapesExport, VocExport
from segtrain.gallery import Gallery
from segtrain.metrics.anatomy import ErrorAnatomy
from segtrain.metrics.base import ImageMetric
from segtrain.metrics.bootstrap import PerImageCounts, intervals
from segtrain.metrics.boundary import BoundaryScores
from segtrain.metrics.calibration import Calibration
from segtrain.metrics.cityscapes import CityscapesScores
from segtrain.metrics.digest import DataDigest
from segtrain.report.page import evaluation_page
from segtrain.scoring.base import PER_IMAGE, REPORT, ScoringOptions
from segtrain.segmenter import Segmenter
from segtrain.tasks.semantic import SemanticMeter
from segtrain.tracking import percent


class SemanticScoring:
    """For tasks of one class per pixel; writes `per_image.npz` for comparisons, and what `options` ask for."""

    main = "miou"
    convention = "left out of the mean where neither targets nor predictions have them"

    def __init__(self, options: ScoringOptions, segmenter: Segmenter, dataset: ImageDataset[Any], folder: Path) -> None:
        names = segmenter.classes
        self.segmenter = segmenter
        self.folder = folder
        self.digest = DataDigest()
        self.counts = PerImageCounts(names)
        self.full: list[ImageMetric] = []
        if options.scores == "full" or options.report:
            # Cityscapes' void is the car's own hood and no band around objects, and its images are larger.
            city = _is_cityscapes(segmenter)
            boundary = BoundaryScores(names, dilation_ratio=0.005, trimap="edges") if city else BoundaryScores(names)
            self.full = [boundary, Calibration(), ErrorAnatomy(names)]
            self.full += [CityscapesScores(classes=names)] if city else []
        self.gallery = Gallery(names, segmenter.palette) if options.report else None
        self.export = _export(options, names, folder)
        rest = [one for one in (self.gallery, self.export) if one is not None]
        self.meter: SemanticMeter = segmenter.task.meter([self.digest, self.counts, *self.full, *rest])

    def finish(self, scores: dict[str, Any]) -> None:
        scores["interval"] = intervals(self.counts)

    def summary(self, scores: dict[str, Any]) -> list[str]:
        low, high = scores["interval"]["miou"]
        lines = [
            f"mIoU interval {percent(low)} to {percent(high)} (95 %, {scores['interval']['images']} images drawn "
            f"{scores['interval']['resamples']} times)",
            f"loss {scores['loss']:.4f}   {scores['images_per_second']:.1f} images/s",
        ]
        if "anatomy" in scores:
            shares = scores["anatomy"]["share_of_errors"]
            lines.append(
                "errors   " + ", ".join(f"{kind.replace('_', ' ')} {percent(share)}%" for kind, share in shares.items())
            )
            lines.append(
                f"boundary IoU {percent(scores['boundary']['mean_iou'])}   F {percent(scores['boundary']['mean_f'])}   "
                f"calibration error {percent(scores['calibration']['ece'])}"
            )
        return lines

    def write(self, scores: dict[str, Any], title: str, say: Callable[[str], None]) -> None:
        self.counts.save(self.folder / PER_IMAGE)
        say(f"per image: {self.folder / PER_IMAGE}")
        if self.export is not None:
            say(f"export: {scores['export']['path']}")
        if self.gallery is not None:
            worst = self.gallery.worst()
            page = evaluation_page(title, scores, self.segmenter.classes, self.segmenter.palette, worst)
            write_atomically(self.folder / REPORT, page.encode())
            say(f"report: {self.folder / REPORT}")


def _export(options: ScoringOptions, names: list[str], folder: Path) -> CityscapesExport | VocExport | None:
    if options.export == "cityscapes":
        return CityscapesExport(folder / "cityscapes", classes=names)
    if options.export == "voc":
        return VocExport(folder / "voc", classes=names, split=options.split)
    if options.export == "coco":
        raise ConfigError(
            "export=coco with a checkpoint of one class per pixel",
            expected="a checkpoint of model=maskrcnn: COCO's results are lists of objects",
            fix="export=none, cityscapes or voc",
        )
    return None


def _is_cityscapes(segmenter: Segmenter) -> bool:
    target: str = segmenter.settings.node["data"]["_target_"]
    return target == "segtrain.data.cityscapes.Cityscapes"

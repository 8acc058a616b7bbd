"""`python -m segtrain evaluate checkpoint=…`: the scores of a checkpoint, computed as in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segtrain import distributed, experiment, signatures
from segtrain.checkpoint import write_atomically
from segtrain.composition import compose, lay_over
from segtrain.errors import ConfigError
from segtrain.evaluator import evaluate
from segtrain.export_formats import CityscapesExport, VocExport
from segtrain.gallery import Gallery
from segtrain.metrics.anatomy import ErrorAnatomy
from segtrain.metrics.base import ImageMetric
from segtrain.metrics.bootstrap import PerImageCounts, intervals
from segtrain.metrics.boundary import BoundaryScores
from segtrain.metrics.calibration import Calibration
from segtrain.metrics.cityscapes import CityscapesScores
from segtrain.metrics.digest import DataDigest
from segtrain.protocol import protocol_card
from segtrain.report.page import evaluation_page
from segtrain.run_folder import RunFolder
from segtrain.tracking import RunTracker, Tracker, percent, say_early, write_json


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command's own keys."""

    checkpoint: str | None = None
    split: str = "val"
    scores: Literal["basic", "full"] = "basic"
    report: bool = False
    export: Literal["none", "cityscapes", "voc"] = "none"
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


@dataclass
class Extras:
    """The metrics of whole images that an evaluation computes beside its task's own."""

    digest: DataDigest
    counts: PerImageCounts
    full: list[ImageMetric]
    gallery: Gallery | None
    export: CityscapesExport | VocExport | None

    def all(self) -> list[ImageMetric]:
        """In the order in which they see each image."""
        return [self.digest, self.counts, *self.full, *(one for one in (self.gallery, self.export) if one is not None)]


def run(cfg: DictConfig, folder: RunFolder) -> float:
    """Scores one split, prints the table, writes `metrics.json` and what was asked for; returns the mean IoU."""
    plain: Any = OmegaConf.to_container(cfg)
    # What is laid over the checkpoint's config is checked as part of it, where its targets have all their keys.
    own = {**plain, "over": None} if isinstance(plain.get("over"), dict) else plain
    signatures.check(own, EvaluateOptions, "")
    options = EvaluateOptions(**plain)
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    segmenter, source = _segmenter(options)
    path = Path(distributed.from_main(str(folder.choose(segmenter.settings.name))))
    with folder.held(say_early):
        if distributed.is_main():
            folder.describe(segmenter.config, experiment.versions(), str(segmenter.device))
            for stale in ("metrics.json", "per_image.npz", "report.html"):  # of an earlier evaluation in this folder
                (path / stale).unlink(missing_ok=True)
        return _evaluate(options, segmenter, source, path)


def _evaluate(options: EvaluateOptions, segmenter: experiment.Segmenter, source: str, path: Path) -> float:
    """Scores the split into the folder `path`, which is ours alone; returns the mean IoU."""
    tracker = RunTracker(path, log_name="evaluate.log") if distributed.is_main() else Tracker()
    dataset = segmenter.dataset(options.split)
    loader = segmenter.loader(dataset)
    tracker.say(f"checkpoint {source}")
    tracker.say(f"data       {type(dataset).__name__} {options.split}, {len(dataset)} images on {segmenter.device}")
    extras = _extras(options, segmenter, path)
    bar = tracker.bar(loader.images, options.split)
    scores = evaluate(
        segmenter.model,
        loader,
        segmenter.task,
        segmenter.device,
        precision=segmenter.precision,
        meter=segmenter.task.meter(extras.all()),
        after_batch=bar.update,
    )
    bar.close()
    scores["interval"] = intervals(extras.counts)
    scores["protocol"] = protocol_card(
        segmenter, options.split, extras.digest, options.checkpoint, experiment.versions()
    )
    tracker.say()
    for line in [*segmenter.task.table(scores), *_summary(scores)]:
        tracker.say(line)
    if distributed.is_main():
        _write(path, options, scores, segmenter, extras, tracker)
    return float(scores["miou"])


def _segmenter(options: EvaluateOptions) -> tuple[experiment.Segmenter, str]:
    """The network to score, and what to call it: a checkpoint, published weights, or a method that learns nothing."""
    over, choices = options.over or {}, options.choices or {}
    if options.checkpoint is not None:
        found = experiment.from_checkpoint(
            options.checkpoint, over=over, choices=choices, allow_targets=options.allow_targets
        )
        return found, options.checkpoint
    base: Any = OmegaConf.to_container(compose([]), resolve=False)
    cfg = lay_over(base, over, choices)
    cfg.allow_targets = options.allow_targets or []
    segmenter, report = experiment.from_config(cfg, "checkpoint=outputs/train/…/checkpoints/best.pt")
    return segmenter, f"{segmenter.settings.name}, {report}"


def _extras(options: EvaluateOptions, segmenter: experiment.Segmenter, path: Path) -> Extras:
    names = segmenter.classes
    full: list[ImageMetric] = []
    if options.scores == "full" or options.report:
        # Cityscapes' void is the car's own hood and no band around objects, and its images are larger.
        city = _is_cityscapes(segmenter)
        boundary = BoundaryScores(names, dilation_ratio=0.005, trimap="edges") if city else BoundaryScores(names)
        full = [boundary, Calibration(), ErrorAnatomy(names), *([CityscapesScores(classes=names)] if city else [])]
    try:
        export = _export(options, names, path)
    except ConfigError as error:
        error.of_all_ranks = True
        raise
    gallery = Gallery(names, segmenter.palette) if options.report else None
    return Extras(DataDigest(), PerImageCounts(names), full, gallery, export)


def _export(options: EvaluateOptions, names: list[str], path: Path) -> CityscapesExport | VocExport | None:
    if options.export == "cityscapes":
        return CityscapesExport(path / "cityscapes", classes=names)
    if options.export == "voc":
        return VocExport(path / "voc", classes=names, split=options.split)
    return None


def _is_cityscapes(segmenter: experiment.Segmenter) -> bool:
    target: str = segmenter.settings.node["data"]["_target_"]
    return target == "segtrain.data.cityscapes.Cityscapes"


def _summary(scores: dict[str, Any]) -> list[str]:
    """What stands under the table of classes."""
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


def _write(
    path: Path,
    options: EvaluateOptions,
    scores: dict[str, Any],
    segmenter: experiment.Segmenter,
    extras: Extras,
    tracker: Tracker,
) -> None:
    """Leaves the files of one evaluation and names them."""
    extras.counts.save(path / "per_image.npz")
    content = {**scores, "checkpoint": options.checkpoint, "split": options.split}
    write_json(path / "metrics.json", content)
    tracker.say(f"metrics: {path / 'metrics.json'}")
    tracker.say(f"per image: {path / 'per_image.npz'}")
    if extras.export is not None:
        tracker.say(f"export: {scores['export']['path']}")
    if extras.gallery is not None:
        title = f"{segmenter.settings.name}, {options.split}"
        page = evaluation_page(title, content, segmenter.classes, segmenter.palette, extras.gallery.worst())
        write_atomically(path / "report.html", page.encode())
        tracker.say(f"report: {path / 'report.html'}")


def goal(cfg: DictConfig) -> tuple[str, bool]:
    """The score that `run` returned: its name, and whether more of it is better."""
    return "miou", True

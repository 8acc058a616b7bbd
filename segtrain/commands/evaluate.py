"""`python -m segtrain evaluate checkpoint=…`: the scores of a checkpoint, computed as in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segtrain import distributed, experiment, signatures
from segtrain.data.images import ImageDataset
from segtrain.errors import ConfigError
from segtrain.evaluator import evaluate
from segtrain.overlay import chosen
from segtrain.protocol import protocol_card
from segtrain.run_folder import RunFolder
from segtrain.scoring.base import STALE, Scoring, ScoringOptions
from segtrain.scoring.instance import InstanceScoring
from segtrain.scoring.panoptic import PanopticScoring
from segtrain.scoring.semantic import SemanticScoring
from segtrain.tracking import RunTracker, Tracker, say_early, write_json
from segtrain.types import Score

SCORINGS: dict[str, Callable[..., Scoring]] = {
    "semantic": SemanticScoring,
    "instance": InstanceScoring,
    "panoptic": PanopticScoring,
}
"""By the name of a task: what is computed beside its own scores."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command's own keys."""

    checkpoint: str | None = None
    split: str = "val"
    scores: Literal["basic", "full"] = "basic"
    report: bool = False
    export: Literal["none", "cityscapes", "voc", "coco"] = "none"
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


def run(cfg: DictConfig, folder: RunFolder) -> Score:
    """Scores one split, prints the table, writes `metrics.json` and what was asked for; returns the main score."""
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
            for stale in ("metrics.json", *STALE):  # of an earlier evaluation in this folder
                (path / stale).unlink(missing_ok=True)
        return _evaluate(options, segmenter, source, path)


def _evaluate(options: EvaluateOptions, segmenter: experiment.Segmenter, source: str, path: Path) -> Score:
    """Scores the split into the folder `path`, which is ours alone; returns the main score."""
    tracker = RunTracker(path, log_name="evaluate.log") if distributed.is_main() else Tracker()
    dataset = segmenter.dataset(options.split)
    loader = segmenter.loader(dataset)
    tracker.say(f"checkpoint {source}")
    tracker.say(f"data       {type(dataset).__name__} {options.split}, {len(dataset)} images on {segmenter.device}")
    scoring = _scoring(options, segmenter, dataset, path)
    bar = tracker.bar(loader.images, options.split)
    scores = evaluate(
        segmenter.model,
        loader,
        segmenter.task,
        segmenter.device,
        precision=segmenter.precision,
        meter=scoring.meter,
        after_batch=bar.update,
    )
    bar.close()
    scoring.finish(scores)
    scores["protocol"] = protocol_card(
        segmenter, options.split, scoring.digest, options.checkpoint, experiment.versions(), scoring.convention
    )
    tracker.say()
    for line in [*segmenter.task.table(scores), *scoring.summary(scores)]:
        tracker.say(line)
    if distributed.is_main():
        content = {**scores, "checkpoint": options.checkpoint, "split": options.split}
        write_json(path / "metrics.json", content)
        tracker.say(f"metrics: {path / 'metrics.json'}")
        scoring.write(content, f"{segmenter.settings.name}, {options.split}", tracker.say)
    return Score(float(scores[scoring.main]), scoring.main)


def _scoring(
    options: EvaluateOptions, segmenter: experiment.Segmenter, dataset: ImageDataset[Any], path: Path
) -> Scoring:
    wanted = ScoringOptions(split=options.split, scores=options.scores, report=options.report, export=options.export)
    try:
        return SCORINGS[segmenter.task.name](wanted, segmenter, dataset, path)
    except ConfigError as error:
        error.of_all_ranks = True
        raise


def _segmenter(options: EvaluateOptions) -> tuple[experiment.Segmenter, str]:
    """The network to score, and what to call it: a checkpoint, published weights, or a method that learns nothing."""
    over, choices = options.over or {}, options.choices or {}
    if options.checkpoint is not None:
        found = experiment.from_checkpoint(
            options.checkpoint, over=over, choices=choices, allow_targets=options.allow_targets
        )
        return found, options.checkpoint
    cfg = chosen(over, choices)
    cfg.allow_targets = options.allow_targets or []
    segmenter, report = experiment.from_config(cfg, "checkpoint=outputs/train/…/checkpoints/best.pt")
    return segmenter, f"{segmenter.settings.name}, {report}"

"""`python -m segtrain evaluate checkpoint=…`: the scores of a checkpoint, computed as in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain import distributed, experiment, signatures
from segtrain.evaluator import evaluate
from segtrain.run_folder import RunFolder
from segtrain.tracking import RunTracker, Tracker, class_table, write_json


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command's own keys."""

    checkpoint: str
    split: str = "val"
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


def run(cfg: DictConfig, folder: RunFolder) -> float:
    """Scores one split, prints the table, writes `metrics.json` and returns the mean IoU."""
    plain: Any = OmegaConf.to_container(cfg)
    signatures.check(plain, EvaluateOptions, "")
    options = EvaluateOptions(**plain)
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    segmenter = experiment.from_checkpoint(
        options.checkpoint, over=options.over, choices=options.choices, allow_targets=options.allow_targets
    )
    path = Path(distributed.from_main(str(folder.choose(segmenter.settings.name))))
    if distributed.is_main():
        folder.describe(segmenter.config, experiment.versions(), str(segmenter.device))
    tracker = RunTracker(path, log_name="evaluate.log") if distributed.is_main() else Tracker()
    dataset = segmenter.dataset(options.split)
    loader = segmenter.loader(dataset)
    tracker.say(f"checkpoint {options.checkpoint}")
    tracker.say(f"data       {type(dataset).__name__} {options.split}, {len(dataset)} images on {segmenter.device}")
    bar = tracker.bar(loader.images, options.split)
    scores = evaluate(
        segmenter.model,
        loader,
        segmenter.task,
        segmenter.device,
        precision=segmenter.precision,
        after_batch=bar.update,
    )
    bar.close()
    tracker.say()
    for line in class_table(scores):
        tracker.say(line)
    tracker.say(f"loss {scores['loss']:.4f}   {scores['images_per_second']:.1f} images/s")
    if distributed.is_main():
        write_json(path / "metrics.json", {**scores, "checkpoint": options.checkpoint, "split": options.split})
    tracker.say(f"metrics: {path / 'metrics.json'}")
    return float(scores["miou"])


def goal(cfg: DictConfig) -> tuple[str, bool]:
    """The score that `run` returned: its name, and whether more of it is better."""
    return "miou", True

"""`python -m segtrain [train]`: from a config to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain import checkpoint, distributed, experiment, resuming
from segtrain.run_folder import RunFolder
from segtrain.settings import Settings
from segtrain.tracking import class_table, say_early
from segtrain.trainer import Trainer


def run(cfg: DictConfig, folder: RunFolder) -> float:
    """Trains, prints the closing block and returns the monitored score of the best epoch."""
    settings = Settings(cfg)
    options = settings.options
    experiment.join(settings)
    found = resuming.find_checkpoint(options.resume, folder, settings.name, cfg, say_early)
    path = Path(distributed.from_main(str(folder.choose(settings.name))))
    state: dict[str, Any] | None = None
    if found is not None:
        state = checkpoint.load(found)
        scores = resuming.finished_scores(path, cfg, state)
        if scores is not None:
            say_early(f"the run in {path} is finished: {options.monitor} {scores[options.monitor]:.4f}")
            return float(scores[options.monitor])
        resuming.refuse_changes(cfg, state, options.resume_allow or [], say_early)
        if distributed.is_main():
            resuming.bring_best(found, path / "checkpoints")
    if distributed.is_main():
        folder.describe(cfg, experiment.versions(), options.device)
    trainer = experiment.build(cfg, folder=path, resume=state, resume_hint=folder.resume_line())
    trainer.tracker.text("config", "```yaml\n" + OmegaConf.to_yaml(cfg) + "\n```")
    best = trainer.fit()
    close(trainer, path, best)
    trainer.tracker.finish(trainer.summary(), resuming.flat(settings.tree), options.monitor)
    return float(best[options.monitor])


def close(trainer: Trainer, path: Path, best: dict[str, Any]) -> None:
    """The closing block: scores by class, every file, and what to do next."""
    say, checkpoints = trainer.tracker.say, trainer.checkpoints
    say()
    for line in class_table(best):
        say(line)
    say()
    say(f"best: {checkpoints / 'best.pt'}  (epoch {best['epoch']})")
    say(f"last: {checkpoints / 'last.pt'}")
    say(f"metrics: {path / 'metrics.json'}")
    say(f"curves: tensorboard --logdir {path}")
    say(f"next: python -m segtrain evaluate checkpoint={checkpoints / 'best.pt'}")
    say(f"next: python -m segtrain predict checkpoint={checkpoints / 'best.pt'} input=photo.jpg")

"""`python -m segtrain [train]`: from a config to a trained model."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain import checkpoint, distributed, experiment, resuming
from segtrain.rehearsal import rehearse
from segtrain.run_folder import RunFolder, override
from segtrain.settings import Settings
from segtrain.tracking import say_early
from segtrain.trainer import Trainer
from segtrain.types import Score


def run(cfg: DictConfig, folder: RunFolder) -> Score:
    """Trains, prints the closing block and returns the monitored score of the best epoch."""
    settings = Settings(cfg)
    options = settings.options
    experiment.join(settings)
    if not resuming.goes_on_in(options.resume, folder.path):
        folder.refuse_other_run(
            "checkpoints/last.pt", "trainer.resume=auto goes on with it; hydra.run.dir=DIR names another folder"
        )
    found = resuming.find_checkpoint(options.resume, folder, settings.name, cfg, say_early)
    path = folder.path = Path(distributed.from_main(str(folder.choose(settings.name))))
    state: dict[str, Any] | None = None
    if found is not None:
        state = checkpoint.load(found)
        changed = resuming.refuse_changes(cfg, state, options.resume_allow or [], say_early)
        scores = resuming.finished_scores(path, changed, state)
        if scores is not None:
            score = scores[settings.monitor]
            say_early(f"the run in {path} is finished: {settings.monitor} {'-' if score is None else f'{score:.4f}'}")
            value = math.nan if score is None else float(score)
            return Score(value, settings.monitor, settings.target("task").monitors[settings.monitor])
    with folder.held(say_early):
        return train(cfg, settings, folder, path, found, state)


def train(
    cfg: DictConfig,
    settings: Settings,
    folder: RunFolder,
    path: Path,
    found: Path | None,
    state: dict[str, Any] | None,
) -> Score:
    """Trains in the folder `path` that is ours alone, from the checkpoint `found` with `state` or from the start."""
    if distributed.is_main():
        if found is not None and state is not None:
            state = checkpoint.load(found)  # again: until the folder was ours, another run may have gone on in it
            state = resuming.bring_best(found, state, path / "checkpoints", say_early)
        folder.describe(cfg, experiment.versions(), settings.options.device)
        (path / "metrics.json").unlink(missing_ok=True)  # it says that a run is finished
    if state is not None:
        state["best"] = distributed.from_main(state["best"])
    trainer = experiment.build(cfg, folder=path, resume=state, resume_hint=folder.resume_line())
    if settings.options.forecast:
        forecast = rehearse(trainer, auto=settings.rider["data"].batch_size == "auto")
        trainer.tracker.say(f"{forecast}\n")
    trainer.tracker.text("config", "```yaml\n" + OmegaConf.to_yaml(cfg) + "\n```")
    best = trainer.fit()
    close(trainer, folder, best, settings.allow)
    monitor = trainer.course.monitor
    trainer.tracker.finish(trainer.course.summary(), resuming.flat(settings.tree), monitor)
    return Score(float(best[monitor]), monitor, trainer.task.monitors[monitor])


def close(trainer: Trainer, folder: RunFolder, best: dict[str, Any], allow: list[str]) -> None:
    """The closing block: scores by class, every file, and what to do next."""
    say, checkpoints, path = trainer.tracker.say, trainer.checkpoints, trainer.checkpoints.parent
    say()
    for line in trainer.task.table(best):
        say(line)
    say()
    say(f"best: {checkpoints / 'best.pt'}  (epoch {best['epoch']})")
    say(f"last: {checkpoints / 'last.pt'}")
    say(f"metrics: {path / 'metrics.json'}")
    drawn = trainer.options.tensorboard
    say(f"curves: tensorboard --logdir {shlex.quote(str(path))}" if drawn else f"curves: {path / 'metrics.jsonl'}")
    words = [override("checkpoint", str(checkpoints / "best.pt"))]
    words += [f"allow_targets=[{','.join(allow)}]"] if allow else []  # never taken from a checkpoint
    say(f"next: {folder.command_line('evaluate', *words)}")
    say(f"next: {folder.command_line('predict', *words, 'input=photo.jpg')}")

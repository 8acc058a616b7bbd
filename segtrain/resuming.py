"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ConfigError, listed
from segtrain.run_folder import RunFolder

Plain = dict[str, Any]
Say = Callable[[str], None]

SAFE = (
    "allow_targets",
    "name",
    "data.root",
    "data.num_workers",
    "data.download",
    "data.scan",
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.device",
    "trainer.compile",
    "trainer.channels_last",
    "trainer.early_stop",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.samples",
    "trainer.tensorboard",
    "trainer.resume",
    "trainer.resume_allow",
)
"""Keys that may differ between a checkpoint and the run that goes on from it."""


def find_checkpoint(resume: str | None, folder: RunFolder, name: str, cfg: DictConfig, say: Say) -> Path | None:
    """The checkpoint that `trainer.resume` asks for, verified; None: start anew. May choose `folder`.

    Raises:
        CheckpointError: a path that does not exist or is damaged.
    """
    if resume is None:
        return None
    if resume != "auto":
        path = Path(resume).expanduser()
        checkpoint.load(path)
        return path
    if folder.given:
        found = newest_whole(folder.choose(name), say)
        if found is None:
            say(f"resume   no checkpoint in {folder.path}: starting anew")
        return found
    for run in unfinished_runs(name, cfg):
        found = newest_whole(run, say)
        if found is not None:
            folder.path = run
            return found
    say("resume   no unfinished run of this config: starting anew")
    return None


def newest_whole(run: Path, say: Say) -> Path | None:
    """The newest checkpoint of a run that loads and matches its digest; damaged ones are named."""
    found = sorted((run / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            say(f"warning: {path} cannot be used ({error.found}); trying the one before it")
            continue
        return path
    return None


def unfinished_runs(name: str, cfg: DictConfig) -> Iterator[Path]:
    """Run folders of the same config that never wrote their `metrics.json`, the latest first."""
    wanted = _comparable(OmegaConf.to_container(cfg, resolve=False))
    for run in sorted(Path("outputs/train", name).glob("*"), reverse=True):
        config = run / "config.yaml"
        if config.is_file() and not (run / "metrics.json").exists():
            theirs = OmegaConf.to_container(OmegaConf.load(config), resolve=False)
            if _comparable(theirs) == wanted:
                yield run


def finished_scores(run: Path, cfg: DictConfig, state: Mapping[str, Any]) -> Plain | None:
    """The scores of a run that has nothing left to do; None where more training was asked for or is left."""
    file = run / "metrics.json"
    trainer, theirs = cfg.trainer, state["config"]["trainer"]
    longer = any(trainer[key] != theirs[key] for key in ("epochs", "max_steps", "early_stop"))
    return None if longer or not file.is_file() else dict(json.loads(file.read_text()))


def refuse_changes(cfg: DictConfig, state: Mapping[str, Any], allow: list[str], say: Say) -> None:
    """Says what differs from the checkpoint's config, and stops where that would make it another training.

    Raises:
        ConfigError: a key changed that is neither safe nor in `trainer.resume_allow`.
    """
    mine, theirs = flat(OmegaConf.to_container(cfg, resolve=False)), flat(state["config"])
    changed = [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]
    for key in changed:
        if key not in ("trainer.resume", "trainer.resume_allow"):
            say(f"changed  {key}: {theirs.get(key)} -> {mine.get(key)}")
    unsafe = [key for key in changed if not _covered(key, (*SAFE, *allow))]
    if unsafe:
        raise ConfigError(
            f"the checkpoint was made with another config: {listed(unsafe)}",
            expected="the same training, or keys you allow to differ",
            fix=f"trainer.resume_allow=[{','.join(unsafe)}], or start a new run with model.weights=PATH",
        )


def bring_best(source: Path, checkpoints: Path) -> None:
    """Copies `best.pt` of the run gone on from, so that the new folder has the best so far."""
    best = source.parent / "best.pt"
    if best.is_file() and source.parent.resolve() != checkpoints.resolve():
        checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, checkpoints / "best.pt")


def flat(tree: Any, prefix: str = "") -> Plain:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    found: Plain = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _comparable(tree: Any) -> Plain:
    return {key: value for key, value in flat(tree).items() if not _covered(key, SAFE)}


def _covered(key: str, allowed: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in allowed)

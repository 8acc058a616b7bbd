"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segtrain import checkpoint
from segtrain.atomic import write_atomically
from segtrain.errors import CheckpointError, ConfigError, listed
from segtrain.run_folder import RunFolder

Plain = dict[str, Any]
Say = Callable[[str], None]

SAFE = (
    "allow_targets",
    "name",
    "model.weights",
    "data.root",
    "data.num_workers",
    "data.prefetch",
    "data.cache",
    "data.cache_dir",
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
    "trainer.forecast",
    "trainer.profile",
    "trainer.val_loss",
    "trainer.resume",
    "trainer.resume_allow",
)
"""Keys that may differ between a checkpoint and the run that goes on from it."""


LENGTH = ("trainer.epochs", "trainer.max_steps", "trainer.early_stop")
"""Keys that say how long a run is."""

FIXED = ("model", "task", "optimizer._target_", "data.classes")
"""Keys whose change leaves a state that cannot be loaded or means something else: no resume may change them."""

NOT_FIXED = ("model.freeze_bn",)
"""The exceptions, which `trainer.resume_allow` may name."""


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


def goes_on_in(resume: str | None, folder: Path | None) -> bool:
    """Whether the run that `trainer.resume` goes on with is the one in `folder`, and not another one there."""
    if resume in (None, "auto") or folder is None:
        return resume == "auto"
    return Path(resume).expanduser().resolve().parent == (folder / "checkpoints").resolve()


def newest_whole(run: Path, say: Say) -> Path | None:
    """The newest checkpoint of a run that loads and matches its digest; damaged ones are named.

    That is `last.pt`; where it is damaged or missing, whichever of `previous.pt` and `best.pt` came further. File times
    say nothing here: a copied folder or a clock set back has them in any order.
    """
    checkpoints = run / "checkpoints"
    if _whole(checkpoints / checkpoint.LAST, say) is not None:
        return checkpoints / checkpoint.LAST
    others = [checkpoints / name for name in (checkpoint.PREVIOUS, checkpoint.BEST)]
    whole = {path: state for path in others if (state := _whole(path, say)) is not None}
    return max(whole, key=lambda path: (whole[path]["samples_seen"], whole[path]["epoch"]), default=None)


def _whole(path: Path, say: Say) -> Plain | None:
    """The checkpoint, or None where there is none that can be used."""
    if not path.exists():
        return None
    try:
        return checkpoint.load(path)
    except CheckpointError as error:
        say(f"warning: {path} cannot be used ({error.found}); trying the one before it")
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


def finished_scores(run: Path, changed: list[str], state: Mapping[str, Any]) -> Plain | None:
    """The scores of a run that has nothing left to do; None where more or another training was asked for or is left."""
    file = run / "metrics.json"
    if not file.is_file() or any(_covered(key, LENGTH) or not _covered(key, SAFE) for key in changed):
        return None
    scores = dict(json.loads(file.read_text()))
    return scores if scores.get("steps") == state["step"] else None


def refuse_changes(cfg: DictConfig, state: Mapping[str, Any], allow: list[str], say: Say) -> list[str]:
    """Says what differs from the checkpoint's config, and stops where that would make it another training.

    Returns the keys that differ.

    Raises:
        ConfigError: a key changed that is neither safe nor in `trainer.resume_allow`.
    """
    mine, theirs = flat(OmegaConf.to_container(cfg, resolve=False)), flat(state["config"])
    asked = ("trainer.resume", "trainer.resume_allow")
    changed = [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key) and key not in asked]
    for key in changed:
        say(f"changed  {key}: {theirs.get(key)} -> {mine.get(key)}")
    if any(_covered(key, LENGTH) for key in changed):
        say("note     the schedule is stretched to the new length: not the run that had this length from the start")
    fixed = [key for key in changed if _covered(key, FIXED) and not _covered(key, (*SAFE, *NOT_FIXED))]
    unsafe = [key for key in changed if key in fixed or not _covered(key, (*SAFE, *allow))]
    if unsafe:
        fresh = "start a new run with model.weights=PATH"
        raise ConfigError(
            f"the checkpoint was made with another config: {listed(unsafe)}",
            expected=f"the same {'network, classes and optimizer' if fixed else 'training'}",
            fix=fresh if fixed else f"trainer.resume_allow=[{','.join(unsafe)}], or {fresh}",
        )
    return changed


def bring_best(source: Path, state: Plain, checkpoints: Path, say: Say) -> Plain:
    """Sees to it that `best.pt` of the run gone on from is in `checkpoints`; returns the state to go on from.

    A `source` written at the end of the best epoch is the best itself: a run killed before it wrote `best.pt` has it
    there. Where neither is the best epoch's, the best is forgotten: a score without its file is of no use.
    """
    best, wanted = source.parent / checkpoint.BEST, state["best"]
    if wanted is None:
        return state
    theirs = _whole(best, say)
    same_model = theirs is not None and theirs["config"]["model"] == state["config"]["model"]
    found = best if same_model and theirs is not None and theirs["best"]["step"] == wanted["step"] else None
    if found is None and wanted["epoch"] == state["epoch"] and state["samples_seen"] == state["epoch_start"]:
        found = source
    if found is not None:
        if found.resolve() != (checkpoints / checkpoint.BEST).resolve():
            write_atomically(checkpoints / checkpoint.BEST, found.read_bytes(), read_back=True)
        return state
    say(f"note     {best} is not the best epoch's checkpoint (step {wanted['step']}): the best is chosen anew")
    return {**state, "best": None}


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

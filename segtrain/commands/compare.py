"""`python -m segtrain compare RUN_A RUN_B …`: are the differences between evaluations real?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from segtrain import signatures
from segtrain.atomic import write_atomically
from segtrain.errors import ConfigError, DataError, listed
from segtrain.experiment import versions
from segtrain.metrics.bootstrap import PerImageCounts, paired
from segtrain.protocol import differences
from segtrain.report.comparison import comparison_page
from segtrain.run_folder import RunFolder
from segtrain.tracking import RunTracker, percent, write_json
from segtrain.types import PositiveInt, Score, Seed

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The command's own keys."""

    runs: list[str]
    force: bool = False
    resamples: PositiveInt = 10_000
    seed: Seed = 0


@dataclass
class Evaluation:
    """What `evaluate` left in a run folder."""

    folder: Path
    scores: dict[str, Any]
    counts: PerImageCounts
    config: dict[str, Any]


def run(cfg: DictConfig, folder: RunFolder) -> Score:
    """Prints and writes what two or more evaluations differ in, against the first; nothing is scored."""
    plain: Any = OmegaConf.to_container(cfg)
    signatures.check(plain, CompareOptions, "")
    options = CompareOptions(**plain)
    if len(options.runs) < 2:
        raise ConfigError(
            f"{len(options.runs)} runs to compare",
            expected="two or more run folders of `evaluate`",
            fix="python -m segtrain compare RUN_A RUN_B",
        )
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    evaluations = [load(Path(name).expanduser()) for name in options.runs]
    names = _different([str(one.folder) for one in evaluations])
    path = folder.choose("runs")
    folder.describe(cfg, versions(), "cpu")
    tracker = RunTracker(path, log_name="compare.log")
    first, others = evaluations[0], evaluations[1:]
    changed = config_differences([one.config for one in evaluations])
    for key, values in changed.items():
        tracker.say(f"{key}: " + " | ".join(_short(value) for value in values))
    tests: dict[str, Any] = {}
    for name, other in zip(names[1:], others, strict=True):
        refuse_other_protocol(first, other, options.force, tracker)
        found = paired(first.counts, other.counts, resamples=options.resamples, seed=options.seed)
        tests[name] = found
        for line in table(first, other, found):
            tracker.say(line)
    content = {"baseline": names[0], "config": changed, "comparisons": tests}
    write_json(path / "metrics.json", content)
    named = [{"name": name, "scores": one.scores} for name, one in zip(names, evaluations, strict=True)]
    page = comparison_page(named, changed, tests)
    write_atomically(path / "report.html", page.encode())
    tracker.say(f"metrics: {path / 'metrics.json'}")
    tracker.say(f"report: {path / 'report.html'}")
    return Score()


def _different(names: list[str]) -> list[str]:
    """Each name once; a run that is named again, as to see that it does not differ from itself, gets a number."""
    return [name if name not in names[:i] else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)]


def load(folder: Path) -> Evaluation:
    """The numbers of one evaluation.

    Raises:
        DataError: the folder holds none, or not all of them.
    """
    files = {name: folder / name for name in ("metrics.json", "per_image.npz", "config.yaml")}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        best = folder / "checkpoints" / "best.pt"
        raise DataError(
            f"no evaluation to compare: {listed(missing)} missing",
            where=folder,
            expected="the run folder of `python -m segtrain evaluate`",
            fix=f"first run: python -m segtrain evaluate checkpoint={best}" if best.is_file() else None,
        )
    try:
        scores = json.loads(files["metrics.json"].read_text(encoding="utf-8"))
        counts = PerImageCounts.load(files["per_image.npz"])
        config: Any = OmegaConf.to_container(OmegaConf.load(files["config.yaml"]), resolve=False)
        matrix = np.array(scores["confusion"], dtype=np.int64)
        added = counts.sums().sum(1)
        card = scores["protocol"]
        whole = isinstance(card, dict) and isinstance(config, dict) and isinstance(card["classes"], list)
        fits = whole and np.array_equal(added, [matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, YAMLError) as error:
        raise DataError(
            f"the evaluation cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            where=folder,
            expected="the files as `evaluate` wrote them",
            fix="run evaluate again into a new folder",
        ) from error
    if not fits:
        raise DataError(
            "per_image.npz and metrics.json are not of one evaluation",
            where=folder,
            expected="counts of the images that add up to the confusion matrix",
            fix="run evaluate again into a new folder",
        )
    return Evaluation(folder, scores, counts, config)


def refuse_other_protocol(first: Evaluation, other: Evaluation, force: bool, tracker: RunTracker) -> None:
    """Scores of other data or another protocol are no better or worse, they are something else.

    Raises:
        ConfigError: the protocol cards differ, and `force` is not set or cannot help.
    """
    found = differences(first.scores["protocol"], other.scores["protocol"])
    if not found:
        return
    lines = [f"{key}: {_short(a)} | {_short(b)}" for key, (a, b) in found.items()]
    unpaired = [key for key in ("classes", "split_sha256") if key in found]
    if unpaired or not force:
        raise ConfigError(
            "the two evaluations are not comparable: their protocol cards differ",
            where="\n".join([f"{first.folder} | {other.folder}", *lines]),
            expected="the same images, labels, classes and inference",
            fix="evaluate both on the same split and classes: images are compared one by one"
            if unpaired
            else "evaluate both in the same way, or set force=true to compare them all the same",
        )
    tracker.say("warning: force=true compares evaluations that differ in")
    for line in lines:
        tracker.say(f"  {line}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def config_differences(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Dotted keys whose values differ, with one value per run; None where a run has no such key."""
    leaves = [_leaves(config) for config in configs]
    keys = list(dict.fromkeys(key for one in leaves for key in one))
    rows = {key: [one.get(key) for one in leaves] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def table(first: Evaluation, other: Evaluation, tests: dict[str, Any]) -> list[str]:
    """The comparison of two runs as people read it."""
    names = [("mIoU", tests["miou"]), *tests["iou"].items()]
    width = max(len(name) for name, _ in names)
    lines = ["", f"A  {first.folder}", f"B  {other.folder}"]
    lines += [f"{'':<{width}}      A      B   B - A      95 % interval        p"]
    for name, test in names:
        low, high = test["interval"]
        lines.append(
            f"{name:<{width}}  {percent(test['a']):>5}  {percent(test['b']):>5}  {_signed(test['difference']):>6}   "
            f"{_signed(low):>6} to {_signed(high):>6}  {_p(test.get('p_holm', test['p'])):>7}"
        )
    sure = tests["miou"]["p"] < SIGNIFICANT
    lines += [
        "",
        f"mIoU: {'a' if sure else 'no'} significant difference (p {_p_in_words(tests['miou']['p'])}, paired over ",
    ]
    lines[-1] += f"{tests['images']} images); p of classes after Holm"
    return [*lines, ""]


def _p_in_words(value: float) -> str:
    return f"= {_p(value)}" if value >= 0.0005 else _p(value).replace("<", "< ")


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if value >= 0.0005 else "<0.001"


def _signed(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:+.1f}"

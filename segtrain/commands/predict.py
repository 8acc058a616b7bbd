"""`python -m segtrain predict input=…`: masks, overlays, areas and objects of images nobody labelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segtrain import experiment, signatures
from segtrain.errors import ConfigError, DataError, Interrupted
from segtrain.lock import FolderLock
from segtrain.overlay import chosen
from segtrain.prediction.choice import results_of
from segtrain.prediction.flow import Flow
from segtrain.prediction.inputs import find_inputs, too_long
from segtrain.prediction.journal import Journal, refuse_overwriting, sweep
from segtrain.prediction.network import made_by
from segtrain.prediction.results import SURE, Asked, Results
from segtrain.run_folder import RunFolder, override
from segtrain.stopping import StopSignal
from segtrain.tasks.instance import InstanceTask
from segtrain.tracking import RunTracker, say_early, write_json
from segtrain.types import Fraction, PositiveInt, Score

INSTANCE_TASK = f"{InstanceTask.__module__}.{InstanceTask.__qualname__}"
"""What a config of such a task names."""
SAID = 20
"""Up to this many images are named on the console one by one."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The command's own keys."""

    input: str
    checkpoint: str | None = None
    output: str | None = None
    opacity: Fraction = 0.55
    probs: bool = False
    confidence: bool = False
    abstain: Fraction | None = None
    score: Fraction = SURE
    max_pixels: PositiveInt | None = 400_000_000
    on_error: Literal["skip", "stop"] = "skip"
    overwrite: bool = False
    allow_targets: list[str] | None = None
    over: dict[str, Any] | None = None
    choices: dict[str, str] | None = None


def run(cfg: DictConfig, folder: RunFolder) -> Score:
    """Writes `masks/`, `overlays/`, `areas/` and what else the task has; nothing is scored.

    Raises:
        DataError: some images could not be read; the others are done.
        Interrupted: Ctrl-C or SIGTERM; what is written is whole, and a second call goes on from there.
    """
    plain: Any = OmegaConf.to_container(cfg)
    # What is laid over the checkpoint's config is checked as part of it, where its targets have all their keys.
    own = {**plain, "over": None} if isinstance(plain.get("over"), dict) else plain
    signatures.check(own, PredictOptions, "")
    options = PredictOptions(**plain)
    folder.refuse_other_run("checkpoints", "hydra.run.dir=DIR names another folder; without it a new one is made")
    known = Path(options.output).expanduser() if options.output else folder.path
    inputs, passed_over = find_inputs(options.input, known)
    failures = too_long(inputs, known or Path())
    if failures and options.on_error == "stop":
        raise next(iter(failures.values()))
    fitting = {name: file for name, file in inputs.items() if name not in failures}
    refuse_overwriting(fitting, known)
    segmenter, report = _segmenter(options)
    results = results_of(segmenter, _asked(options))
    path = folder.choose(segmenter.settings.name)
    with folder.held(say_early), _output_held(known or path, folder):
        folder.describe(segmenter.config, experiment.versions(), str(segmenter.device))
        tracker = RunTracker(path, log_name="predict.log")
        tracker.say(f"model  {report}")
        passed = f", {passed_over} results of predict passed over" if passed_over else ""
        tracker.say(f"images {len(inputs)} on {segmenter.device}{passed}")
        _predict(options, fitting, list(failures.values()), segmenter, results, folder, known or path, tracker)
    return Score()


def _predict(
    options: PredictOptions,
    inputs: Mapping[str, Path],
    failures: list[DataError],
    segmenter: experiment.Segmenter,
    results: Results,
    folder: RunFolder,
    output: Path,
    tracker: RunTracker,
) -> None:
    """Writes the results of `inputs` into `output`, which is ours alone, and tells of all failures at the end."""
    journal = Journal(output, made_by(segmenter, results))
    left = _left_to_do(inputs, journal, results, options.overwrite, tracker)
    bar = tracker.bar(len(left), "predict")
    count = len(inputs) + len(failures)

    def note(file: Path, line: Mapping[str, Any]) -> None:
        bar.update(1)
        if len(inputs) <= SAID:
            tracker.say(f"{file}: {_shares(line)}")

    with StopSignal() as stop, closing(bar):
        flow = Flow(
            segmenter=segmenter,
            results=results,
            journal=journal,
            batch_size=segmenter.settings.rider["data"].images,
            threads=segmenter.settings.rider["data"].num_workers,
            max_pixels=options.max_pixels,
            stop_on_error=options.on_error == "stop",
            stopped=lambda: stop.received is not None,
            note=note,
            failures=failures,
        )
        flow.run(left)
    _summarize(inputs, journal, flow, tracker)
    if stop.received is None:
        _collect(journal, results, tracker)
    else:
        done = len(inputs.keys() & journal.lines.keys())
        raise Interrupted(
            f"stopped with {done} of {count} images done; their files are whole",
            signal=stop.received,
            fix=f"to go on: {_same_again(folder)}",
        )
    _raise_failures(flow.failures, count)


@contextmanager
def _output_held(output: Path, folder: RunFolder) -> Iterator[None]:
    """Keeps other calls out of `output=DIR`, which is not the run folder.

    Raises:
        ConfigError: another one writes there.
    """
    if folder.path is not None and output.resolve() == folder.path.resolve():
        yield
        return
    command = folder.command_line("predict", *folder.overrides)
    with ExitStack() as until_the_end:
        try:
            until_the_end.enter_context(FolderLock(output, command=command, say=say_early))
        except ConfigError as error:
            error.fix = "wait for its end, stop it, or choose another output=DIR"
            raise
        yield


def _asked(options: PredictOptions) -> Asked:
    return Asked(**{field.name: getattr(options, field.name) for field in fields(Asked)})


def _left_to_do(
    inputs: Mapping[str, Path], journal: Journal, results: Results, overwrite: bool, tracker: RunTracker
) -> dict[str, Path]:
    if not overwrite:
        journal.refuse_namesakes(inputs)
    left = {name: file for name, file in inputs.items() if overwrite or not journal.done(name, file)}
    if len(left) < len(inputs):
        same = "with these weights and settings"
        tracker.say(f"done   {len(inputs) - len(left)} of {len(inputs)} before, {same}; overwrite=true does them again")
    if results.collection is not None:
        journal.start_collection(results.collection, again=bool(left))
    journal.forget(left)
    sweep(journal.output, left)
    return left


def _shares(line: Mapping[str, Any]) -> str:
    total = line["size"][0] * line["size"][1] * line.get("frames", 1)
    named = {**line["areas"], "no class": line.get("abstained", 0)}
    shares = sorted(((name, area / total) for name, area in named.items() if area), key=lambda share: -share[1])
    frames = f"{line['frames']} frames, " if "frames" in line else ""
    objects = "".join(f"{number} {name}, " for name, number in line.get("counts", {}).items() if number)
    return frames + objects + ", ".join(f"{name} {share:.1%}" for name, share in shares)


def _summarize(inputs: Mapping[str, Path], journal: Journal, flow: Flow, tracker: RunTracker) -> None:
    """Sums over all images that are done, by this call or before."""
    lines = [journal.lines[name] for name in inputs if name in journal.lines]
    write_json(tracker.folder / "metrics.json", flow.results.summary(lines))
    for kind in flow.results.kinds:
        tracker.say(f"{kind}: {journal.output / kind}")
    tracker.say(f"results: {journal.path}")
    tracker.say(f"metrics: {tracker.folder / 'metrics.json'}")


def _collect(journal: Journal, results: Results, tracker: RunTracker) -> None:
    """The file of all images of the output folder, those of earlier calls too."""
    if results.collection is None:
        return
    results.collect(journal)
    here = len(journal.current())
    others = len(journal.lines) - here
    apart = f", without {others} of other weights or settings" if others else ""
    tracker.say(f"{results.collection}: {journal.output / results.collection}, {here} images{apart}")


def _same_again(folder: RunFolder) -> str:
    kept = [word for word in folder.overrides if not word.startswith(("hydra.run.dir=", "overwrite="))]
    return folder.command_line("predict", *kept, override("hydra.run.dir", str(folder.path)))


def _raise_failures(failures: list[DataError], count: int) -> None:
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = [f"{error.where}: {error.found}" for error in failures]
        raise DataError(
            f"{len(failures)} of {count} images could not be read; the others are done",
            where="\n".join(lines[:10]) + (f"\nand {len(lines) - 10} more" if len(lines) > 10 else ""),
            fix="replace them and call again: images that are done are passed over",
        )


def _segmenter(options: PredictOptions) -> tuple[experiment.Segmenter, str]:
    over, choices = options.over or {}, options.choices or {}
    if options.checkpoint is not None:
        found = experiment.from_checkpoint(
            options.checkpoint, over=over, choices=choices, allow_targets=options.allow_targets
        )
        return found, options.checkpoint
    cfg = _published(over, choices)
    cfg.allow_targets = options.allow_targets or []
    pixels = "model=deeplabv3_torchvision model.backbone=resnet101 model.weights=torchvision"
    return experiment.from_config(cfg, f"{pixels}; for objects model=maskrcnn model.weights=torchvision")


def _published(over: Mapping[str, Any], choices: Mapping[str, str]) -> DictConfig:
    """The config of a network without checkpoint, with the data whose classes published weights carry.

    Those are VOC's where pixels have classes, and COCO's where objects are found; others the user says.
    """
    cfg = chosen(over, choices if "data" in choices else {**choices, "data": "voc"})
    if "data" not in choices and cfg.task["_target_"] == INSTANCE_TASK:
        return chosen(over, {**choices, "data": "coco"})
    return cfg

"""A run that was stopped and resumed equals the run that never was, bit for bit."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segtrain import checkpoint
from segtrain.errors import Interrupted
from segtrain.experiment import build, compose
from segtrain.trainer import Trainer

ROOT = Path(__file__).parents[1]

# A U-Net with dropout, and a dataset that sends its own process a signal when a given sample of an epoch is asked for.
OWN_PARTS = """
import os, signal, time
from torch import nn
from segtrain.data.shapes import Shapes
from segtrain.models.unet import UNet


class DropUNet(UNet):
    def __init__(self, *, num_classes: int, in_channels: int = 3, base_channels: int = 4, depth: int = 2) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, base_channels=base_channels, depth=depth)
        self.dropout = nn.Dropout(0.2)

    def logits(self, image):
        return super().logits(self.dropout(image))


class SignalShapes(Shapes):
    def __getitem__(self, key):
        epoch, samples, names = os.environ.get("SIGNALS", "-1:0:").split(":")
        if isinstance(key, tuple) and key[0] == int(epoch):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == int(samples):
                for name in names.split(","):
                    os.kill(os.getpid(), getattr(signal, name))
                    time.sleep(1.2 if "," in names else 0)
        return super().__getitem__(key)
"""
RUN = [
    "data._target_=ownparts.SignalShapes",
    "~model.bilinear",
    "~model.bias",
    "~model.norm",
    "~model.dropout",
    "model._target_=ownparts.DropUNet",
    "allow_targets=[ownparts]",
    "model.base_channels=4",
    "model.depth=2",
    "augment=strong",
    "loss=ce_dice",
    "data.size=32",
    "data.crop_size=32",
    "data.limit=13",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.accumulate=2",
    "trainer.epochs=4",
    "trainer.ema=0.9",
    "trainer.log_every=1",
    "trainer.samples=0",
    "trainer.forecast=false",  # it reads samples, too, which would be counted as asked for
    "trainer.device=cpu",
]
STEPS = 3  # per epoch: 13 samples in steps of 4
CLOCKS = ("seconds", "images_per_second", "train_images_per_second", "data_wait_share", "versions", "sha256", "config")


def timeless(value: Any) -> Any:
    """The value without what a clock says."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """The places where two states differ, compared by bits."""
    if isinstance(mine, torch.Tensor):
        return [] if mine.dtype == theirs.dtype and torch.equal(mine, theirs) else [where]
    if isinstance(mine, dict):
        keys = {*mine, *theirs}
        found = [differences(mine.get(key, "absent"), theirs.get(key, "absent"), f"{where}.{key}") for key in keys]
        return list(chain(*found))
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return list(chain(*(differences(a, b, f"{where}[{i}]") for i, (a, b) in pairs)))
    same = type(mine) is type(theirs) and (mine == theirs or mine != mine)
    return [] if same else [f"{where}: {mine} and {theirs}"]


def assert_same_run(mine: Path, theirs: Path) -> None:
    for name in ("last.pt", "best.pt"):
        states = [timeless(checkpoint.load(run / "checkpoints" / name)) for run in (mine, theirs)]
        assert differences(*states) == []
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (mine, theirs)]
    assert timeless(lines[0]) == timeless(lines[1])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "ownparts.py").write_text(OWN_PARTS)
    return folder


@pytest.fixture(autouse=True)
def importable(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(parts))


def trainer(folder: Path, *overrides: str, resume: Path | None = None) -> Trainer:
    cfg = compose([*RUN, "trainer.tensorboard=false", *overrides])
    return build(cfg, folder=folder, resume=None if resume is None else checkpoint.load(resume))


def stop_at(runner: Trainer, step: int, validating: bool) -> None:
    """Raises the stop flag, as a signal would, in the given step or in the validation after it."""
    train_step, meter = runner.train_step, runner.task.meter

    def train(batches: Any) -> None:
        train_step(batches)
        if not validating and runner.course.step + 1 == step:
            runner.stop.received = signal.SIGTERM

    def validate() -> Any:
        if validating and runner.course.step == step:
            runner.stop.received = signal.SIGTERM
        return meter()

    runner.train_step, runner.task.meter = train, validate  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Path:
    """The run that is never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(parts))
        trainer(folder).fit()
    return folder


@pytest.mark.parametrize(
    ("stops", "workers"),
    [
        # Each stop is followed by training or validation that goes on undisturbed, but for the two steps in a row.
        ([(1, False), (STEPS, False), (2 * STEPS + 1, False), (4 * STEPS, False)], 0),
        ([(1, False), (2, False), (STEPS, True), (2 * STEPS + 2, False), (4 * STEPS, True)], 0),
        ([(2 * STEPS + 1, False), (3 * STEPS, True)], 2),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, whole: Path, stops: list[tuple[int, bool]], workers: int
) -> None:
    last, option = tmp_path / "checkpoints" / "last.pt", f"data.num_workers={workers}"
    for number, (step, validating) in enumerate(stops):
        torch.rand(3)  # what was drawn in between must not matter
        runner = trainer(tmp_path, option, resume=last if number else None)
        stop_at(runner, step, validating)
        with pytest.raises(Interrupted) as caught:
            runner.fit()
        assert caught.value.code == 143
        assert f"saved step {step}" in caught.value.found
        assert checkpoint.load(last)["step"] == step
    runner = trainer(tmp_path, option, resume=last)
    runner.fit()
    assert (runner.course.step, runner.course.epoch, runner.course.samples_seen) == (4 * STEPS, 4, 4 * STEPS * 4)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(("step", "validating"), [(STEPS + 2, True), (STEPS + 2, False), (STEPS + 1, False)])
def test_a_run_cut_short_by_max_steps_resumes_to_the_same_end(tmp_path: Path, step: int, validating: bool) -> None:
    cut = f"trainer.max_steps={STEPS + 2}"
    trainer(tmp_path / "whole", cut).fit()
    runner = trainer(tmp_path / "stopped", cut)
    stop_at(runner, step, validating)
    with pytest.raises(Interrupted):
        runner.fit()
    resumed = trainer(tmp_path / "stopped", cut, resume=tmp_path / "stopped" / "checkpoints" / "last.pt")
    resumed.fit()
    assert (resumed.course.step, resumed.course.epoch) == (STEPS + 2, 2)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_cut_short_goes_on_with_whole_epochs_when_more_steps_are_asked_for(tmp_path: Path) -> None:
    trainer(tmp_path, f"trainer.max_steps={STEPS + 1}").fit()
    runner = trainer(tmp_path, resume=tmp_path / "checkpoints" / "last.pt")
    seen: list[list[int]] = []
    train_step = runner.train_step

    def train(batches: Any) -> None:
        seen.append([int(index) for batch in batches for index in batch.index])
        train_step(batches)

    runner.train_step = train  # type: ignore[method-assign]
    stop_at(runner, 2 * STEPS, False)
    with pytest.raises(Interrupted):
        runner.fit()
    assert [len(indices) for indices in seen] == [4] * (STEPS - 1)
    again = trainer(tmp_path, resume=tmp_path / "checkpoints" / "last.pt")
    assert again.course.step_in_epoch() == STEPS - 1
    again.fit()
    assert again.course.step == 4 * STEPS


# Real signals, real processes ---------------------------------------------------------------------------------------


def start(command: str, parts: Path, cwd: Path, signals: str = "-1:0:") -> subprocess.CompletedProcess[str]:
    """Runs a command line as printed, in a shell whose `python` is this one."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{parts}",
        "SIGNALS": signals,
    }
    return subprocess.run(
        command.split() if os.name == "nt" else ["/bin/sh", "-c", command],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's points by tag, speeds left out."""
    events = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "per_second" not in tag and "time/" not in tag]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags if "best/" not in tag}


def resume_command(told: str) -> str:
    """The command line that goes on, as the stopped run printed it on its standard error."""
    (line,) = [line for line in told.splitlines() if "trainer.resume=auto" in line]
    return "python" + line.split("python", 1)[1]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, parts: Path, here: Any) -> dict[str, Any]:
    """One run ended by SIGINT, SIGTERM, SIGKILL and two Ctrl-C in turn, and one left alone, in this process."""
    cwd = tmp_path_factory.mktemp("signals")
    quoted = " ".join(f"'{word}'" for word in [*RUN, "trainer.save_every=1"])
    told: dict[str, Any] = {"cwd": cwd}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(parts))
        told["alone"] = here(*RUN, "trainer.save_every=1", "hydra.run.dir=alone", cwd=cwd)
    told["SIGINT"] = start(f"python -m segtrain {quoted} hydra.run.dir=ended", parts, cwd, "0:6:SIGINT")
    told["command"] = resume_command(told["SIGINT"].stderr)
    told["SIGTERM"] = start(told["command"], parts, cwd, "1:6:SIGTERM")
    told["SIGKILL"] = start(resume_command(told["SIGTERM"].stderr), parts, cwd, "2:6:SIGKILL")
    told["kept"] = checkpoint.load(cwd / "ended" / "checkpoints" / "last.pt")["step"]
    told["twice"] = start(told["command"], parts, cwd, "3:6:SIGINT,SIGINT")
    told["files"] = sorted(path.name for path in (cwd / "ended" / "checkpoints").iterdir())
    told["after"] = checkpoint.load(cwd / "ended" / "checkpoints" / "last.pt")["step"]
    told["end"] = start(told["command"], parts, cwd)
    return told


posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@posix
def test_signals_save_and_exit_with_their_codes(story: dict[str, Any]) -> None:
    assert story["alone"].code == 0, story["alone"].err
    for name, code, step in (("SIGINT", 130, 2), ("SIGTERM", 143, STEPS + 2)):
        assert story[name].returncode == code, story[name].stderr
        assert f"saved step {step}" in story[name].stderr
        assert "Traceback" not in story[name].stderr
    assert "resumed  step 2, epoch 1" in story["SIGTERM"].stdout


@posix
def test_a_killed_run_has_its_last_saved_step(story: dict[str, Any]) -> None:
    assert story["SIGKILL"].returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert story["kept"] == 2 * STEPS + 1


@posix
def test_a_second_ctrl_c_stops_at_once_and_leaves_no_torn_file(story: dict[str, Any]) -> None:
    assert story["twice"].returncode == 130
    assert "stopped at once" in story["twice"].stderr
    assert story["files"] == ["best.pt", "last.pt", "previous.pt"]
    assert story["after"] == 3 * STEPS + 1


@posix
def test_after_all_signals_the_run_equals_the_one_left_alone(story: dict[str, Any]) -> None:
    assert story["end"].returncode == 0, story["end"].stderr
    assert_same_run(story["cwd"] / "ended", story["cwd"] / "alone")
    scores = [json.loads((story["cwd"] / run / "metrics.json").read_text()) for run in ("ended", "alone")]
    assert timeless(scores[0]) == timeless(scores[1])


@posix
def test_tensorboard_curves_have_each_point_once(story: dict[str, Any]) -> None:
    mine, theirs = (curves(story["cwd"] / run) for run in ("ended", "alone"))
    assert [step for step, _ in theirs["train/loss"]] == list(range(1, 4 * STEPS + 1))
    assert [step for step, _ in theirs["val/miou"]] == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert mine == theirs


@posix
def test_resuming_a_finished_run_says_so(story: dict[str, Any], here: Any) -> None:
    again = here(*shlex.split(story["command"])[3:], cwd=story["cwd"])
    assert again.code == 0, again.err
    assert "is finished: miou" in again.out
    assert "resumed" not in again.out


# Real signals, which this process sends to itself --------------------------------------------------------------------


@posix
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: a changed unsafe key stops with its name, `resume_allow` lets it through, a safe one is only said."""
    with monkeypatch.context() as patched:
        patched.setenv("SIGNALS", "1:2:SIGTERM")
        stopped = door(*RUN, "trainer.tensorboard=false", "hydra.run.dir=run")
    assert stopped.code == 143, stopped.err
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    command = shlex.split(resume_command(stopped.err))[3:]
    changed = door(*command, "optimizer.lr=0.5")
    assert changed.code == 2
    assert "optimizer.lr" in changed.err
    assert "trainer.resume_allow=[optimizer.lr]" in changed.err
    last.write_bytes(last.read_bytes()[:-100])
    allowed = door(*command, "optimizer.lr=0.5", "trainer.resume_allow=[optimizer.lr]", "trainer.epochs=2")
    assert allowed.code == 0, allowed.err
    assert "last.pt cannot be used" in allowed.out
    assert f"resumed  step {STEPS}, epoch 2" in allowed.out
    assert "changed  trainer.epochs: 4 -> 2" in allowed.out
    assert "changed  optimizer.lr: " in allowed.out


@posix
def test_auto_without_a_folder_finds_the_unfinished_run_of_the_same_config(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*RUN, "trainer.tensorboard=false", "trainer.resume=auto"]
    with monkeypatch.context() as patched:
        patched.setenv("SIGNALS", "0:6:SIGTERM")
        stopped = door(*command)
    assert stopped.code == 143, stopped.err
    assert "starting anew" in stopped.out
    found = door(*command, "trainer.epochs=1")
    assert found.code == 0, found.err
    assert "resumed  step 2, epoch 1" in found.out
    runs = list((tmp_path / "outputs" / "train").glob("*/*"))
    assert len(runs) == 1
    assert (runs[0] / "metrics.json").is_file()

"""Two processes under torchrun train and score as one does, and stop together."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain import checkpoint, distributed
from segtrain.errors import Interrupted
from segtrain.evaluator import evaluate
from segtrain.experiment import build, compose, from_checkpoint

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo and signals as on Linux")

# No batch normalization, images of two heights in `val`, a note of every training sample, a signal to one rank.
OWN_PARTS = """
import os, signal
from torch import nn
from segtrain.data.shapes import Shapes
from segtrain.models.segmentation import SegmentationModel


class Plain(SegmentationModel):
    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, num_classes, 1))

    def logits(self, image):
        return {"out": self.layers(image)}


class NotedShapes(Shapes):
    def load(self, record):
        image, target = super().load(record)
        if self.split == "val":
            image, target = image[: 32 - record.extra["index"] % 2], target[: 32 - record.extra["index"] % 2]
        return image, target

    def __getitem__(self, key):
        if isinstance(key, tuple) and "NOTES" in os.environ:
            rank = os.environ.get("RANK")
            with open(os.environ["NOTES"] + rank, "a") as file:
                file.write(f"{key[0]} {key[1]}\\n")
            if rank == "1" and open(os.environ["NOTES"] + rank).read().count("\\n") == 11:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(key)
"""
RUN = [
    "data._target_=ownranks.NotedShapes",
    "~model.bilinear",
    "~model.bias",
    "~model.norm",
    "~model.dropout",
    "~model.base_channels",
    "~model.depth",
    "model._target_=ownranks.Plain",
    "allow_targets=[ownranks]",
    "data.size=32",
    "data.crop_size=32",
    "data.train_images=17",
    "data.val_images=7",
    "data.num_workers=0",
    "optimizer=sgd",
    "loss.class_weights=[0.5,1.0,2.0,1.0,4.0]",
    "trainer.epochs=3",
    "trainer.ema=0.9",
    "trainer.log_every=1",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.forecast=false",  # it reads samples, too, which the notes would tell
    "trainer.device=cpu",
]


def torchrun(
    parts: Path, cwd: Path, *arguments: str, program: Sequence[str] = ("-m", "segtrain"), **environment: str
) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    launcher += ["--rdzv-endpoint=localhost:0", *program, *arguments]
    paths = f"{ROOT}{os.pathsep}{parts}"
    return subprocess.run(
        [sys.executable, *launcher],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ownranks.py").write_text(OWN_PARTS)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two ranks with batches of 2, one of them stopped by SIGTERM in the second epoch, at step 6."""
    cwd = tmp_path_factory.mktemp("trained")
    done = torchrun(parts, cwd, *RUN, "data.batch_size=2", "hydra.run.dir=run", NOTES=str(cwd / "notes"))
    return cwd, done


@pytest.fixture
def alone(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One process with batches of 4, stopped after step 6."""
    monkeypatch.syspath_prepend(str(parts))
    runner = build(compose([*RUN, "data.batch_size=4"]), folder=tmp_path / "alone")
    step = runner.train_step

    def train(batches: Any) -> None:
        step(batches)
        if runner.course.step == 5:
            runner.stop.received = 15

    runner.train_step = train  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        runner.fit()
    return runner


def test_a_signal_to_one_rank_stops_both_and_saves(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    cwd, done = trained
    assert done.returncode != 0
    assert "saved step 6 (epoch 2)" in done.stderr
    assert "trainer.resume=auto" in done.stderr
    state = checkpoint.load(cwd / "run" / "checkpoints" / "last.pt")
    assert (state["step"], state["samples_seen"], len(state["rng"])) == (6, 24, 2)
    assert sorted(path.name for path in cwd.iterdir()) == ["notes0", "notes1", "run"]
    log = (cwd / "run" / "train.log").read_text()
    assert log.count("plan ") == 1
    assert "x 2 processes" in log


def test_no_sample_is_seen_twice_in_an_epoch(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    cwd, _ = trained
    seen = [line for rank in (0, 1) for line in (cwd / f"notes{rank}").read_text().splitlines()]
    assert len(seen) == len(set(seen)) == 24
    assert sum(line.startswith("0 ") for line in seen) == 16


def test_two_ranks_equal_one_process_with_twice_the_batch(
    trained: tuple[Path, subprocess.CompletedProcess[str]], alone: Any
) -> None:
    theirs = checkpoint.load(trained[0] / "run" / "checkpoints" / "last.pt")
    mine = checkpoint.load(alone.checkpoints / "last.pt")
    for tree in (lambda state: state["model"], lambda state: state["ema"]["model"]):
        for name, value in tree(mine).items():
            assert torch.allclose(value, tree(theirs)[name], atol=1e-5, rtol=1e-4), name
    (one,), (two,) = mine["scores"], theirs["scores"]
    assert two["train"] == pytest.approx(one["train"], rel=1e-4)
    assert two["val"]["loss"] == pytest.approx(one["val"]["loss"], rel=1e-4)
    assert two["val"]["images"] == one["val"]["images"] == 7
    assert float(theirs["sums"]["epoch"]["sums"]["loss"]) == pytest.approx(
        float(mine["sums"]["epoch"]["sums"]["loss"]), rel=1e-4
    )


def test_one_process_goes_on_with_what_two_have_begun(
    trained: tuple[Path, subprocess.CompletedProcess[str]], alone: Any, tmp_path: Path
) -> None:
    state = checkpoint.load(trained[0] / "run" / "checkpoints" / "last.pt")
    resumed = build(compose([*RUN, "data.batch_size=4"]), folder=tmp_path / "on", resume=state)
    assert resumed.course.step_in_epoch() == 2
    resumed.fit()
    again = build(
        compose([*RUN, "data.batch_size=4"]),
        folder=tmp_path / "alone",
        resume=checkpoint.load(alone.checkpoints / "last.pt"),
    )
    again.fit()
    assert (resumed.course.step, resumed.course.epoch) == (again.course.step, again.course.epoch) == (12, 3)
    for name, value in again.model.state_dict().items():
        assert torch.allclose(value, resumed.model.state_dict()[name], atol=1e-4, rtol=1e-3), name


def test_two_ranks_count_what_one_counts(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = trained[0] / "run" / "checkpoints" / "last.pt"
    options = [f"checkpoint={path}", "allow_targets=[ownranks]", "hydra.run.dir=scored"]
    done = torchrun(parts, tmp_path, "evaluate", *options)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    monkeypatch.syspath_prepend(str(parts))
    segmenter = from_checkpoint(path, allow_targets=["ownranks"])
    loader = segmenter.loader(segmenter.dataset("val"))
    mine = evaluate(segmenter.model, loader, segmenter.task, segmenter.device, precision=segmenter.precision)
    assert theirs["confusion"] == mine["confusion"]
    assert theirs["images"] == mine["images"] == 7
    assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scored"]
    assert (tmp_path / "scored" / "evaluate.log").read_text().count("checkpoint ") == 1
    assert "destroy_process_group" not in done.stderr  # torch's warning about a group that was never left


ALONE_UNTIL_THE_LAST = """
import sys
from pathlib import Path
from segtrain import distributed
from segtrain.experiment import build, compose

trainer = build(compose(sys.argv[1:]), folder=Path("run"))
before, losses = [], trainer.task.losses


def noted(*arguments):
    before.append(float(sum(one.grad.norm() for one in trainer.model.parameters() if one.grad is not None)))
    return losses(*arguments)


trainer.task.losses = noted
trainer.start_training()
for batches in trainer.train_loader.steps(0):
    trainer.train_step(batches)
weights = float(sum(weight.detach().norm() for weight in trainer.model.parameters()))
found = distributed.gather((before, weights, trainer.sums.take("epoch")["loss"]))
if distributed.is_main():
    print("found", found)
"""


@pytest.mark.slow
def test_ranks_exchange_gradients_once_a_step_compiled_or_not(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(ALONE_UNTIL_THE_LAST)
    options = [*RUN, "data.batch_size=2", "trainer.accumulate=2"]
    found = []
    for compiled in ("false", "true"):
        done = torchrun(parts, tmp_path, *options, f"trainer.compile={compiled}", program=["steps.py"])
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("found")]
        one, other = ast.literal_eval(line.removeprefix("found "))
        assert one[1:] == other[1:]  # the ranks agree on weights and loss
        for before, theirs in (one[0], other[0]), (other[0], one[0]):
            assert len(before) == 4  # 17 images: two steps, in which each rank has two batches of two
            assert before[0] == before[2] == 0
            assert before[1] != pytest.approx(theirs[1], rel=1e-6)  # its own first batch's, nobody else's
            assert before[3] != pytest.approx(theirs[3], rel=1e-6)
        found.append(one)
    plain, compiled_run = found
    assert compiled_run[0] == pytest.approx(plain[0], rel=1e-4)
    assert compiled_run[1:] == pytest.approx(plain[1:], rel=1e-5)


def test_alone_every_exchange_is_the_identity() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.sum_(tensor) is tensor
    assert distributed.any_(True, torch.device("cpu")) is True
    assert distributed.any_(False, torch.device("cpu")) is False
    assert distributed.from_main("x") == "x"
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)

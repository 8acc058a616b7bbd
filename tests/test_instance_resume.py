"""Objects: a run that was stopped equals the run that never was, and two processes equal one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain import checkpoint
from segtrain.errors import Interrupted
from segtrain.experiment import build, compose
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer

pytest.importorskip("pycocotools")

ROOT = Path(__file__).resolve().parents[1]

# Images of two forms; objects of which there are as many in each; a sampler that takes as many boxes of each image, so
# that no mean depends on which images are in a batch together.
OWN_PARTS = """
from typing import Any

import numpy as np
import torch
from segtrain.data.instances.shapes_instances import ShapesInstances
from segtrain.instances import Instances
from segtrain.models.maskrcnn import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead


class Forms(ShapesInstances):
    def load(self, record):
        image, found = super().load(record)
        if record.extra["index"] % 2:
            image, masks = image[:48], found.masks[:, :48]
        else:
            image, masks = image[:, :48], found.masks[:, :, :48]
        kept = masks.flatten(1).amax(1) > 0
        return np.ascontiguousarray(image), Instances.of(masks[kept].contiguous(), found.labels[kept])

    def aspect_ratios(self):
        return np.array([64 / 48 if record.extra["index"] % 2 else 48 / 64 for record in self.records])


class Five(ShapesInstances):
    def load(self, record):
        image, _ = super().load(record)
        masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
        draw = np.random.default_rng(record.extra["index"])
        for number, mask in enumerate(masks):
            top, side = int(draw.integers(0, 46)), int(draw.integers(10, 18))
            mask[top : top + side, 12 * number : 12 * number + side] = 1
        return image, Instances.of(masks, torch.tensor([1, 2, 3, 4, 1]))


class Firsts:
    def __init__(self, count, held):
        self.count, self.held = count, held

    def __call__(self, matched):
        held, free = [], []
        for labels in matched:
            objects = torch.where(labels >= 1)[0][: self.held]
            others = torch.where(labels == 0)[0][: self.count - len(objects)]
            blank = torch.zeros_like(labels, dtype=torch.uint8)
            held.append(blank.index_fill(0, objects, 1))
            free.append(blank.index_fill(0, others, 1))
        return held, free


class Slim(MaskRCNN):
    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        classes = shared["num_classes"]
        self.roi_heads.box_head = TwoMLPHead(256 * 7 * 7, 32)
        self.roi_heads.box_predictor = FastRCNNPredictor(32, classes)


class Settled(Slim):
    def forward(self, *inputs):
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = Firsts(32, 16), Firsts(16, 4)
        return super().forward(*inputs)
"""
RUN = [
    "model=maskrcnn",
    "model.backbone=resnet18",
    "model.norm=frozen",
    "model.trainable_layers=1",
    "model.max_size=80",
    "model.anchor_sizes=[4,8,16,32,64]",
    "model.rpn_post_nms_train=40",
    "model.rpn_post_nms_test=6",
    "model.rpn_batch=32",
    "model.box_batch=16",
    "data=shapes_instances",
    "data.num_workers=0",
    "data.val_images=3",
    "allow_targets=[ownobjects]",
    "trainer.epochs=2",
    "trainer.samples=0",
    "trainer.tensorboard=false",
    "trainer.forecast=false",
    "trainer.log_every=1",
    "trainer.device=cpu",
]
STOPPED = [
    "data._target_=ownobjects.Forms",
    "model._target_=ownobjects.Slim",
    "+data.group_by_aspect=true",
    "data.train_images=7",
    "data.batch_size=2",
]
STOPPED += ["model.min_size=[48,56,64]"]
SPREAD = ["data._target_=ownobjects.Five", "model._target_=ownobjects.Settled", "model.min_size=64"]
SPREAD += ["data.train_images=4", "augment=none", "trainer.epochs=1"]
CLOCKS = {"seconds", "images_per_second", "train_images_per_second", "data_wait_share", "versions", "sha256"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "ownobjects.py").write_text(OWN_PARTS)
    return folder


@pytest.fixture(autouse=True)
def importable(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(parts))


def trainer(folder: Path, *words: str, resume: Path | None = None) -> Trainer:
    state = None if resume is None else checkpoint.load(resume)
    return build(compose([*RUN, *words]), folder=folder, resume=state, tracker=Tracker())


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """The places where two states differ in any bit, clocks left out."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if mine.dtype == theirs.dtype and torch.equal(mine, theirs) else [where]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = {*mine, *theirs} - CLOCKS
        return [
            place for key in keys for place in differences(mine.get(key, "-"), theirs.get(key, "-"), f"{where}.{key}")
        ]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [place for number, (a, b) in pairs for place in differences(a, b, f"{where}[{number}]")]
    return [] if mine == theirs or (mine != mine and theirs != theirs) else [f"{where}: {mine} and {theirs}"]


def stop_at(runner: Trainer, step: int, validating: bool) -> None:
    """Raises the stop flag, as a signal would, in the given step or in the validation after it."""
    train_step, meter = runner.train_step, runner.task.meter

    def train(batches: Any) -> None:
        train_step(batches)
        if not validating and runner.course.step + 1 == step:
            runner.stop.received = signal.SIGTERM

    def validate(*arguments: Any, **options: Any) -> Any:
        if validating and runner.course.step == step:
            runner.stop.received = signal.SIGTERM
        return meter(*arguments, **options)

    runner.train_step, runner.task.meter = train, validate  # type: ignore[method-assign]


def test_stopped_in_an_epoch_and_at_its_end_the_run_is_the_one_never_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", *STOPPED)
    whole.fit()
    last = tmp_path / "stopped" / "checkpoints" / "last.pt"
    for number, (step, validating) in enumerate([(2, False), (3, True)]):
        torch.rand(3)  # what was drawn in between must not matter
        runner = trainer(tmp_path / "stopped", *STOPPED, resume=last if number else None)
        stop_at(runner, step, validating)
        with pytest.raises(Interrupted, match=f"saved step {step}"):
            runner.fit()
    trainer(tmp_path / "stopped", *STOPPED, resume=last).fit()
    for name in ("last.pt", "best.pt"):
        states = [checkpoint.load(tmp_path / run / "checkpoints" / name) for run in ("stopped", "whole")]
        assert states[0]["step"] == states[1]["step"]
        assert differences(*states) == []
    assert checkpoint.load(last)["step"] == 6
    assert len(checkpoint.load(last)["scores"]) == 2


def test_a_step_has_images_of_one_form_where_that_can_be(tmp_path: Path) -> None:
    runner = trainer(tmp_path, *STOPPED)
    high = [
        {image.shape[0] > image.shape[1] for batch in batches for image in batch.image}
        for epoch in range(4)
        for batches in runner.train_loader.steps(epoch)
    ]
    # Four high and three wide images make two steps of the one and one of the other in every epoch.
    assert sorted(map(list, high)) == [[False]] * 4 + [[True]] * 8


def torchrun(parts: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    launcher += ["--rdzv-endpoint=localhost:0", "-m", "segtrain", *arguments]
    return subprocess.run(
        [sys.executable, *launcher],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{parts}", "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo as on Linux")
def test_two_ranks_learn_and_count_what_one_process_does(
    parts: Path, tmp_path: Path, door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = torchrun(parts, tmp_path, *RUN, *SPREAD, "data.batch_size=1", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    alone = trainer(tmp_path / "one", *SPREAD, "data.batch_size=2")
    before = {name: value.clone() for name, value in alone.model.state_dict().items()}
    alone.fit()
    theirs = checkpoint.load(tmp_path / "two" / "checkpoints" / "last.pt")
    for name, value in alone.model.state_dict().items():
        moved = float((value - before[name]).abs().max())
        assert torch.allclose(theirs["model"][name], value, rtol=1e-3, atol=1e-6 + 0.02 * moved), name
    assert theirs["scores"][0]["train"] == pytest.approx(alone.course.history[0]["train"], rel=1e-3)
    # One checkpoint, scored by two and by one: the same numbers.
    words = ["evaluate", "checkpoint=two/checkpoints/last.pt", "allow_targets=[ownobjects]", "export=coco"]
    done = torchrun(parts, tmp_path, *words, "hydra.run.dir=by_two")
    assert done.returncode == 0, done.stderr
    assert door(*words, "hydra.run.dir=by_one").code == 0
    scores = [json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("by_two", "by_one")]
    for content in scores:
        content["protocol"].pop("processes")
        content["export"].pop("path")
    assert scores[0].pop("loss") == pytest.approx(scores[1].pop("loss"), rel=1e-9)
    assert scores[0].pop("losses") == pytest.approx(scores[1].pop("losses"), rel=1e-9)
    assert differences(*scores) == []
    results = [(tmp_path / folder / "coco_results.json").read_bytes() for folder in ("by_two", "by_one")]
    assert results[0] == results[1]
    assert np.isfinite(scores[0]["images"])

"""The forecast is near what happens, and rehearsing changes nothing of the run."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain import checkpoint, rehearsal
from segtrain.errors import ResourceError
from segtrain.experiment import build, compose
from segtrain.rehearsal import rehearse
from segtrain.tracking import Tracker

LINE = re.compile(r"forecast .*: .* a step, validation .* memory (.*) disk (\S+) MiB \(3 checkpoints\)")


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["trainer.ema=0.9", "model.dropout=0.4", "optimizer=sgd"],
        ["augment.transforms.color.p=1.0", "data.batch_size=3", "trainer.accumulate=2", "data.num_workers=1"],
    ],
)
def test_a_run_with_a_forecast_is_the_run_without(door: Any, fast: list[str], tmp_path: Path, extra: list[str]) -> None:
    states = {}
    for wanted in ("true", "false"):
        done = door(*fast, *extra, f"trainer.forecast={wanted}", f"hydra.run.dir=run-{wanted}")
        assert done.code == 0, done.err
        assert bool(LINE.search(done.out)) == (wanted == "true")
        state = checkpoint.load(tmp_path / f"run-{wanted}" / "checkpoints/last.pt")
        states[wanted] = checkpoint.digest({key: state[key] for key in ("model", "ema", "optimizer", "rng", "sums")})
    assert states["true"] == states["false"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("ema", ["null", "0.99"])
def test_the_disk_that_is_forecast_is_the_disk_that_is_used(
    fast: list[str], tmp_path: Path, optimizer: str, ema: str
) -> None:
    cfg = compose([*fast, f"optimizer={optimizer}", f"trainer.ema={ema}", "model.base_channels=24"])
    runner = build(cfg, folder=tmp_path, tracker=Tracker())
    forecast = rehearse(runner, auto=False)
    runner.fit()
    used = (tmp_path / "checkpoints" / "last.pt").stat().st_size
    assert forecast.checkpoint == pytest.approx(used, rel=0.1)


def test_a_disk_without_room_stops_the_run_before_its_first_step(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build(compose(fast), folder=tmp_path, tracker=Tracker())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**30, 2**30, 1000))
    with pytest.raises(ResourceError, match="disk too full") as caught:
        rehearse(runner, auto=False)
    assert "hydra.run.dir=DIR" in str(caught.value.fix)
    assert runner.course.step == 0


def attempts(fast: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, *extra: str) -> list[int]:
    """Images of each pass that a rehearsal makes."""
    runner = build(compose([*fast, *extra]), folder=folder, tracker=Tracker())
    whole, seen = runner.gradients.add, []

    def gradients(batches: list[Any], *arguments: Any) -> Any:
        seen.append(sum(len(batch) for batch in batches))
        return whole(batches, *arguments)

    monkeypatch.setattr(runner.gradients, "add", gradients)
    rehearse(runner, auto=False)
    return seen


@pytest.mark.parametrize(("size", "first"), [(2, 2), (3, 3), (4, 2), (7, 2)])
def test_the_step_that_is_timed_is_a_whole_one_after_a_short_one(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, first: int
) -> None:
    batch = (f"data.batch_size={size}", f"data.effective_batch={size}")
    assert attempts(fast, tmp_path, monkeypatch, *batch) == [first, size]


def test_a_slow_step_is_made_once_but_as_a_whole(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "LONG", 0.0)
    assert attempts(fast, tmp_path, monkeypatch, "data.batch_size=4", "data.effective_batch=4") == [2, 4]
    assert attempts(fast, tmp_path, monkeypatch, "data.batch_size=2", "data.effective_batch=2") == [2]


def test_what_a_forecast_counts_grows_with_the_run(fast: list[str], tmp_path: Path) -> None:
    steps = {}
    for epochs in (1, 50):
        words = [word for word in fast if "max_steps" not in word]
        cfg = compose([*words, "trainer.max_steps=null", f"trainer.epochs={epochs}"])
        runner = build(cfg, folder=tmp_path, tracker=Tracker())
        steps[epochs] = rehearse(runner, auto=False)
        parts = runner.course.total_steps * steps[epochs].step_seconds + epochs * steps[epochs].validation_seconds
        assert steps[epochs].total_seconds == pytest.approx(parts)
    for forecast in steps.values():
        assert forecast.step_seconds > 0
        assert forecast.validation_seconds > 0
        assert forecast.memory > 2**20


def test_samples_that_make_no_batch_are_told_as_the_loader_tells_it(door: Any, fast: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(6):
        for folder, pixels in (
            ("images", rng.integers(0, 255, (20 + index, 30, 3))),
            ("masks", np.zeros((20 + index, 30))),
        ):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / folder / f"{index}.png")
    words = [word for word in fast if not word.startswith("data.size")]
    done = door(
        *words,
        "data=folder",
        "data.root=data",
        "data.val_fraction=0.5",
        "data.classes=[a,b]",
        "~augment.transforms.scale_crop",
        "trainer.forecast=true",
    )
    assert done.code == 3, done.err
    assert "a batch holds images of different sizes" in done.err


def test_validation_without_losses_has_none(door: Any, fast: list[str], tmp_path: Path) -> None:
    for wanted in ("true", "false"):
        done = door(*fast, f"trainer.val_loss={wanted}", f"hydra.run.dir=run-{wanted}")
        assert done.code == 0, done.err
    found = {name: json.loads((tmp_path / f"run-{name}" / "metrics.json").read_text()) for name in ("true", "false")}
    assert found["true"]["confusion"] == found["false"]["confusion"]
    assert found["false"]["loss"] is None
    assert found["true"]["loss"] > 0
    refused = door(*fast, "trainer.val_loss=false", "trainer.monitor=loss")
    assert refused.code == 2
    assert "trainer.val_loss=true" in refused.err


def test_steps_without_a_label_are_counted(fast: list[str], tmp_path: Path) -> None:
    runner = build(compose([*fast, "data.num_workers=0"]), folder=tmp_path, tracker=Tracker())
    dataset: Any = runner.train_loader.dataset
    hidden = set(list(runner.train_loader.steps(0))[1][0].index.tolist())
    load = dataset.source
    dataset.source = lambda index: (load(index)[0], np.full_like(load(index)[1], 255 if index in hidden else 0))
    steps = list(runner.train_loader.steps(0))
    for batches in steps:
        runner.train_step(batches)
    losses = runner.sums.take("window")
    assert losses["unlabelled"] == pytest.approx(1 / len(steps))
    assert torch.isfinite(torch.tensor(losses["loss"]))


@pytest.mark.slow
def test_a_compiled_network_is_rehearsed_and_its_first_pass_is_told(door: Any, fast: list[str], tmp_path: Path) -> None:
    done = door(*fast, "trainer.compile=true", "trainer.forecast=true")
    assert done.code == 0, done.err
    assert done.out.count("compile  the first step took") == 1
    assert LINE.search(done.out)


def test_a_network_whose_length_is_asked_for_trains(fast: list[str], tmp_path: Path) -> None:
    runner = build(compose(fast), folder=tmp_path, tracker=Tracker())

    class Asked(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __len__(self) -> int:
            raise TypeError("no length")

        def forward(self, *values: Any, **options: Any) -> Any:
            return self.inner(*values, **options)

    runner.gradients.network = Asked(runner.model)
    rehearse(runner, auto=False)
    runner.train_step(next(runner.train_loader.steps(0)))

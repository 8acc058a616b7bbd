"""What a resumed run may change, what it says then, and which runs count as finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ConfigError
from segtrain.experiment import build, compose
from segtrain.resuming import refuse_changes

SIZES = ("data.limit=8", "data.batch_size=2", "trainer.max_steps=null", "trainer.log_every=1")
Door = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fast: list[str]) -> Path:
    """A run of two epochs of four steps, done."""
    folder = tmp_path_factory.mktemp("finished")
    from segtrain.__main__ import run

    assert run([*fast, *SIZES, "trainer.epochs=2", f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture
def again(finished: Path, tmp_path: Path, fast: list[str], door: Door) -> Callable[..., Any]:
    """Resumes a copy of the finished run with other overrides; the copy is `tmp_path / "run"`."""
    shutil.copytree(finished, tmp_path / "run")

    def resume(*overrides: str) -> Any:
        base = [*fast, *SIZES, "trainer.epochs=2", "trainer.resume=auto", "hydra.run.dir=run"]
        names = {override.split("=")[0] for override in overrides}
        return door(*(o for o in base if o.split("=")[0] not in names), *overrides)

    return resume


def steps(run: Path) -> int:
    return int(checkpoint.load(run / "checkpoints" / "last.pt")["step"])


def test_a_finished_run_says_so(again: Door, tmp_path: Path) -> None:
    done = again()
    assert done.code == 0
    assert "is finished: miou" in done.out
    assert steps(tmp_path / "run") == 8


def test_a_finished_run_of_another_config_is_not_this_one(again: Door) -> None:
    done = again("optimizer.lr=0.5")
    assert done.code == 2
    assert "optimizer.lr" in done.err
    assert "is finished" not in done.out


def test_a_run_that_was_lengthened_is_unfinished_until_it_is_done(again: Door, tmp_path: Path) -> None:
    assert again("trainer.epochs=3").code == 0
    assert steps(tmp_path / "run") == 12
    # As if stopped on the way: an older metrics.json beside a newer checkpoint must not count as the end.
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({**scores, "steps": 11}))
    done = again("trainer.epochs=3")
    assert done.code == 0
    assert "is finished" not in done.out


def test_a_longer_run_says_that_its_schedule_is_stretched(again: Door) -> None:
    done = again("trainer.epochs=3")
    assert "changed  trainer.epochs: 2 -> 3" in done.out
    assert "schedule is stretched" in done.out


def test_an_allowed_learning_rate_is_used(finished: Path, tmp_path: Path, fast: list[str]) -> None:
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    changed = [
        *fast,
        *SIZES,
        "trainer.epochs=4",
        "optimizer.lr=1e-5",
        "optimizer.weight_decay=0.5",
        "scheduler=constant",
    ]
    runner = build(compose(changed), folder=tmp_path, resume=state)
    assert {group["lr"] for group in runner.optimizer.param_groups} == {1e-5}
    assert {group["weight_decay"] for group in runner.optimizer.param_groups} == {0.5, 0.0}
    runner.fit()
    assert {group["lr"] for group in runner.optimizer.param_groups} == {1e-5}


def test_a_stretched_schedule_goes_on_where_it_says(finished: Path, tmp_path: Path, fast: list[str]) -> None:
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    runner = build(compose([*fast, *SIZES, "trainer.epochs=4"]), folder=tmp_path, resume=state)
    assert runner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**0.9)


def test_a_larger_step_counts_the_images_that_are_done(finished: Path, tmp_path: Path, fast: list[str]) -> None:
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    sizes = [o if o != "data.batch_size=2" else "data.batch_size=4" for o in SIZES]
    runner = build(compose([*fast, *sizes, "trainer.epochs=4"]), folder=tmp_path, resume=state)
    assert (runner.course.step, runner.course.total_steps, runner.course.step_in_epoch()) == (4, 8, 0)
    runner.fit()
    assert (runner.course.step, runner.course.epoch, runner.course.samples_seen) == (8, 4, 32)


@pytest.mark.parametrize("change", ["model.base_channels=8", "optimizer=sgd"])
def test_another_network_or_optimizer_is_never_allowed(again: Door, change: str) -> None:
    key = change.split("=")[0]
    done = again(change, f"trainer.resume_allow=[{key}]", "trainer.epochs=3")
    assert done.code == 2
    assert "start a new run with model.weights=PATH" in done.err
    assert "resume_allow" not in done.err


@pytest.mark.parametrize(
    ("key", "mine"),
    [
        ("data.num_workers", 3),
        ("data.prefetch", 5),
        ("data.cache", "ram"),
        ("data.cache_dir", "elsewhere"),
        ("trainer.forecast", False),
        ("trainer.profile", True),
        ("trainer.val_loss", False),
        ("trainer.save_every", 9),
    ],
)
def test_what_changes_no_weight_may_change_and_is_said(key: str, mine: object) -> None:
    group, leaf = key.split(".")
    said: list[str] = []
    cfg, state = OmegaConf.create({group: {"same": 1, leaf: mine}}), {"config": {group: {"same": 1}}}
    assert refuse_changes(cfg, state, [], said.append) == [key]
    assert said == [f"changed  {key}: None -> {mine}"]


@pytest.mark.parametrize("key", ["data.batch_size", "data.effective_batch", "trainer.seed", "trainer.accumulate"])
def test_what_changes_the_training_must_be_allowed_by_name(key: str) -> None:
    group, leaf = key.split(".")
    cfg, state = OmegaConf.create({group: {leaf: 2}}), {"config": {group: {leaf: 1}}}
    with pytest.raises(ConfigError, match=key) as caught:
        refuse_changes(cfg, state, [], print)
    assert caught.value.code == 2
    assert f"trainer.resume_allow=[{key}]" in str(caught.value.fix)
    assert refuse_changes(cfg, state, [key], print) == [key]


def test_another_number_of_processes_goes_on_at_the_same_sample_and_says_what_is_not_exact(
    finished: Path, tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As two processes with half the batch each would have left it in their third epoch."""
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    state.update(rng=state["rng"] * 2, samples_seen=20, step=10)
    runner = build(compose([*fast, *SIZES, "trainer.epochs=4"]), folder=tmp_path, resume=state)
    said = capsys.readouterr().out
    assert "was written by 2 processes, now there are 1: sample order goes on, dropout is not exact" in said
    assert (runner.course.step, runner.course.samples_seen, runner.course.step_in_epoch()) == (10, 20, 2)


def test_a_state_of_another_network_is_a_checkpoint_error(finished: Path, tmp_path: Path, fast: list[str]) -> None:
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        build(compose([*fast, *SIZES, "model.base_channels=8"]), folder=tmp_path, resume=state)


def test_the_best_comes_along_into_a_new_folder(finished: Path, door: Door, tmp_path: Path, fast: list[str]) -> None:
    source = finished / "checkpoints" / "last.pt"
    done = door(*fast, *SIZES, "trainer.epochs=2", f"trainer.resume={source}", "hydra.run.dir=new")
    assert done.code == 0
    mine, theirs = (
        checkpoint.load(p) for p in (tmp_path / "new/checkpoints/best.pt", finished / "checkpoints/best.pt")
    )
    assert mine["sha256"] == theirs["sha256"]


def test_a_checkpoint_without_its_best_chooses_the_best_anew(
    finished: Path, door: Door, tmp_path: Path, fast: list[str]
) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(finished / "checkpoints" / "last.pt", tmp_path / "alone")
    done = door(*fast, *SIZES, "trainer.epochs=3", "trainer.resume=alone/last.pt", "hydra.run.dir=new")
    assert done.code == 0
    assert "the best is chosen anew" in done.out
    best = checkpoint.load(tmp_path / "new" / "checkpoints" / "best.pt")
    assert best["step"] == 12


def test_a_strangers_best_is_not_taken(finished: Path, door: Door, tmp_path: Path, fast: list[str]) -> None:
    (tmp_path / "odd").mkdir()
    state = checkpoint.load(finished / "checkpoints" / "last.pt")
    shutil.copy(finished / "checkpoints" / "last.pt", tmp_path / "odd")
    stranger = {**state, "best": {**state["best"], "step": 999}}
    del stranger["sha256"]
    checkpoint.save(tmp_path / "odd" / "best.pt", stranger)
    done = door(*fast, *SIZES, "trainer.epochs=3", "trainer.resume=odd/last.pt", "hydra.run.dir=new")
    assert "the best is chosen anew" in done.out
    assert checkpoint.load(tmp_path / "new" / "checkpoints" / "best.pt")["best"]["step"] == 12


def test_nothing_that_is_not_finite_is_saved(finished: Path, tmp_path: Path, fast: list[str]) -> None:
    from segtrain.errors import NonFiniteError

    runner = build(compose([*fast, *SIZES]), folder=tmp_path)
    with torch.no_grad():
        next(runner.model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="nothing was saved"):
        runner.save("last.pt")
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_a_checkpoint_from_elsewhere_does_not_overwrite_the_run_in_a_folder(
    finished: Path, door: Door, tmp_path: Path, fast: list[str]
) -> None:
    shutil.copytree(finished, tmp_path / "other")
    before = (tmp_path / "other" / "checkpoints" / "last.pt").read_bytes()
    source = finished / "checkpoints" / "last.pt"
    line = [*fast, *SIZES, "trainer.epochs=3", "hydra.run.dir=other"]
    done = door(*line, f"trainer.resume={source}")
    assert done.code == 2
    assert (tmp_path / "other" / "checkpoints" / "last.pt").read_bytes() == before
    assert door(*line, "trainer.resume=other/checkpoints/last.pt").code == 0
    assert steps(tmp_path / "other") == 12

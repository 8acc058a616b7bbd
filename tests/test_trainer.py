"""One optimizer step is one optimizer step, however it is cut; the best is the best; faults stop or are skipped."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segtrain import checkpoint, distributed
from segtrain.errors import NonFiniteError, ResourceError
from segtrain.experiment import build, compose
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.pixel import CrossEntropy
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer, due
from segtrain.types import Batch

FAST = [
    "debug=fast",
    "model.base_channels=4",
    "model.depth=2",
    "data.size=32",
    "data.crop_size=32",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.device=cpu",
]


class Quiet(Tracker):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)


def trainer(folder: Path, *overrides: str) -> Trainer:
    return build(compose([*FAST, *overrides]), folder=folder, tracker=Quiet())


def without_norms(runner: Trainer) -> None:
    """Replaces batch normalization by nothing, in place: its statistics see micro-batches one by one."""
    for module in runner.model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def uneven(batch: Batch) -> Batch:
    """Sample k of the batch keeps labels only in some of its rows."""
    for number in range(len(batch)):
        batch.target[number, : 7 * (int(batch.index[number]) % 5)] = 255
    return batch


def cut(batch: Batch, parts: int) -> list[Batch]:
    size = len(batch) // parts
    pieces = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return [Batch(batch.image[p], batch.target[p], batch.index[p], batch.records[p]) for p in pieces]


@pytest.mark.parametrize("weights", ["none", "[1.0,5.0,0.5,2.0,9.0]"])
@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_micro_batches_equal_one_batch_whatever_their_labels(tmp_path: Path, weights: str, loss: str) -> None:
    options = [f"loss={loss}", f"loss.class_weights={weights}", "optimizer=sgd", "data.batch_size=4"]
    states = []
    for parts in (1, 2, 4):
        runner = trainer(tmp_path, *options, "trainer.grad_clip=0.7")
        without_norms(runner)
        (batch,) = next(iter(runner.train_loader.steps(0)))
        runner.train_step(cut(uneven(batch), parts))
        states.append((runner.model.state_dict(), runner.sums.take("window")))
    for state, losses in states[1:]:
        for name, value in states[0][0].items():
            assert torch.allclose(state[name], value, atol=1e-6, rtol=0), name
        assert losses == pytest.approx(states[0][1], abs=1e-5)


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path) -> None:
    norms = {}
    for clip in ("null", "1000.0", "0.01"):
        runner = trainer(tmp_path, f"trainer.grad_clip={clip}")
        seen: list[float] = []
        step = runner.optimizer.step

        def noting(*args: Any, seen: list[float] = seen, runner: Trainer = runner, step: Any = step) -> Any:
            grads = [p.grad for p in runner.model.parameters() if p.grad is not None]
            seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
            return step(*args)

        runner.optimizer.step = noting  # type: ignore[method-assign]
        runner.train_step(next(iter(runner.train_loader.steps(0))))
        (norms[clip],) = seen
    assert norms["null"] == norms["1000.0"] > 0.02
    assert norms["0.01"] == pytest.approx(0.01, rel=1e-3)


def scored(runner: Trainer, scores: list[float], name: str = "miou") -> None:
    """Makes validations return the given scores in turn."""
    real, left = runner.validate, iter(scores)
    runner.validate = lambda: {**real(), name: next(left)}  # type: ignore[method-assign]


NAN = math.nan


@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [
        ("miou", [0.1, 0.5, 0.3, 0.5], 2),
        ("miou", [NAN, 0.2, NAN, 0.1], 2),
        ("miou", [0.4, NAN, 0.1, 0.2], 1),
        ("loss", [2.0, 1.0, 3.0, 0.5], 4),
        ("loss", [NAN, 2.0, 2.0, 2.5], 2),
        ("pixel_accuracy", [0.2, 0.1, 0.9, 0.8], 3),
    ],
)
def test_the_best_is_the_best(tmp_path: Path, monitor: str, scores: list[float], best: int) -> None:
    options = ["trainer.epochs=4", "trainer.max_steps=null", "data.limit=2", f"trainer.monitor={monitor}"]
    runner = trainer(tmp_path, *options)
    scored(runner, scores, monitor)
    assert runner.fit()["epoch"] == best
    kept = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    last = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert (kept["epoch"], kept["best"]["epoch"], last["epoch"]) == (best, best, 4)
    assert kept["step"] == best


def test_early_stopping_waits_as_long_as_told(tmp_path: Path) -> None:
    runner = trainer(tmp_path, "trainer.epochs=9", "trainer.max_steps=null", "data.limit=2", "trainer.early_stop=2")
    scored(runner, [0.1, 0.3, 0.2, 0.31, 0.1, 0.2, 0.9])
    assert runner.fit()["epoch"] == 4
    assert runner.course.epoch == 6


@pytest.mark.parametrize(("limit", "steps", "epochs"), [(1, 1, 1), (4, 4, 1), (5, 5, 2), (99, 8, 2)])
def test_max_steps_ends_the_run_on_its_step_with_a_validation(
    tmp_path: Path, limit: int, steps: int, epochs: int
) -> None:
    runner = trainer(tmp_path, "trainer.epochs=2", f"trainer.max_steps={limit}")
    runner.fit()
    assert (runner.course.step, runner.course.epoch, len(runner.course.history)) == (steps, epochs, epochs)
    assert runner.course.history[-1]["step"] == steps == runner.course.total_steps


def poisoned(runner: Trainer, steps: set[int], how: str = "loss") -> None:
    """Makes the loss, or the gradient alone, or its squares alone, of the given steps not finite."""
    losses = runner.task.losses

    def bad(*arguments: Any) -> Any:
        found = losses(*arguments)
        if runner.course.step + 1 in steps:
            if how == "loss":
                found["loss"] = found["loss"] * math.nan
            else:
                factor = {"gradient": math.inf, "square": 1e25}[how]
                found["loss"].register_hook(lambda gradient: gradient * factor)  # the loss itself stays finite
        return found

    runner.task.losses = bad


def all_finite(state: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, dict):
        return all(map(all_finite, state.values()))
    return all(map(all_finite, state)) if isinstance(state, list | tuple) else True


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_stop_names_the_samples_and_saves_nothing_of_it(tmp_path: Path, how: str, deferred: bool) -> None:
    """`deferred` is how a GPU looks: at log points, after the damage, and before every save."""
    runner = trainer(
        tmp_path, "trainer.max_steps=null", "trainer.epochs=2", "trainer.log_every=4", "trainer.save_every=1"
    )
    runner.guard.deferred = deferred
    poisoned(runner, {6}, how)
    order = [[f"train/{int(i):05d}" for i in batch.index] for (batch,) in runner.train_loader.steps(1)]
    with pytest.raises(NonFiniteError) as caught:
        runner.fit()
    error = caught.value
    assert error.code == 5
    assert "at step 6" in error.found
    assert error.where == ", ".join(order[1])
    assert "trainer.on_nonfinite=skip" in (error.fix or "")
    for name in ("best.pt", "last.pt"):
        state = checkpoint.load(tmp_path / "checkpoints" / name)
        assert state["step"] <= 5
        assert all_finite([state["model"], state["optimizer"]])
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 5


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_finite_gradients_whose_squares_are_not_are_never_saved_with_them(tmp_path: Path, clip: str) -> None:
    runner = trainer(tmp_path, "optimizer=adamw", f"trainer.grad_clip={clip}", "trainer.save_every=1")
    poisoned(runner, {2}, "square")
    with pytest.raises(NonFiniteError) as caught:
        runner.fit()
    expected = "at step 2" if clip == "1.0" else "the optimizer's sums hold NaN or infinity"  # their norm overflows
    assert expected in caught.value.found
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert state["step"] == 1
    assert all_finite([state["model"], state["optimizer"]])


def test_ranks_agree_on_the_statistics_of_what_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[nn.Module] = []
    monkeypatch.setattr(distributed, "copy_buffers", copied.append)
    runner = trainer(tmp_path, "trainer.ema=0.9")
    runner.validate()
    assert runner.model in copied
    assert runner.ema.evaluated(runner.model) in copied


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_skip_leaves_the_step_out_and_trains_on(tmp_path: Path, how: str) -> None:
    runner = trainer(tmp_path, "trainer.on_nonfinite=skip", "trainer.max_steps=4", "trainer.ema=0.9")
    poisoned(runner, {2}, how)
    before: list[Any] = []
    step = runner.train_step

    def noting(batches: Any) -> None:
        before.append({name: value.clone() for name, value in runner.model.named_parameters()})
        step(batches)

    runner.train_step = noting  # type: ignore[method-assign]
    runner.fit()
    assert [line for line in runner.tracker.lines if "step 2 skipped" in line]
    moved = [not all(torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(before)]
    assert moved == [True, False, True]
    assert all_finite(runner.state()["model"])
    assert math.isfinite(runner.course.history[0]["train"]["loss"])


def test_skipping_is_capped(tmp_path: Path) -> None:
    options = ["trainer.on_nonfinite=skip", "trainer.max_steps=null", "trainer.epochs=9", "trainer.log_every=2"]
    runner = trainer(tmp_path, *options)
    poisoned(runner, set(range(3, 99)))
    with pytest.raises(NonFiniteError, match="at step 23"):
        runner.fit()
    good = trainer(tmp_path, *options)
    poisoned(good, {step for step in range(3, 37) if step % 15})
    good.fit()
    assert good.course.step == 36


def test_a_step_without_labels_trains_on(tmp_path: Path) -> None:
    runner = trainer(tmp_path)
    step = runner.train_step

    def blanked(batches: list[Batch]) -> None:
        if runner.course.step == 1:
            for batch in batches:
                batch.target[:] = 255
        step(batches)

    runner.train_step = blanked  # type: ignore[method-assign]
    runner.fit()
    assert runner.course.step == 3
    assert all_finite(runner.state())
    assert math.isfinite(runner.course.history[0]["train"]["loss"])


def test_frozen_normalization_keeps_statistics_and_scales(tmp_path: Path) -> None:
    frozen, free = (
        trainer(tmp_path, "model.freeze_bn=true", "trainer.epochs=2", "trainer.max_steps=8"),
        trainer(tmp_path),
    )
    for runner, moves in ((frozen, False), (free, True)):
        layers = [m for m in runner.model.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [[value.clone() for value in layer.state_dict().values()] for layer in layers]
        runner.fit()
        after = [list(layer.state_dict().values()) for layer in layers]
        same = [all(map(torch.equal, a, b)) for a, b in zip(before, after, strict=True)]
        assert set(same) == {not moves}


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tmp_path: Path) -> None:
    plain, compiled = trainer(tmp_path), trainer(tmp_path, "trainer.compile=true")
    for runner in (plain, compiled):
        runner.fit()
    assert compiled.course.history[0]["train"] == pytest.approx(plain.course.history[0]["train"], rel=1e-4)
    keys = [set(checkpoint.load(tmp_path / "checkpoints" / "last.pt")["model"]), set(plain.model.state_dict())]
    assert keys[0] == keys[1]


def test_bf16_on_the_cpu_learns_and_saves_float32(tmp_path: Path) -> None:
    options = ["debug=overfit", "data.num_workers=0", "trainer.epochs=12", "trainer.amp=bf16", "optimizer.lr=0.01"]
    runner = trainer(tmp_path, *options, "trainer.max_steps=null")
    seen: set[torch.dtype] = set()
    runner.model.register_forward_hook(lambda module, inputs, output: seen.add(output["out"].dtype))
    runner.fit()
    assert seen == {torch.bfloat16}
    losses = [record["train"]["loss"] for record in runner.course.history]
    assert losses[-1] < 0.75 * losses[0]
    assert {value.dtype for value in runner.model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_channels_last_changes_nothing_but_the_layout(tmp_path: Path) -> None:
    plain, last = trainer(tmp_path), trainer(tmp_path, "trainer.channels_last=true")
    weights = [p for p in last.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    for runner in (plain, last):
        runner.fit()
    assert last.course.history[0]["train"] == pytest.approx(plain.course.history[0]["train"], rel=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        "unet_small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lraspp", "fcn_torchvision", "deeplabv3_torchvision", "deeplabv3plus")
        ),
    ],
)
def test_every_model_trains_deterministically_on_the_cpu(tmp_path: Path, model: str) -> None:
    small = {"unet_small": FAST[1:3], "lraspp": []}.get(model, ["model.backbone=resnet18"])
    options = [option for option in FAST if "model." not in option]
    overrides = [
        *options,
        f"model={model}",
        *small,
        "trainer.deterministic=true",
        "trainer.max_steps=1",
        "data.limit=2",
    ]
    try:
        runs = [build(compose(overrides), folder=tmp_path, tracker=Quiet()) for _ in range(2)]
        for runner in runs:
            torch.manual_seed(5)
            runner.fit()
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (runner.model.state_dict() for runner in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_memory_that_runs_out_is_reported_with_what_to_change(tmp_path: Path) -> None:
    runner = trainer(tmp_path)

    def hungry(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    runner.task.losses = hungry
    with pytest.raises(ResourceError) as caught:
        runner.fit()
    assert caught.value.code == 6
    assert "while training (step 0, batches of 2" in caught.value.found
    assert "Tried to allocate 9 GiB" in (caught.value.expected or "")
    assert "data.batch_size" in (caught.value.fix or "")


def test_a_worker_that_dies_during_a_step_is_a_lack_of_resources(tmp_path: Path) -> None:
    runner = trainer(tmp_path)

    def interrupted(*arguments: Any) -> Any:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    runner.task.losses = interrupted
    with pytest.raises(ResourceError, match="worker died"):
        runner.fit()


def test_curves_are_on_the_disk_before_the_checkpoint_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed after a save does not draw the points before it again."""
    runner, calls = trainer(tmp_path, "trainer.save_every=1", "trainer.max_steps=2"), []
    save = checkpoint.save
    monkeypatch.setattr(runner.tracker, "flush", lambda: calls.append("flush"))

    def noting(path: Path, state: Any, *more: Path) -> str:
        calls.extend(file.name for file in (path, *more))
        return save(path, state, *more)

    monkeypatch.setattr(checkpoint, "save", noting)
    runner.fit()
    assert calls == ["flush", "last.pt", "flush", "last.pt", "flush", "last.pt", "best.pt"]


def test_the_summary_has_the_best_scores_and_the_last(tmp_path: Path) -> None:
    runner = trainer(tmp_path, "trainer.epochs=3", "trainer.max_steps=null", "data.limit=2")
    scored(runner, [0.1, 0.7, 0.2])
    runner.fit()
    summary = runner.course.summary()
    assert (summary["miou"], summary["epoch"], summary["last"]["miou"]) == (0.7, 2, 0.2)
    assert (summary["epochs"], summary["steps"]) == (3, 3)
    json.dumps(summary)


def test_due_counts_from_one_and_zero_is_never() -> None:
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))


def test_a_mean_over_classes_of_weights_is_taken_over_the_whole_step() -> None:
    """The divisor is the step's weight, not the mean of the micro-batches' means."""
    loss = SegmentationLoss(terms={"ce": CrossEntropy()})
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[0, 1:] = 255
    counts = sum(loss.counts(target[i : i + 1]) for i in range(2))
    parts = [loss({"out": logits[i : i + 1]}, target[i : i + 1], counts)["loss"] for i in range(2)]
    assert float(sum(parts)) == pytest.approx(float(loss({"out": logits}, target)["loss"]), abs=1e-6)

"""A batch that does not fit is trained in pieces: the same update, and the run says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segtrain.errors import ResourceError
from segtrain.experiment import build, compose
from segtrain.micro_batches import MicroBatches, smallest_batch
from segtrain.rehearsal import rehearse
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer
from segtrain.types import Batch

FAST = ["debug=fast", "model.base_channels=4", "model.depth=2", "data.size=32", "data.crop_size=32"]
FAST += ["trainer.tensorboard=false", "trainer.samples=0", "trainer.device=cpu"]


class Quiet(Tracker):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)


def trainer(folder: Path, *overrides: str) -> Trainer:
    return build(compose([*FAST, *overrides]), folder=folder, tracker=Quiet())


def said(runner: Trainer) -> str:
    assert isinstance(runner.tracker, Quiet)
    return "\n".join(runner.tracker.lines)


def without_norms(runner: Trainer) -> None:
    """Replaces batch normalization by nothing, in place: its statistics are of each piece."""
    for module in runner.model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def hold_at_most(
    runner: Trainer, images: int, sizes: list[int], error: Callable[[str], Exception] = torch.OutOfMemoryError
) -> None:
    """From now on the network runs out of memory in the middle of any batch of more images; notes the batches seen."""

    def full(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > images:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    runner.model.register_forward_hook(full)


@pytest.mark.parametrize(("fits", "pieces"), [(8, 1), (7, 2), (4, 2), (3, 4), (1, 8)])
@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_a_step_that_runs_out_of_memory_is_the_step_it_would_have_been(
    tmp_path: Path, fits: int, pieces: int, loss: str
) -> None:
    states = []
    for limit in (100, fits):
        runner = trainer(tmp_path, f"loss={loss}", "optimizer=sgd", "data.batch_size=8", "trainer.grad_clip=0.7")
        without_norms(runner)
        sizes: list[int] = []
        hold_at_most(runner, limit, sizes)
        steps = runner.train_loader.steps(0)
        runner.train_step(next(steps))
        states.append((runner.model.state_dict(), runner.sums.take("window"), runner.micro.count))
    (whole, losses, one), (cut, cut_losses, count) = states
    assert (one, count) == (1, pieces)
    assert sum(size for size in sizes if size <= fits) == 8
    for name, value in whole.items():
        assert torch.allclose(cut[name], value, atol=1e-6, rtol=0), name
    assert cut_losses == pytest.approx(losses, abs=1e-5)
    assert ("memory ran out" in said(runner)) == (pieces > 1)


@pytest.mark.parametrize("loss", ["dice", "lovasz", "tversky", "ce_dice"])
def test_losses_of_regions_are_the_mean_of_the_pieces_as_with_accumulated_batches(tmp_path: Path, loss: str) -> None:
    states = []
    for words, limit in ((["data.batch_size=2", "trainer.accumulate=4"], 100), (["data.batch_size=8"], 2)):
        runner = trainer(tmp_path, f"loss={loss}", "optimizer=sgd", *words)
        without_norms(runner)
        hold_at_most(runner, limit, [])
        runner.train_step(next(runner.train_loader.steps(0)))
        states.append((runner.model.state_dict(), runner.sums.take("window")))
    (accumulated, losses), (cut, cut_losses) = states
    for name, value in accumulated.items():
        assert torch.allclose(cut[name], value, atol=1e-6, rtol=0), name
    assert cut_losses == pytest.approx(losses, abs=1e-5)


def test_later_steps_begin_with_the_pieces_that_fit(tmp_path: Path) -> None:
    runner = trainer(tmp_path, "data.batch_size=4", "data.limit=16")
    sizes: list[int] = []
    hold_at_most(runner, 1, sizes)
    for batches in runner.train_loader.steps(0):
        runner.train_step(batches)
    assert sizes[:3] == [4, 2, 1]
    assert set(sizes[2:]) == {1}
    assert said(runner).count("memory ran out") == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes",
    ],
)
def test_memory_that_runs_out_where_torch_has_no_class_for_it(tmp_path: Path, text: str) -> None:
    runner = trainer(tmp_path, "data.batch_size=4")
    sizes: list[int] = []
    hold_at_most(runner, 2, sizes, lambda _: RuntimeError(text))
    runner.train_step(next(runner.train_loader.steps(0)))
    assert sizes == [4, 2, 2]
    assert f"memory ran out ({text.splitlines()[0]})" in said(runner)


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA error: device-side assert triggered",
        "Caught RuntimeError in DataLoader worker process 0.\nraise RuntimeError(shape)  # a guard: out of memory else",
    ],
)
def test_other_errors_are_not_tried_again(tmp_path: Path, text: str) -> None:
    runner = trainer(tmp_path, "data.batch_size=4")
    sizes: list[int] = []
    hold_at_most(runner, 2, sizes, lambda _: RuntimeError(text))
    with pytest.raises(RuntimeError, match=re.escape(text)):
        runner.fit()
    assert sizes == [4]


def test_memory_that_no_piece_fits_ends_the_run_and_names_the_phase(tmp_path: Path) -> None:
    runner = trainer(tmp_path, "data.batch_size=4")
    hold_at_most(runner, 0, [])
    with pytest.raises(ResourceError, match=r"while training .*batches of 4, each in 4 pieces") as caught:
        runner.fit()
    assert "data.batch_size" in str(caught.value.fix)


def test_a_network_that_normalizes_single_values_keeps_two_images(tmp_path: Path) -> None:
    words = ["model=deeplabv3plus", "model.backbone=mobilenet_v2", "data.batch_size=4"]
    fast = [word for word in FAST if "base_channels" not in word and "depth" not in word]
    runner = build(compose([*fast, *words]), folder=tmp_path, tracker=Quiet())
    assert smallest_batch(runner.model, frozen_norms=False) == 2
    assert smallest_batch(runner.model, frozen_norms=True) == 1
    sizes: list[int] = []
    hold_at_most(runner, 1, sizes)
    with pytest.raises(ResourceError):
        runner.fit()
    assert sizes == [4, 2]


def test_processes_that_wait_for_each_other_do_not_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.distributed.world_size", lambda: 2)
    batch = Batch(torch.zeros(4, 2, 2, 3), torch.zeros(4, 2, 2), torch.arange(4), [])

    tries: list[int] = []

    def full(pieces: list[Batch]) -> None:
        tries.append(len(pieces))
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        MicroBatches(smallest=1, say=lambda text: None).run([batch], full, lambda: None)
    assert tries == [1]
    with pytest.raises(torch.OutOfMemoryError):
        MicroBatches(smallest=1, say=lambda text: None).run([batch], full, lambda: None, alone=True)
    assert tries == [1, 1, 2, 4]


def test_auto_finds_the_pieces_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    runs = {}
    for name, words in {"plain": ["data.batch_size=8"], "auto": ["data.batch_size=auto"]}.items():
        runner = trainer(tmp_path / name, *words, "data.effective_batch=8", "model.dropout=0.3")
        without_norms(runner)
        sizes: list[int] = []
        if name == "auto":
            hold_at_most(runner, 3, sizes)
            before = {key: value.clone() for key, value in runner.model.state_dict().items()}
            forecast = rehearse(runner, auto=True)
            assert all(torch.equal(value, before[key]) for key, value in runner.model.state_dict().items())
            assert all(parameter.grad is None for parameter in runner.model.parameters())
            assert runner.micro.count == 4
            assert "2 of 8 images at a time" in said(runner)
            assert forecast.total_seconds > 0
            sizes.clear()
        runner.train_step(next(runner.train_loader.steps(0)))
        runs[name] = runner
        assert name == "plain" or sizes == [2, 2, 2, 2]
    assert runs["auto"].course.samples_seen == runs["plain"].course.samples_seen
    assert runs["auto"].train_loader.samples_per_step == runs["plain"].train_loader.samples_per_step == 8

"""Which device a run gets, and what cuDNN may try out; GPUs are pretended."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from segtrain.device import any_size, be_deterministic, pick_device
from segtrain.errors import ConfigError
from segtrain.evaluator import evaluate


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two CUDA devices; the list fills with those that were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("name", "rank", "expected"), [("auto", 0, "cuda:0"), ("cuda", 1, "cuda:1"), ("cuda:1", 0, "cuda:1")]
)
def test_a_process_gets_the_gpu_of_its_number_unless_one_is_named(
    two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, name: str, rank: int, expected: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert pick_device(name) == torch.device(expected)
    assert two_gpus == [torch.device(expected)]


@pytest.mark.parametrize(
    ("name", "world", "rank", "found"),
    [
        ("cuda:2", "1", "0", "2 CUDA devices are available"),
        ("cuda", "3", "2", "process 2 on this machine (LOCAL_RANK) has no GPU of its own: it sees 2"),
        ("auto", "3", "2", "process 2 on this machine (LOCAL_RANK) has no GPU of its own: it sees 2"),
        ("cuda:1", "2", "1", "all would use one GPU"),
        ("xpu", "1", "0", "trainer.device=xpu"),
        ("gpu", "1", "0", "trainer.device=gpu"),
    ],
)
def test_a_device_that_is_not_there_or_not_for_all_is_refused(
    two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, name: str, world: str, rank: str, found: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert found in caught.value.found
    assert two_gpus == []


def test_algorithms_are_tried_out_in_training_and_not_for_images_of_any_size() -> None:
    seen: list[bool] = []

    class Meter:
        def update(self, model: nn.Module, batch: Any) -> None:
            seen.append(torch.backends.cudnn.benchmark)
            if len(seen) == 2:
                raise RuntimeError("no more")

        def reduce(self) -> None:
            """Nothing."""

        def scores(self) -> dict[str, Any]:
            return {}

    class Moved(list[int]):
        def to(self, device: torch.device) -> Moved:
            return self

    before = torch.backends.cudnn.benchmark
    try:
        be_deterministic(False)
        assert torch.backends.cudnn.benchmark
        for batches in ([Moved([1])], [Moved([1])]):
            with contextlib.suppress(RuntimeError):
                task: Any = None
                precision = contextlib.nullcontext
                evaluate(nn.Identity(), batches, task, torch.device("cpu"), precision=precision, meter=Meter())
            assert torch.backends.cudnn.benchmark
        assert seen == [False, False]
        be_deterministic(True)
        with any_size():
            assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.benchmark
    finally:
        be_deterministic(False)
        torch.backends.cudnn.benchmark = before

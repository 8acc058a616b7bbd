"""Sums of loss terms: means over steps, to the same bits wherever a run is interrupted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segtrain.loss_sums import FOLDED_AT_ONCE, DeviceSums, HostSums, LossSums

CPU = torch.device("cpu")


@pytest.fixture(params=["host", "device"])
def make(request: pytest.FixtureRequest) -> Callable[[], LossSums]:
    """Either kind; the one for GPUs works on the CPU too."""
    return HostSums if request.param == "host" else lambda: DeviceSums(CPU)


STEPS = 2 * FOLDED_AT_ONCE + 7


def terms(seed: int) -> dict[str, Tensor]:
    values = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    return {"loss": values[0], "ce": values[1]}


def test_terms_are_means_over_the_steps_since_they_were_last_taken(make: Callable[[], LossSums]) -> None:
    sums = make()
    assert sums.take() == {}
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": torch.tensor(value), "ce": torch.tensor(-value)})
    assert sums.take() == {"ce": -3.0, "loss": 3.0}
    assert sums.take() == {}
    for step in range(STEPS):
        sums.add(terms(step))
    mean = torch.stack([terms(step)["loss"].double() for step in range(STEPS)]).mean().item()
    assert sums.take()["loss"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("cut", [0, 1, FOLDED_AT_ONCE - 1, FOLDED_AT_ONCE, STEPS - 1, STEPS])
def test_saved_and_restored_at_any_step_they_end_in_the_same_bits(make: Callable[[], LossSums], cut: int) -> None:
    whole, first, second = make(), make(), make()
    for step in range(STEPS):
        whole.add(terms(step))
        if step < cut:
            first.add(terms(step))
    second.restore(first.state())
    for step in range(cut, STEPS):
        second.add(terms(step))
    assert second.take() == whole.take()


def test_saving_changes_nothing_for_the_run_that_goes_on(make: Callable[[], LossSums]) -> None:
    watched, alone = make(), make()
    for step in range(STEPS):
        watched.add(terms(step))
        alone.add(terms(step))
        watched.state()
    assert watched.take() == alone.take()


def test_a_state_of_before_pending_steps_were_kept_still_restores(make: Callable[[], LossSums]) -> None:
    sums = make()
    sums.restore({"sums": {"loss": torch.tensor(6.0)}, "steps": 3})
    assert sums.take() == {"loss": 2.0}


@pytest.mark.parametrize("back", [False, True])
def test_a_run_may_go_on_on_another_kind_of_device(back: bool) -> None:
    kinds: list[LossSums] = [HostSums(), DeviceSums(CPU)]
    first, second = reversed(kinds) if back else kinds
    for step in range(STEPS):
        first.add(terms(step))
    second.restore(first.state())
    assert second.take() == pytest.approx(first.take(), abs=1e-6)


def test_numbers_and_tensors_are_terms_alike(make: Callable[[], LossSums]) -> None:
    sums = make()
    for value in (0.0, 1.0, 0.0, 1.0):
        sums.add({"loss": torch.tensor(2 * value), "unlabelled": value})
    assert sums.take() == {"loss": 1.0, "unlabelled": 0.5}

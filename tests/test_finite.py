"""The guard in itself: what it admits now, and what it finds later where looking is put off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segtrain.errors import NonFiniteError
from segtrain.finite import MAX_SKIPPED, FiniteGuard
from segtrain.loss_sums import LossSums
from segtrain.types import Batch, Record

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(1.0), torch.tensor(math.nan)


def guard(how: str = "stop", keep: int = 3) -> tuple[FiniteGuard, list[str]]:
    said: list[str] = []
    return FiniteGuard(CPU, on_nonfinite=how, keep=keep, say=said.append, lr=lambda: 0.25), said  # type: ignore[arg-type]


def batches(*names: str) -> list[Batch]:
    empty = torch.empty(len(names), 1, 1, 3)
    return [Batch(empty, empty[..., 0], torch.arange(len(names)), [Record(name) for name in names])]


@pytest.mark.parametrize(
    ("loss", "norm"), [(BAD, GOOD), (GOOD, BAD), (torch.tensor(math.inf), GOOD), (GOOD, torch.tensor(math.inf))]
)
def test_what_is_not_finite_stops_with_the_samples_named(loss: torch.Tensor, norm: torch.Tensor) -> None:
    watch, _ = guard()
    assert watch.admits(nn.Identity(), 1, batches("a"), GOOD, GOOD)
    with pytest.raises(NonFiniteError) as caught:
        watch.admits(nn.Identity(), 2, batches("b", "c"), loss, norm)
    assert "at step 2 (lr 0.25)" in caught.value.found
    assert caught.value.where == "b, c"


def test_an_infinite_gradient_under_a_scaler_is_the_scalers_affair() -> None:
    watch, _ = guard()
    assert watch.admits(nn.Identity(), 1, batches("a"), GOOD, None)
    with pytest.raises(NonFiniteError):
        watch.admits(nn.Identity(), 2, batches("a"), BAD, None)


def test_skipping_says_so_and_counts_in_a_row_only() -> None:
    watch, said = guard("skip")
    for step in range(1, MAX_SKIPPED + 1):
        assert not watch.admits(nn.Identity(), step, batches("a"), BAD, GOOD)
    assert watch.admits(nn.Identity(), 50, batches("a"), GOOD, GOOD)
    for step in range(51, 51 + MAX_SKIPPED):
        assert not watch.admits(nn.Identity(), step, batches("a"), GOOD, BAD)
    with pytest.raises(NonFiniteError, match="at step 71"):
        watch.admits(nn.Identity(), 71, batches("a"), BAD, GOOD)
    assert len(said) == 2 * MAX_SKIPPED
    assert said[0] == "warning: step 1 skipped, its loss or gradient is not finite"


def test_deferred_looking_finds_the_first_bad_step_and_its_samples() -> None:
    watch, _ = guard(keep=3)
    watch.deferred = True
    watch.check()
    for step, loss, norm in [(1, GOOD, GOOD), (2, GOOD, BAD), (3, BAD, BAD)]:
        assert watch.admits(nn.Identity(), step, batches(f"sample {step}"), loss, norm)
    with pytest.raises(NonFiniteError, match="at step 2") as caught:
        watch.check()
    assert caught.value.where == "sample 2"


def test_sums_are_means_over_the_steps_since_last_taken_and_go_on_after_a_restore() -> None:
    sums = LossSums(CPU)
    assert sums.take() == {}
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": torch.tensor(value), "ce": torch.tensor(-value)})
    other = LossSums(CPU)
    other.restore(sums.state())
    for each in (sums, other):
        each.add({"loss": torch.tensor(3.0), "ce": torch.tensor(1.0)})
        assert each.take() == {"ce": -2.0, "loss": 3.0}
        assert each.take() == {}


def test_a_skipped_step_leaves_no_trace_in_the_statistics() -> None:
    norm = nn.BatchNorm2d(2)
    watch, _ = guard("skip")
    watch.remember(norm)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm(torch.full((1, 2, 3, 3), math.nan))
    assert not watch.admits(norm, 1, batches("a"), BAD, GOOD)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    net = nn.Linear(2, 1)
    watch, _ = guard()
    watch.check_weights(net)
    with torch.no_grad():
        net.bias.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="hold NaN or infinity") as found:
        watch.check_weights(net)
    assert found.value.where == "bias"

"""Sums of loss terms: means over steps, to the same bits wherever a run is interrupted, read only when asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segtrain.loss_sums import HELD, LossSums

STEPS = HELD + 7


def terms(seed: int) -> dict[str, Tensor | float]:
    values = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    return {"loss": values[0], "ce": values[1], "unlabelled": float(seed % 4 == 0)}


def test_terms_are_means_over_the_steps_since_they_were_last_taken() -> None:
    sums = LossSums()
    assert sums.take("window") == {}
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": torch.tensor(value), "ce": -value})
    assert sums.take("window") == {"ce": -3.0, "loss": 3.0}
    assert sums.take("window") == {}
    sums = LossSums()
    for step in range(STEPS):
        sums.add(terms(step))
    mean = torch.tensor([float(terms(step)["loss"]) for step in range(STEPS)], dtype=torch.float64).mean().item()
    assert sums.take("window")["loss"] == pytest.approx(mean, abs=1e-12)


def test_spans_begin_apart_and_see_the_same_steps() -> None:
    sums = LossSums()
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": value})
        assert sums.take("window") == {"loss": value}
    assert sums.take("epoch") == {"loss": 3.0}
    sums.add({"loss": 5.0})
    assert sums.take("epoch") == sums.take("window") == {"loss": 5.0}


@pytest.mark.parametrize("cut", [0, 1, 10, HELD - 1, HELD, STEPS - 1, STEPS])
def test_saved_and_restored_at_any_step_they_end_in_the_same_bits(cut: int) -> None:
    whole, first, second = LossSums(), LossSums(), LossSums()
    for step in range(STEPS):
        whole.add(terms(step))
        if step < cut:
            first.add(terms(step))
    second.restore(first.state())
    for step in range(cut, STEPS):
        second.add(terms(step))
    assert second.take("window") == whole.take("window")
    assert second.take("epoch") == whole.take("epoch")


def test_saving_and_taking_the_other_span_change_nothing_for_the_run_that_goes_on() -> None:
    watched, alone = LossSums(), LossSums()
    for step in range(50):
        watched.add(terms(step))
        alone.add(terms(step))
        watched.state()
        watched.take("window")
    assert watched.take("epoch") == alone.take("epoch")


def test_states_of_earlier_versions_still_restore() -> None:
    sums = LossSums()
    host = {"sums": {"loss": torch.tensor(6.0)}, "steps": 3}
    device = {**host, "pending": torch.tensor([[1.0], [2.0]])}  # the last two of the three steps
    sums.restore({"window": host, "epoch": device})
    assert sums.take("window") == {"loss": 2.0}
    assert sums.take("epoch") == {"loss": 3.0}


def test_no_term_is_read_before_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(self.numel()) or tolist(self))
    monkeypatch.setattr(Tensor, "item", lambda self: pytest.fail("read one by one"))
    sums = LossSums()
    for step in range(10):
        sums.add(terms(step))
    assert reads == []
    sums.take("window")
    assert reads == [20]
    sums.take("epoch")
    assert reads == [20]

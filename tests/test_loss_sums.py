"""Sums of loss terms: means over steps, to the same bits wherever a run is interrupted, as they were given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.loss_sums import HELD, LossSums

STEPS = HELD + 7


def terms(seed: int) -> dict[str, Tensor]:
    values = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    return {"loss": values[0], "ce": values[1]}


def put(sums: LossSums, *steps: int) -> None:
    for step in steps:
        sums.add(terms(step), unlabelled=float(step % 4 == 0))


def test_terms_are_means_over_the_steps_since_they_were_last_taken() -> None:
    sums = LossSums()
    assert sums.take("window") == {}
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": torch.tensor(value)}, ce=-value)
    assert sums.take("window") == {"ce": -3.0, "loss": 3.0}
    assert sums.take("window") == {}
    sums = LossSums()
    put(sums, *range(STEPS))
    mean = torch.tensor([float(terms(step)["loss"]) for step in range(STEPS)], dtype=torch.float64).mean().item()
    assert sums.take("window")["loss"] == pytest.approx(mean, abs=1e-12)


def test_spans_begin_apart_and_see_the_same_steps() -> None:
    sums = LossSums()
    for value in (1.0, 2.0, 6.0):
        sums.add({"loss": torch.tensor(value)})
        assert sums.take("window") == {"loss": value}
    assert sums.take("epoch") == {"loss": 3.0}
    sums.add({"loss": torch.tensor(5.0)})
    assert sums.take("epoch") == sums.take("window") == {"loss": 5.0}


@pytest.mark.parametrize("cut", [0, 1, 10, HELD - 1, HELD, STEPS - 1, STEPS])
def test_saved_and_restored_at_any_step_they_end_in_the_same_bits(cut: int) -> None:
    whole, first, second = LossSums(), LossSums(), LossSums()
    put(whole, *range(STEPS))
    put(first, *range(cut))
    second.restore(first.state())
    put(second, *range(cut, STEPS))
    assert second.take("window") == whole.take("window")
    assert second.take("epoch") == whole.take("epoch")


def test_saving_and_taking_the_other_span_change_nothing_for_the_run_that_goes_on() -> None:
    watched, alone = LossSums(), LossSums()
    for step in range(50):
        put(watched, step)
        put(alone, step)
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


def test_terms_that_share_memory_with_what_changes_are_as_they_were_given() -> None:
    shared, sums = torch.zeros(()), LossSums()
    for _ in range(7):
        shared += 1
        sums.add({"loss": shared})
    assert sums.take("window") == {"loss": 4.0}


def test_any_shape_of_one_element_is_a_number_and_any_order_an_order() -> None:
    sums = LossSums()
    sums.add({"loss": torch.ones(1), "ce": torch.ones(1, 1)}, unlabelled=0.0)
    sums.add(
        {"ce": torch.tensor(3, dtype=torch.int32), "loss": torch.tensor(2.0, dtype=torch.bfloat16)}, unlabelled=1.0
    )
    assert sums.take("epoch") == {"ce": 2.0, "loss": 1.5, "unlabelled": 0.5}


def test_terms_that_are_no_numbers_or_change_their_names_are_refused_at_their_step() -> None:
    sums = LossSums()
    with pytest.raises(ConfigError, match=r"not one number: loss \(3,\) on cpu"):
        sums.add({"loss": torch.ones(3)})
    with pytest.raises(ConfigError, match="two terms of one name"):
        sums.add({"loss": torch.ones(()), "unlabelled": torch.ones(())}, unlabelled=0.0)
    put(sums, 0)
    with pytest.raises(ConfigError, match="the loss terms of this step are") as caught:
        sums.add({"loss": torch.ones(())}, unlabelled=0.0)
    assert "ce" in str(caught.value.expected)
    sums.take("window")
    sums.take("epoch")
    sums.add({"other": torch.ones(())})
    assert sums.take("window") == {"other": 1.0}


def test_a_restored_run_may_give_its_terms_in_another_order_but_no_others() -> None:
    first, second = LossSums(), LossSums()
    put(first, 0, 1)
    second.restore(first.state())
    second.add(dict(reversed(terms(2).items())), unlabelled=0.0)
    put(first, 2)
    assert second.take("epoch") == pytest.approx(first.take("epoch"))
    second.restore(first.state())
    with pytest.raises(ConfigError):
        second.add({"loss": torch.ones(())})

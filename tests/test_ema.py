"""The average follows its formula for every weight and buffer, shared ones included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtrain.ema import Ema, NoEma


class Net(nn.Module):
    """Weights, statistics, an integer buffer and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.again = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.again.weight = self.first.weight

    def shake(self) -> None:
        """One step of some optimizer."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += torch.randn_like(parameter)
        self.norm(self.first(torch.randn(8, 4)))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_the_average_follows_its_formula(decay: float) -> None:
    model = Net()
    ema = Ema(model, decay)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for n in range(1, 25):
        model.shake()
        ema.update()
        used = min(decay, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            whole = name.endswith("num_batches_tracked")
            expected[name] = value.double() if whole else used * expected[name] + (1 - used) * value.double()
    average = ema.evaluated(model)
    assert average is not model
    assert not average.training
    for name, value in average.state_dict().items():
        assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert int(average.state_dict()["norm.num_batches_tracked"]) == 24


def test_updating_changes_neither_the_model_nor_needs_gradients() -> None:
    model = Net()
    ema = Ema(model, 0.5)
    model.shake()
    before = copy.deepcopy(model.state_dict())
    ema.update()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_restored_average_goes_on_as_the_old_one() -> None:
    model = Net()
    old = Ema(model, 0.99)
    for _ in range(3):
        model.shake()
        old.update()
    new = Ema(model, 0.99)
    new.restore(copy.deepcopy(old.state()), nn.Identity())
    model.shake()
    for ema in (old, new):
        ema.update()
    assert new.updates == 4
    assert all(torch.equal(a, b) for a, b in zip(*(e.average.state_dict().values() for e in (old, new)), strict=True))


def test_without_an_average_the_model_itself_is_evaluated() -> None:
    model, none = Net(), NoEma()
    none.update()
    assert none.evaluated(model) is model
    assert none.state() is None


def test_an_average_that_the_checkpoint_lacks_starts_at_its_weights() -> None:
    model, loaded = nn.Linear(2, 2), nn.Linear(2, 2)
    average = Ema(model, 0.9)
    average.restore(None, loaded)
    assert torch.equal(average.evaluated(model).weight, loaded.weight)  # type: ignore[arg-type]
    assert average.updates == 0

"""Counted work against figures measured with other tools, and what a network that cannot be traced gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segtrain.experiment import build_model, compose
from segtrain.models.deeplab import DeepLabV3
from segtrain.models.fcn import FCNTorchvision
from segtrain.models.lraspp import LRASPP
from segtrain.models.summary import measure


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: FCNTorchvision(num_classes=21), "torchvision.fcn_resnet50"),
        (lambda: DeepLabV3(num_classes=21, atrous_rates=[12, 24, 36]), "torchvision.deeplabv3_resnet50"),
        (lambda: LRASPP(num_classes=21), "torchvision.lraspp_mobilenet_v3_large"),
    ],
)
def test_multiplications_at_512(model: Any, name: str, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = model()
    assert measure(network, (512, 512), 3).gmacs == pytest.approx(goldens["gmacs_512"][name], abs=5e-4)


def test_counting_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost = measure(model, (5, 7), 2)
    assert (cost.parameters, cost.gmacs) == (2 * 4 * 9 + 4 + 8, pytest.approx(3 * 5 * 4 * 2 * 9 / 1e9))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True]
    assert str(cost) == "0.00 M parameters   0.00 GMACs at 5x7"


def test_a_large_network_that_looks_at_values_is_still_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.models.summary.SMALL", 0)

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if float(image.sum()) > 0 else -image

    cost = measure(Looks(), (4, 4), 3)
    assert cost.gmacs is None
    assert "no GMACs:" in str(cost)
    assert cost.problem


@pytest.mark.parametrize("error", [NotImplementedError(), TypeError("no values here"), ValueError("\nlate")])
def test_whatever_a_network_says_of_shapes_it_is_described(error: Exception) -> None:
    class Refuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise error

    cost = measure(Refuses(), (4, 4), 3)
    assert (cost.parameters, cost.gmacs) == (3, None)
    assert str(cost).startswith("0.00 M parameters   no GMACs: ")


def test_a_network_costs_the_same_whether_it_is_run_or_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(compose(["model=deeplabv3plus", "model.backbone=mobilenet_v2"]))
    monkeypatch.setattr("segtrain.models.summary.SMALL", 1e15)
    run = measure(model, (65, 97), 3)
    monkeypatch.setattr("segtrain.models.summary.SMALL", 0)
    traced = measure(model, (65, 97), 3)
    assert run == traced
    assert run.gmacs is not None

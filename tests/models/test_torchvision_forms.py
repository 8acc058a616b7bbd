"""Networks in torchvision's form: its keys, its logits, its parameter totals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from segtrain.models.deeplab import DeepLabV3
from segtrain.models.fcn import FCNTorchvision
from segtrain.models.lraspp import LRASPP

RATES = [12, 24, 36]
OURS: dict[str, Callable[..., nn.Module]] = {
    "fcn_resnet50": lambda **k: FCNTorchvision(backbone="resnet50", **k),
    "fcn_resnet101": lambda **k: FCNTorchvision(backbone="resnet101", **k),
    "deeplabv3_resnet50": lambda **k: DeepLabV3(backbone="resnet50", **k),
    "deeplabv3_resnet101": lambda **k: DeepLabV3(backbone="resnet101", **k),
    "deeplabv3_mobilenet_v3_large": lambda **k: DeepLabV3(backbone="mobilenet_v3_large", atrous_rates=RATES, **k),
    "lraspp_mobilenet_v3_large": lambda **k: LRASPP(**k),
}
DEEP = [name for name in OURS if not name.startswith("lraspp")]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", OURS)
def test_torchvisions_state_dict_gives_torchvisions_logits(name: str) -> None:
    torch.manual_seed(1)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **aux)
    ours = OURS[name](num_classes=5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.eval()
    ours.eval().training = True  # the flag of the network alone: aux logits with fixed batch statistics
    image = torch.randn(1, 3, 70, 53)
    with torch.inference_mode():
        want, got = theirs(image), ours(image)
    assert list(want) == list(got) == (["out", "aux"] if aux else ["out"])
    for head in want:
        assert (got[head] - want[head]).abs().max() <= 1e-6 * want[head].abs().max()


@pytest.mark.parametrize("name", DEEP)
def test_totals_with_and_without_aux(name: str, goldens: dict[str, Any]) -> None:
    totals = goldens["parameters"]
    with torch.device("meta"):
        assert count(OURS[name](num_classes=21)) == totals[f"{name}+aux"]
        if name in totals:
            assert count(OURS[name](num_classes=21, aux=False)) == totals[name]


def test_lraspp_total(goldens: dict[str, Any]) -> None:
    assert count(LRASPP(num_classes=21)) == goldens["parameters"]["lraspp_mobilenet_v3_large"]


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_recorded_logits_with_weights_drawn_by_key(
    name: str, goldens: dict[str, Any], wave: Any, fill_by_key: Any, check_logits: Any, key_digest: Any
) -> None:
    golden = goldens["oracles"][name]
    model = OURS[name](num_classes=21).double()
    assert len(model.state_dict()) == golden["n_keys"]
    assert key_digest(model) == golden["sha256_sorted_key_shape_lines"]
    fill_by_key(model)
    model.eval().training = True
    with torch.inference_mode():
        logits = model(wave(3, 97, 129))
    for head, value in logits.items():
        check_logits(value, golden[f"logits_{head}"])


def test_deeplab_output_stride_follows_the_backbone_unless_given() -> None:
    image = torch.zeros(1, 3, 64, 64)
    for options, stride in [
        ({"backbone": "resnet18"}, 8),
        ({"backbone": "mobilenet_v3_large"}, 16),
        ({"backbone": "mobilenet_v3_large", "output_stride": 8}, 8),
        ({"backbone": "resnet18", "output_stride": 32}, 32),
    ]:
        model = DeepLabV3(num_classes=2, **options).eval()  # type: ignore[arg-type]
        assert model.logits(image)["out"].shape[-1] == 64 // stride

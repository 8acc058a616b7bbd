"""VGG-16 as a backbone: torchvision's features at full stride, a finer grid where asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from segtrain.models.backbones.vgg import VGG16


def theirs(batch_norm: bool) -> nn.Sequential:
    """torchvision's `features`, without the 123 M numbers of its classifier."""
    torch.manual_seed(0)
    cfg = torchvision.models.vgg.cfgs["D"]
    features = torchvision.models.vgg.make_layers(cfg, batch_norm=batch_norm).eval()
    for module in features:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return features


@pytest.mark.parametrize(("name", "batch_norm"), [("vgg16", False), ("vgg16_bn", True)])
def test_keys_shapes_and_total_are_torchvisions(name: str, batch_norm: bool, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        want = torchvision.models.get_model(name, weights=None).features.state_dict()
        model = VGG16(batch_norm=batch_norm)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in want.items()}
    total = goldens["parameters"][f"timm.{name}(features,os32)"]
    assert sum(p.numel() for p in model.parameters()) == total
    assert model.name == name


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (67, 45)])
def test_features_are_torchvisions(batch_norm: bool, size: tuple[int, int]) -> None:
    reference = theirs(batch_norm)
    model = VGG16(batch_norm=batch_norm).eval()
    model.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, *size)
    want: list[Tensor] = []
    for layer in reference:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _module, _args, out: want.append(out))
    with torch.inference_mode():
        reference(image)
        got = model(image)
    assert len(want) == 5
    assert all(torch.equal(a, b) for a, b in zip(got, want[1:], strict=True))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_channels_and_strides_are_what_it_says(output_stride: int, batch_norm: bool) -> None:
    with torch.device("meta"):
        model = VGG16(output_stride=output_stride, batch_norm=batch_norm)  # type: ignore[arg-type]
        features = model(torch.empty(1, 3, 64, 96))
    assert [f.shape[1] for f in features] == model.out_channels == [128, 256, 512, 512]
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [(s, s) for s in model.strides]
    assert model.strides == [4, 8, min(16, output_stride), output_stride]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_rounding_up_takes_any_size(output_stride: int) -> None:
    with torch.device("meta"):
        model = VGG16(output_stride=output_stride, ceil_mode=True)  # type: ignore[arg-type]
        for height in range(1, 67):
            features = model(torch.empty(1, 3, height, 67 - height))
            assert [f.shape[2:] for f in features] == [(-(-height // s), -(-(67 - height) // s)) for s in model.strides]


@pytest.mark.parametrize(
    ("output_stride", "dilations", "pools"),
    [
        (32, [1] * 13, [(2, 2)] * 5),
        (16, [1] * 13, [(2, 2)] * 4 + [(3, 1)]),
        (8, [1] * 10 + [2] * 3, [(2, 2)] * 3 + [(3, 1)] * 2),
    ],
)
def test_dilation_is_deeplabs(output_stride: int, dilations: list[int], pools: list[tuple[int, int]]) -> None:
    with torch.device("meta"):
        layers = list(VGG16(output_stride=output_stride))  # type: ignore[arg-type]
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convs] == [m.padding[0] for m in convs] == dilations
    assert [(m.kernel_size, m.stride) for m in layers if isinstance(m, nn.MaxPool2d)] == pools


def test_same_weights_at_every_stride() -> None:
    with torch.device("meta"):
        keys = [set(VGG16(output_stride=stride).state_dict()) for stride in (8, 16, 32)]  # type: ignore[arg-type]
    assert keys[0] == keys[1] == keys[2]


def test_signal_keeps_its_scale_through_the_depth() -> None:
    torch.manual_seed(0)
    model = VGG16(in_channels=5).eval()
    with torch.inference_mode():
        features = model(torch.randn(1, 5, 64, 64))
    assert all(0.1 < f.std() < 10 for f in features)


def test_first_padding_adds_a_border() -> None:
    with torch.device("meta"):
        features = VGG16(first_padding=100, ceil_mode=True)(torch.empty(1, 3, 500, 500))
    assert [f.shape[-1] for f in features] == [175, 88, 44, 22]

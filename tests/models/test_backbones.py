"""Backbones against torchvision's classification networks and against themselves at another stride."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from segtrain.errors import ConfigError
from segtrain.models.backbones.build import BACKBONES, build_backbone
from segtrain.models.backbones.resnet import ResNetVariant

SMALL = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "vgg16", "vgg16_bn", "xception65")


def twin(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """A backbone of 32 and one with `options`, same weights, eval mode, float64."""
    plain, other = build_backbone(name), build_backbone(name, **options)  # type: ignore[arg-type]
    other.load_state_dict(plain.state_dict())
    return plain.double().eval(), other.double().eval()


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "xception65"])
def test_weights_are_torchvisions_without_the_head(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
        ours = build_backbone(name).state_dict()
    if name.startswith("resnet"):
        want = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    else:
        want = {k: v.shape for k, v in theirs.features.state_dict().items()}
    assert {k: v.shape for k, v in ours.items()} == want


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@torch.inference_mode()
def test_channels_and_strides_are_what_it_says(name: str, output_stride: int) -> None:
    backbone = build_backbone(name, output_stride).eval()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert [f.shape[1] for f in features] == backbone.out_channels
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [(s, s) for s in backbone.strides]
    assert backbone.strides[-1] == output_stride
    assert backbone.name == name
    odd = backbone(torch.randn(1, 3, 61, 35))
    assert [f.shape[2:] for f in odd] == [(-(-61 // s), -(-35 // s)) for s in backbone.strides]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("output_stride", [8, 16])
@torch.inference_mode()
def test_dilated_features_contain_the_strided_ones(name: str, output_stride: int) -> None:
    # The a trous property: dilation computes at every pixel what striding computes at every second or fourth.
    strided, dilated = twin(name, output_stride=output_stride)
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    step = 32 // output_stride
    want, got = strided(image)[-1], dilated(image)[-1]
    assert torch.allclose(got[..., ::step, ::step], want, rtol=1e-9, atol=1e-12)
    assert got.std() > 0


def dilations(layers: nn.Module, kernel: int = 3) -> list[int]:
    convs = [m for m in layers.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] >= kernel]
    return [conv.dilation[0] for conv in convs]


def test_resnet_dilation_is_torchvisions() -> None:
    # The units of layer3 and layer4 at output stride 8: 1, 2, 2... and 2, 4, 4...
    ours = build_backbone("resnet50", 8)
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    assert dilations(ours.layer3) == [1, 2, 2, 2, 2, 2]
    assert dilations(ours.layer4) == [2, 4, 4]
    for got, want in zip(ours.modules(), list(theirs.modules())[:-2], strict=True):
        if isinstance(want, nn.Conv2d):
            assert (got.stride, got.dilation, got.padding) == (want.stride, want.dilation, want.padding)


def test_mobilenet_v3_dilation_is_torchvisions() -> None:
    theirs = torchvision.models.mobilenet_v3_large(weights=None, dilated=True).features
    for got, want in zip(build_backbone("mobilenet_v3_large", 16).modules(), theirs.modules(), strict=True):
        if isinstance(want, nn.Conv2d):
            assert (got.stride, got.dilation, got.padding) == (want.stride, want.dilation, want.padding)


@pytest.mark.parametrize(
    ("output_stride", "grid", "layer3", "layer4"),
    [(16, [1, 2, 4], 1, [2, 4, 8]), (8, [1, 2, 4], 2, [4, 8, 16]), (8, [1, 1, 1], 2, [4, 4, 4])],
)
def test_multi_grid_is_the_authors_scheme(output_stride: int, grid: list[int], layer3: int, layer4: list[int]) -> None:
    backbone = build_backbone("resnet50", output_stride, resnet=ResNetVariant(multi_grid=grid))  # type: ignore[arg-type]
    assert dilations(backbone.layer3) == [layer3] * 6
    assert dilations(backbone.layer4) == layer4
    assert backbone.eval()(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 64 // output_stride


@torch.inference_mode()
def test_expansion_is_what_the_depthwise_convolution_puts_out() -> None:
    block, expansion = twin("mobilenet_v2", low_level="expansion")
    seen: list[torch.Tensor] = []
    block[3].conv[1].register_forward_hook(lambda _module, _args, out: seen.append(out))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    want, got = block(image), expansion(image)
    assert got[0].shape == (1, 144, 16, 16)
    assert torch.equal(got[0], seen[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))
    assert expansion.out_channels == [144, *block.out_channels[1:]]


@pytest.mark.parametrize("name", SMALL)
@torch.inference_mode()
def test_other_channel_counts(name: str) -> None:
    features = build_backbone(name, in_channels=5).eval()(torch.randn(1, 5, 32, 32))
    assert features[-1].shape[-2:] == (1, 1)


@torch.inference_mode()
def test_unit_is_what_the_second_unit_adds_to_its_input() -> None:
    block, unit = twin("resnet50", low_level="unit")
    seen: list[torch.Tensor] = []
    block.layer1[1].bn3.register_forward_hook(lambda _module, _args, out: seen.append(out.clone()))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    want, got = block(image), unit(image)
    assert torch.equal(got[0], seen[0])
    assert got[0].min() < 0  # no ReLU yet
    assert all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))
    assert unit.out_channels == block.out_channels


@torch.inference_mode()
def test_mobilenet_without_its_last_convolution() -> None:
    whole = build_backbone("mobilenet_v2").eval()
    cut = build_backbone("mobilenet_v2", last_channels=320).eval()
    cut.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("18.")})
    image = torch.randn(1, 3, 64, 64)
    assert cut.out_channels == [24, 32, 96, 320]
    assert torch.equal(whole[18](cut(image)[-1]), whole(image)[-1])


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("resnet5O")
    assert "there is no backbone 'resnet5O'" in str(caught.value)
    assert "did you mean model.backbone=resnet50?" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        build_backbone("vit")
    assert "one of resnet18, resnet34" in str(caught.value)


def test_arguments_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="low_level has no meaning for the backbone resnet18"):
        build_backbone("resnet18", low_level="expansion")
    with pytest.raises(ConfigError, match="low_level has no meaning for the backbone mobilenet_v2"):
        build_backbone("mobilenet_v2", low_level="unit")
    with pytest.raises(ConfigError, match="low_level has no meaning for the backbone vgg16"):
        build_backbone("vgg16", low_level="expansion")
    with pytest.raises(ConfigError, match="last_channels has no meaning for the backbone resnet50"):
        build_backbone("resnet50", last_channels=320)
    with pytest.raises(ConfigError, match="multi_grid has no meaning for the backbone mobilenet_v2"):
        build_backbone("mobilenet_v2", resnet=ResNetVariant(multi_grid=[1, 2, 4]))
    with pytest.raises(ConfigError, match="3 factors in multi_grid, 2 units in layer4 of resnet18"):
        build_backbone("resnet18", 16, resnet=ResNetVariant(multi_grid=[1, 2, 4]))

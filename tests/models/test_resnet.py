"""The ResNets of the segmentation papers against torchvision's parts and against recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

from segtrain.errors import ConfigError
from segtrain.models.backbones.build import build_backbone
from segtrain.models.backbones.resnet import ResNet, ResNetVariant

AUTHORS = ResNetVariant(dilation="authors")
MULTI_GRID = ResNetVariant(multi_grid=[1, 2, 4])
SLIM = ResNetVariant(multi_grid=[1, 2, 4], stride_position="last")
VARIANTS = {
    "torchvision": ResNetVariant(),
    "pspnet": ResNetVariant(stem="deep", dilation="authors"),
    "deeplabv2": ResNetVariant(dilation="authors", stride_in="1x1"),
    "deeplabv3": MULTI_GRID,
    "slim": SLIM,
}


def build(variant: ResNetVariant, output_stride: Any = 32, name: str = "resnet50") -> ResNet:
    backbone = build_backbone(name, output_stride, resnet=variant)
    assert isinstance(backbone, ResNet)
    return backbone


def rates(stage: nn.Module) -> list[int]:
    return [conv.dilation[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] == 3]


@pytest.mark.parametrize(
    ("scheme", "variant", "output_stride"),
    [
        ("torchvision_os8", ResNetVariant(), 8),
        ("caffe_pspnet_deeplabv2_os8", AUTHORS, 8),
        ("caffe_pspnet_deeplabv2_os8", ResNetVariant(dilation="authors", stride_in="1x1"), 8),
        ("tf_v3_os16_mg124", MULTI_GRID, 16),
        ("tf_v3_os16_mg124", SLIM, 16),
        ("tf_v3_os8_mg124", MULTI_GRID, 8),
        ("tf_v3_os8_mg124", SLIM, 8),
    ],
)
def test_dilation_of_each_scheme(
    scheme: str, variant: ResNetVariant, output_stride: int, goldens: dict[str, Any]
) -> None:
    with torch.device("meta"):
        backbone = build(variant, output_stride)
    for layer, (first, second, later) in goldens["ops"]["dilation_table_conv2"][scheme].items():
        stage = getattr(backbone, layer)
        assert rates(stage) == [first, second, *[later] * (len(stage) - 2)]
    assert rates(backbone.layer1) == [1, 1, 1]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_strides_and_channels_are_what_it_says(name: str, variant: ResNetVariant, output_stride: int) -> None:
    if name == "resnet18":
        grid = None if variant.multi_grid is None else [1, 2]
        variant = ResNetVariant(variant.stem, variant.dilation, grid, stride_position=variant.stride_position)
    with torch.device("meta"):
        backbone = build(variant, output_stride, name)
        features = backbone(torch.zeros(2, 3, 64, 96))
    assert backbone.strides == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [(s, s) for s in backbone.strides]
    assert [f.shape[1] for f in features] == backbone.out_channels


def test_all_but_the_stem_leave_the_weights_alone() -> None:
    with torch.device("meta"):
        shapes = {name: {k: v.shape for k, v in build(v).state_dict().items()} for name, v in VARIANTS.items()}
    plain, deep = shapes["torchvision"], shapes.pop("pspnet")
    assert all(other == plain for other in shapes.values())
    stem = {"conv1": (64, 3, 3, 3), "conv2": (64, 64, 3, 3), "conv3": (128, 64, 3, 3)}
    assert {name: tuple(deep[f"{name}.weight"]) for name in stem} == stem
    assert tuple(deep["layer1.0.conv1.weight"]) == (64, 128, 1, 1)
    differing = {key.split(".")[0] for key in deep if deep[key] != plain.get(key)}
    assert differing == {"conv1", "conv2", "bn2", "conv3", "bn3", "layer1"}
    assert {key for key in deep if deep[key] != plain.get(key) and key.startswith("layer1")} == {
        "layer1.0.conv1.weight",
        "layer1.0.downsample.0.weight",
    }


@torch.inference_mode()
def test_deep_stem_recomputed() -> None:
    backbone = build(ResNetVariant(stem="deep"), name="resnet18").double().eval()
    image = torch.randn(1, 3, 45, 38, dtype=torch.float64)
    state = backbone.state_dict()
    want = image
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        want = F.conv2d(want, state[f"conv{number}.weight"], stride=stride, padding=1)
        want = F.batch_norm(want, *(state[f"bn{number}.{key}"] for key in ("running_mean", "running_var"))).relu()
    seen: list[Tensor] = []
    backbone.layer1.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    backbone(image)
    assert torch.allclose(seen[0], F.max_pool2d(want, 3, 2, 1), rtol=0, atol=1e-12)


def slim_blocks(image: Tensor, state: dict[str, Tensor], output_stride: int, grid: list[int]) -> Tensor:
    """Blocks 1 to 4 by the rule of the authors' `stack_blocks_dense`: the last unit of blocks 1 to 3 has the stride."""
    current, rate = 4, 1

    def norm(name: str, features: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(features, *(state[f"{name}.{key}"] for key in keys))

    for block, units in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for unit in range(units):
            name = f"layer{block}.{unit}"
            wanted = 2 if unit == units - 1 and block < 4 else 1
            stride, spread, lost = (1, rate, wanted) if current == output_stride else (wanted, 1, 1)
            spread *= grid[unit] if block == 4 else 1
            branch = norm(f"{name}.bn1", F.conv2d(image, state[f"{name}.conv1.weight"])).relu()
            branch = F.conv2d(branch, state[f"{name}.conv2.weight"], stride=stride, padding=spread, dilation=spread)
            branch = norm(f"{name}.bn2", branch).relu()
            branch = norm(f"{name}.bn3", F.conv2d(branch, state[f"{name}.conv3.weight"]))
            if f"{name}.downsample.0.weight" in state:
                shortcut = F.conv2d(image, state[f"{name}.downsample.0.weight"], stride=stride)
                shortcut = norm(f"{name}.downsample.1", shortcut)
            else:
                shortcut = F.max_pool2d(image, 1, stride)
            image = (branch + shortcut).relu()
            current, rate = current * stride, rate * lost
    return image


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@torch.inference_mode()
def test_stride_in_the_last_unit_is_the_authors_rule(output_stride: int) -> None:
    torch.manual_seed(0)
    backbone = build(SLIM, output_stride).double().eval()
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    stem = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(image))))
    want = slim_blocks(stem, backbone.state_dict(), output_stride, [1, 2, 4])
    got = backbone(image)
    assert torch.allclose(got[-1], want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
    # The first feature is what the strided unit of layer1 reads: two units, on the stem's own grid.
    assert torch.allclose(got[0], backbone.layer1[1](backbone.layer1[0](stem)))


@torch.inference_mode()
def test_stride_in_the_1x1_is_elsewhere_but_as_dense_when_dilated() -> None:
    variant = ResNetVariant(stride_in="1x1", dilation="authors")
    strided, dilated = build(variant).double().eval(), build(variant, 8).double().eval()
    usual = build(ResNetVariant()).double().eval()
    for other in (dilated, usual):
        other.load_state_dict(strided.state_dict())
    assert [strided.layer2[0].conv1.stride, strided.layer2[0].conv2.stride] == [(2, 2), (1, 1)]
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    want, got = strided(image)[-1], dilated(image)[-1]
    # Spreading the kernel after the lost stride is exact: every fourth pixel is what the strided network computes.
    assert torch.allclose(got[..., ::4, ::4], want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
    assert not torch.allclose(usual(image)[-1], want, rtol=1e-2)


@torch.inference_mode()
def test_authors_dilation_differs_from_torchvisions_in_two_units_only() -> None:
    ours = build(AUTHORS, 8).double().eval()
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).double().eval()
    theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)

    def deepest() -> Tensor:
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        return theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(features))))

    want = ours(image)[-1]
    assert not torch.allclose(deepest(), want, rtol=1e-2)
    for unit, rate in ((theirs.layer3[0], 2), (theirs.layer4[0], 4)):
        unit.conv2.dilation = unit.conv2.padding = (rate, rate)
    assert torch.allclose(deepest(), want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize(("ceil_pool", "side"), [(False, 16), (True, 17)])
def test_ceil_pooling(ceil_pool: bool, side: int) -> None:
    with torch.device("meta"):
        features = build(ResNetVariant(ceil_pool=ceil_pool), name="resnet18")(torch.zeros(2, 3, 64, 65))
    assert features[0].shape[2:] == (side, 17)  # 64 -> 32 -> 16 or 17; 65 -> 33 -> 17


@pytest.mark.parametrize(
    ("variant", "scheme"),
    [
        (ResNetVariant(), "torchvision"),
        (ResNetVariant(stem="deep", ceil_pool=True), "torchvision"),
        (AUTHORS, "authors"),
        (MULTI_GRID, "authors, multi-grid 1-2-4"),
        (SLIM, "authors, multi-grid 1-2-4, stride last"),
        (ResNetVariant(stride_position="last"), "authors, stride last"),
        (ResNetVariant(dilation="authors", stride_in="1x1"), "authors, stride in 1x1"),
    ],
)
def test_the_scheme_is_recorded(variant: ResNetVariant, scheme: str) -> None:
    with torch.device("meta"):
        assert build(variant).scheme == scheme


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_small_resnets_have_no_1x1_for_the_stride(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ResNetVariant(stride_in="1x1"), name=name)
    assert f"the units of {name} have no 1x1 convolution for the stride" in str(caught.value)
    assert "resnet50, resnet101, resnet152" in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "key"),
    [
        (ResNetVariant(stem="deep"), "stem"),
        (AUTHORS, "dilation"),
        (MULTI_GRID, "multi_grid"),
        (ResNetVariant(stride_position="last"), "stride_position"),
        (ResNetVariant(ceil_pool=True), "ceil_pool"),
    ],
)
def test_other_backbones_refuse_what_they_cannot_follow(variant: ResNetVariant, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} has no meaning for the backbone mobilenet_v2"):
        build_backbone("mobilenet_v2", resnet=variant)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_gradients_reach_every_weight(variant: ResNetVariant) -> None:
    backbone = build(variant, 16)
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 33, 33))).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

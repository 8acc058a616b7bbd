"""DeepLab v2 against recomputation from torchvision's parts, hand-counted totals and recorded fusion of scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet101, vgg16

from segtrain.errors import ConfigError
from segtrain.models.deeplabv2 import DeepLabV2, VGGBranches
from segtrain.models.multiscale import largest, rescale

RATES = (6, 12, 18, 24)


@pytest.fixture(scope="module")
def small() -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(num_classes=3, backbone="resnet50", msc=True)


@pytest.mark.parametrize(
    ("backbone", "golden"), [("vgg16", "deeplab_v2_aspp_vgg16_21"), ("resnet101", "deeplab_v2_resnet101_21")]
)
def test_totals(backbone: Any, golden: str, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV2(num_classes=21, backbone=backbone)
        assert model.logits(torch.zeros(1, 3, 321, 321))["out"].shape == (1, 21, 41, 41)
    assert sum(p.numel() for p in model.parameters()) == goldens["parameters"][golden]


@pytest.mark.parametrize("size", [(65, 81), (64, 94)])
@torch.inference_mode()
def test_resnet101_recomputed_from_torchvisions_parts(size: tuple[int, int], fill_by_key: Any) -> None:
    ours = DeepLabV2(num_classes=5).double().eval()
    fill_by_key(ours)
    parts = resnet101(weights=None).double().eval()
    backbone = {k.removeprefix("backbone."): v for k, v in ours.state_dict().items() if k.startswith("backbone.")}
    missing = parts.load_state_dict(backbone, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    parts.maxpool.ceil_mode = True
    for stage, stride, rate in ((parts.layer2, 2, 1), (parts.layer3, 1, 2), (parts.layer4, 1, 4)):
        stage[0].conv1.stride = stage[0].downsample[0].stride = (stride, stride)
        for unit in stage:
            unit.conv2.stride = (1, 1)
            unit.conv2.dilation = unit.conv2.padding = (rate, rate)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    features = parts.maxpool(parts.relu(parts.bn1(parts.conv1(image))))
    features = parts.layer4(parts.layer3(parts.layer2(parts.layer1(features))))
    state = ours.state_dict()
    want = sum(
        F.conv2d(features, state[f"classifier.{i}.weight"], state[f"classifier.{i}.bias"], padding=r, dilation=r)
        for i, r in enumerate(RATES)
    )
    got = ours.logits(image)["out"]
    assert torch.allclose(got, want, rtol=0, atol=1e-9 * want.abs().max().item())
    # Even sizes: 64 -> 32 -> 17 by the pooling that rounds up -> 9; 94 -> 47 -> 24 -> 12.
    assert got.shape == {(65, 81): (1, 5, 9, 11), (64, 94): (1, 5, 9, 12)}[size]


@torch.inference_mode()
def test_vgg16_recomputed_from_torchvisions_parts(fill_by_key: Any) -> None:
    ours = DeepLabV2(num_classes=5, backbone="vgg16").double().eval()
    fill_by_key(ours)
    state = ours.state_dict()
    image = torch.randn(1, 3, 65, 82, dtype=torch.float64)
    with torch.device("meta"):
        layers = vgg16(weights=None).features
    want, pool = image, 0
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            rate = 2 if pool == 4 else 1
            weight, bias = (state[f"backbone.features.{index}.{kind}"] for kind in ("weight", "bias"))
            want = F.conv2d(want, weight, bias, padding=rate, dilation=rate).relu()
        elif isinstance(layer, nn.MaxPool2d):
            pool += 1
            want = F.max_pool2d(want, 3, 2 if pool < 4 else 1, padding=1, ceil_mode=True)
    total = torch.zeros(())
    for i, rate in enumerate(RATES):
        fc6, fc7, fc8 = (
            [state[f"{name}.{i}.{kind}"] for kind in ("weight", "bias")]
            for name in ("backbone.fc6", "backbone.fc7", "classifier")
        )
        hidden = F.conv2d(F.conv2d(want, *fc6, padding=rate, dilation=rate).relu(), *fc7).relu()
        total = total + F.conv2d(hidden, *fc8)
    got = ours.logits(image)["out"]
    assert torch.allclose(got, total, rtol=0, atol=1e-9 * total.abs().max().item())


def test_last_layers_start_small_and_are_all_that_is_outside_the_backbone() -> None:
    for backbone in ("resnet50", "vgg16"):
        model = DeepLabV2(num_classes=21, backbone=backbone)  # type: ignore[arg-type]
        outside = {key.rpartition(".")[0] for key in model.state_dict() if not key.startswith("backbone.")}
        assert outside == set(model.class_layers) == {f"classifier.{i}" for i in range(4)}
        for conv in model.classifier:
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert conv.bias.count_nonzero() == 0


def test_dropout_is_in_every_branch_of_vgg16_only() -> None:
    torch.manual_seed(0)
    model = DeepLabV2(num_classes=3, backbone="vgg16").train()
    assert isinstance(model.backbone, VGGBranches)
    dead = [(feature == 0).double().mean().item() for feature in model.backbone(torch.randn(1, 3, 65, 65))]
    assert all(share > 0.7 for share in dead)  # half by ReLU, half of the rest by dropout
    with pytest.raises(ConfigError) as caught:
        DeepLabV2(num_classes=3, backbone="resnet101", dropout=0.1)
    assert "dropout has no meaning for the backbone resnet101" in str(caught.value)
    assert "model.dropout=null" in str(caught.value)


def test_fusion_of_scales_is_the_recorded_one(goldens: dict[str, Any]) -> None:
    golden = goldens["ops"]["msc_max_fusion"]
    scores = [torch.sin(q * torch.arange(2 * n * n)).reshape(1, 2, n, n) for n, q in ((4, 1), (3, 0.7), (2, 0.3))]
    assert torch.allclose(largest(scores)[0], torch.tensor(golden["fused"]), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_scales_recomputed(small: DeepLabV2) -> None:
    model = small.eval()
    image = torch.randn(1, 3, 65, 82)
    first = model.logits(image)["out"]
    want = first
    for scale in (0.5, 0.75):
        smaller = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        assert smaller.shape[-2:] == (int(65 * scale), int(82 * scale))
        smaller = model.logits(smaller)["out"]
        want = torch.maximum(want, F.interpolate(smaller, first.shape[-2:], mode="bilinear", align_corners=False))
    assert list(model.native(image)) == ["out"]
    assert torch.equal(model.native(image)["out"], want)
    assert not torch.equal(want, first)
    whole = F.interpolate(want, (65, 82), mode="bilinear", align_corners=False)
    assert torch.equal(model(image)["out"], whole)


def test_training_puts_out_every_scale(small: DeepLabV2) -> None:
    image = torch.randn(1, 3, 65, 81)
    model = small.train()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()  # as in the recipe, and so that passes can be compared
    native = model.native(image)
    # 65 x 81 -> 33 x 41 -> 17 x 21 -> 9 x 11. At a half, 32 x 40 -> 16 x 20 -> 9 x 11, rounded up -> 5 x 6.
    sizes = {name: tuple(value.shape[2:]) for name, value in native.items()}
    assert sizes == {"out": (9, 11), "scale_100": (9, 11), "scale_50": (5, 6), "scale_75": (7, 8)}
    assert torch.equal(native["scale_100"], model.logits(image)["out"])
    assert torch.equal(native["out"], largest([native[name] for name in ("scale_100", "scale_50", "scale_75")]))
    resized = model(image)
    assert {name: tuple(value.shape) for name, value in resized.items()} == dict.fromkeys(native, (1, 3, 65, 81))
    grads = torch.autograd.grad(native["out"].sum(), model.classifier[0].weight)[0]
    assert grads.isfinite().all()
    assert grads.any()


def test_scales_change_no_key() -> None:
    with torch.device("meta"):
        one, several = (DeepLabV2(num_classes=3, backbone="resnet50", msc=msc) for msc in (False, True))
    assert list(one.state_dict()) == list(several.state_dict())
    assert list(one.train().native(torch.zeros(2, 3, 33, 33, device="meta"))) == ["out"]


@pytest.mark.parametrize(
    ("align_corners", "sides"), [(False, {0.5: 160, 0.75: 240, 1.25: 401}), (True, {0.5: 161, 0.75: 241, 1.25: 401})]
)
def test_scaled_sizes(align_corners: bool, sides: dict[float, int]) -> None:
    row = torch.linspace(-1, 1, 321, dtype=torch.float64).expand(1, 1, 321, 321)
    for scale, side in sides.items():
        scaled = rescale(row, scale, align_corners)
        assert scaled.shape[-2:] == (side, side)
        if align_corners:  # the corners stay, and a line stays a line
            assert torch.allclose(scaled[0, 0, 0], torch.linspace(-1, 1, side, dtype=torch.float64), atol=1e-12)
    assert rescale(row[..., :1, :2], 0.5, align_corners).shape[-2:] in {(1, 1), (1, 2)}


def test_scales_that_agree_are_refused() -> None:
    for scales in ([0.5, 1.0], [0.751, 0.75]):
        with pytest.raises(ConfigError) as caught:
            DeepLabV2(num_classes=3, backbone="resnet50", msc=True, msc_scales=scales)
        assert "two scales are the same to a hundredth" in str(caught.value)
        assert f"model.msc_scales={scales}" in str(caught.value)


def test_every_branch_starts_from_the_same_hidden_layers() -> None:
    with torch.device("meta"):
        model = DeepLabV2(num_classes=3, backbone="vgg16")
        state: dict[str, Tensor] = dict(vgg16(weights=None).state_dict())
    # Each value says where it comes from: fc6 its input's position, fc7 its row. Views, as the real ones are large.
    state["classifier.0.weight"] = torch.arange(25088.0).expand(4096, 25088)
    state["classifier.3.weight"] = torch.arange(4096.0)[:, None].expand(4096, 4096)
    converted = model.from_classifier(state)
    own = {key: value.shape for key, value in model.state_dict().items() if key.startswith("backbone.")}
    assert {key: value.shape for key, value in converted.items()} == own
    for i in range(4):
        fc6, fc7 = converted[f"backbone.fc6.{i}.weight"], converted[f"backbone.fc7.{i}.weight"]
        assert fc6[7, 2].tolist() == [[2 * 49 + 7 * y + x for x in (0, 3, 6)] for y in (0, 3, 6)]
        assert fc7[:3, 5, 0, 0].tolist() == [0, 4, 8]
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    assert set(model.from_classifier(features)) == {key for key in own if key.startswith("backbone.features.")}


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5)])
@torch.inference_mode()
def test_tiny_images_at_several_scales(backbone: Any, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = DeepLabV2(num_classes=3, backbone=backbone, msc=True).eval()
        assert model(torch.zeros(1, 3, *size))["out"].shape == (1, 3, *size)

"""DeepLab's papers: totals by hand arithmetic and logits recorded from independent implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segtrain.models.deeplab import ASPP, DeepLabV3, DeepLabV3Plus


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_v3plus_totals(backbone: str, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV3Plus(num_classes=21, backbone=backbone)  # type: ignore[arg-type]
    assert count(model) == goldens["parameters"][f"deeplab_v3plus_{backbone}_21"]


def test_v3plus_xception_total(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV3Plus(num_classes=21, backbone="xception65")
        plain = DeepLabV3Plus(num_classes=21, backbone="xception65", separable=False)
    assert count(model) == goldens["parameters"]["deeplab_v3plus_xception65_sep_21"]
    assert count(plain) > count(model)
    eps = {"backbone": 1e-3, "head": 1e-5}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == eps["backbone" if name.startswith("backbone.") else "head"], name


def test_v3_as_released_on_mobilenet_total(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV3(
            num_classes=21, backbone="mobilenet_v2", last_channels=320, atrous_rates=[], head_conv=False, aux=False
        ).eval()
        logits = model.logits(torch.zeros(1, 3, 513, 513))["out"]
    assert count(model) == goldens["parameters"]["deeplab_v3_mobilenetv2_tf_21"]
    assert logits.shape == (1, 21, 33, 33)


def test_v3plus_separable_head_total(goldens: dict[str, Any]) -> None:
    # Xception's features have as many channels as a ResNet's, so its published head fits on one.
    total = goldens["parameters"]
    with torch.device("meta"):
        model = DeepLabV3Plus(num_classes=21, backbone="resnet50", separable=True)
    head = total["deeplab_v3plus_xception65_sep_21"] - total["xception65_features"]
    assert count(model) - count(model.backbone) == head


def test_v3_paper_head_total(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV3(num_classes=21, head_conv=False, aux=False)
    assert count(model) == goldens["parameters"]["deeplab_v3_resnet50_21_paper_head"]
    assert model.class_layers[0] == "classifier.1"


def test_v3plus_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    cases = {flag: goldens["originals"][f"deeplab_v3plus_resnet101_os16_ac{flag}"] for flag in (0, 1)}
    # The recorded network spreads the first unit of layer4 too, which torchvision's scheme does not.
    model = DeepLabV3Plus(num_classes=21, backbone="resnet101", multi_grid=[1, 1, 1]).double().eval()
    image = wave(*cases[0]["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == cases[0]["n_filled_modules"]
    for flag, golden in cases.items():
        model.align_corners = bool(flag)
        with torch.inference_mode():
            logits = model.logits(image)["out"]
        assert list(logits.shape[1:]) == golden["logits_shape"]
        check_logits(logits, golden)


def test_v3_multi_grid_recorded_logits(
    goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any
) -> None:
    golden = goldens["originals"]["deeplab_v3_resnet50_os16_mg124"]
    model = DeepLabV3(num_classes=21, output_stride=16, multi_grid=[1, 2, 4], head_conv=False, aux=False)
    image = wave(*golden["input_chw"])
    assert fill_by_order(model.double().eval(), lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        check_logits(model.logits(image)["out"], golden)


def test_v3plus_xception_recorded_logits(
    goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any
) -> None:
    golden = goldens["originals"]["deeplab_v3plus_xception65_os16_ac1"]
    model = DeepLabV3Plus(num_classes=21, backbone="xception65", align_corners=True).double().eval()
    image = wave(*golden["input_chw"])
    assert count(model) == golden["params"]
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        logits = model.logits(image)["out"]
    assert list(logits.shape[1:]) == golden["logits_shape"]
    check_logits(logits, golden)


@pytest.mark.parametrize(
    ("backbone", "options", "channels"),
    [
        ("resnet50", {}, 256),
        ("resnet50", {"low_level": "unit", "stride_position": "last"}, 256),
        ("mobilenet_v2", {}, 24),
        ("mobilenet_v2", {"low_level": "expansion"}, 144),
        ("mobilenet_v3_large", {}, 24),
        ("xception65", {}, 256),
        ("vgg16", {}, 128),
        ("vgg16_bn", {}, 128),
    ],
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_v3plus_decodes_at_stride_4_on_any_backbone(
    backbone: Any, options: Any, channels: int, output_stride: Any
) -> None:
    with torch.device("meta"):
        model = DeepLabV3Plus(num_classes=3, backbone=backbone, output_stride=output_stride, aux=True, **options).eval()
        assert model.low_level[0].in_channels == channels
        for height, width in ((1, 1), (17, 5), (65, 81)):
            image = torch.zeros(1, 3, height, width)
            assert model.logits(image)["out"].shape == (1, 3, -(-height // 4), -(-width // 4))
        assert list(model.train()(torch.zeros(2, 3, 65, 81))) == ["out", "aux"]


def test_v3plus_head_starts_as_the_authors() -> None:
    torch.manual_seed(0)
    model = DeepLabV3Plus(num_classes=21, backbone="resnet18", separable=True)
    separable = model.decoder[0]
    for layer, deviation in ((model.classifier, 0.01), (separable[0], 0.33), (separable[3], 0.06)):
        # A normal cut at two deviations has 0.88 of the deviation.
        assert layer.weight.abs().max() <= 2 * deviation
        assert layer.weight.std().item() == pytest.approx(0.88 * deviation, rel=0.05)
    assert not model.classifier.bias.any()


@pytest.mark.parametrize(
    ("backbone", "low_level"), [("resnet50", "unit"), pytest.param("xception65", "block", marks=pytest.mark.slow)]
)
def test_v3plus_compiles_whole_and_exports_for_any_size(backbone: Any, low_level: Any) -> None:
    model = DeepLabV3Plus(num_classes=3, backbone=backbone, low_level=low_level).eval()
    image = torch.randn(1, 3, 33, 49)
    with torch.inference_mode():
        want = model(image)["out"]
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(image)["out"], want)
    size = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(1, 3, 65, 97),), dynamic_shapes={"image": size}).module()
    with torch.inference_mode():
        assert torch.allclose(exported(image)["out"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_rates_keep_their_reach_at_any_output_stride(output_stride: int, rates: list[int]) -> None:
    for model in (
        DeepLabV3Plus(num_classes=2, backbone="resnet18", output_stride=output_stride),  # type: ignore[arg-type]
        DeepLabV3(num_classes=2, backbone="resnet18", output_stride=output_stride),  # type: ignore[arg-type]
    ):
        aspp = next(module for module in model.modules() if isinstance(module, ASPP))
        assert [branch[0].dilation[0] for branch in list(aspp.convs)[1:-1]] == rates


def test_given_rates_are_taken_as_they_are() -> None:
    model = DeepLabV3(num_classes=2, backbone="resnet18", atrous_rates=[])
    aspp = next(module for module in model.modules() if isinstance(module, ASPP))
    assert len(aspp.convs) == 2  # the 1x1 convolution and the image pool, as released for MobileNetV2


def test_v3plus_decoder_reads_stride_4_detail() -> None:
    model = DeepLabV3Plus(num_classes=2, backbone="mobilenet_v2", low_level="expansion").eval()
    assert model.low_level[0].in_channels == 144
    assert model.decoder[0][0].in_channels == 256 + 48
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert model.logits(image)["out"].shape == (1, 2, 16, 16)
        features = model.backbone(image)
        moved = [features[0].clone(), *features[1:]]
        moved[0][0, :, 8, 8] += 10
        change = (model.decode(moved) - model.decode(features))[0].abs().sum(0)
    assert change[8, 8] > 0
    assert change[:5].sum() == 0  # two 3x3 convolutions reach two rows up, no further
    assert change[:, 11:].sum() == 0

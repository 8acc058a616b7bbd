"""DeepLabV3 in the paper's forms: pyramid and cascade, either output stride, both places of the stride."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from segtrain.errors import ConfigError
from segtrain.models.deeplab import ASPP, Cascade, DeepLabV3

PAPER: dict[str, Any] = {"multi_grid": [1, 2, 4], "head_conv": False, "dropout": 0.1, "aux": False}
CASCADE: dict[str, Any] = {**PAPER, "multi_grid": [1, 2, 1], "head": "cascade"}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def rates(stage: nn.Module) -> list[int]:
    return [conv.dilation[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] == 3]


@pytest.mark.parametrize("position", ["first", "last"])
def test_total_on_resnet101(position: Any, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV3(
            num_classes=21, backbone="resnet101", output_stride=16, stride_position=position, **PAPER
        ).eval()
        assert model.logits(torch.zeros(1, 3, 513, 513))["out"].shape == (1, 21, 33, 33)
    assert count(model) == goldens["parameters"]["deeplab_v3_resnet101_21_paper_head"]
    assert model.torchvision_form is None


@pytest.mark.parametrize("position", ["first", "last"])
def test_trained_at_16_evaluated_at_8(position: Any) -> None:
    trained = DeepLabV3(num_classes=3, output_stride=16, stride_position=position, **PAPER)
    finer = DeepLabV3(num_classes=3, output_stride=8, stride_position=position, **PAPER).eval()
    finer.load_state_dict(trained.state_dict())
    assert rates(trained.backbone.layer3) == [1] * 6
    assert rates(trained.backbone.layer4) == [2, 4, 8]
    assert rates(finer.backbone.layer3) == [2] * 6
    assert rates(finer.backbone.layer4) == [4, 8, 16]
    assert [rates(model.classifier[0].convs) for model in (trained, finer)] == [[6, 12, 18], [12, 24, 36]]
    assert finer.backbone.scheme == "authors, multi-grid 1-2-4" + (", stride last" if position == "last" else "")
    with torch.inference_mode():
        assert finer.logits(torch.randn(1, 3, 65, 49))["out"].shape == (1, 3, 9, 7)


@torch.inference_mode()
def test_features_at_8_contain_those_at_16() -> None:
    # With the stride in the last unit the authors' dilation is exact throughout: the same values on a finer grid.
    coarse, fine = (
        DeepLabV3(num_classes=3, output_stride=stride, stride_position="last", **PAPER).double().eval()  # type: ignore[arg-type]
        for stride in (16, 8)
    )
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    want, got = (model.backbone(image)[-1] for model in (coarse, fine))
    assert torch.allclose(got[..., ::2, ::2], want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize(
    ("output_stride", "block4", "blocks"),
    [(8, [4, 8, 4], (8, 16, 32)), (16, [2, 4, 2], (4, 8, 16)), (32, [1, 2, 1], (2, 4, 8))],
)
def test_cascade_doubles_its_rates(output_stride: Any, block4: list[int], blocks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = DeepLabV3(num_classes=21, output_stride=output_stride, **CASCADE).eval()
        side = -(-129 // output_stride)
        assert model.logits(torch.zeros(1, 3, 129, 129))["out"].shape == (1, 21, side, side)
    assert rates(model.backbone.layer4) == block4
    cascade = model.classifier[0]
    assert [name for name, _ in cascade.named_children()] == ["block5", "block6", "block7"]
    assert [rates(block) for block in cascade] == [[rate, 2 * rate, rate] for rate in blocks]


def test_cascade_total() -> None:
    # A unit: 1x1 from 2048 to 512, 3x3, 1x1 back, each with scale and shift; nine of them, and the classes.
    unit = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 2 * (512 + 512 + 2048)
    with torch.device("meta"):
        model = DeepLabV3(num_classes=21, **CASCADE)
    assert count(model.classifier) == 9 * unit + 2048 * 21 + 21
    assert model.class_layers[0] == "classifier.2"


@torch.inference_mode()
def test_cascade_recomputed_from_torchvisions_units(fill_by_key: Any) -> None:
    model = DeepLabV3(num_classes=4, output_stride=16, **CASCADE).double().eval()
    fill_by_key(model)
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    want = model.backbone(image)[-1]
    for number, rate in ((5, 4), (6, 8), (7, 16)):
        for index, factor in enumerate((1, 2, 1)):
            unit = Bottleneck(2048, 512, dilation=rate * factor).double().eval()
            unit.load_state_dict(getattr(model.classifier[0], f"block{number}")[index].state_dict())
            want = unit(want)
    want = F.conv2d(want, model.classifier[2].weight, model.classifier[2].bias)
    got = model.logits(image)["out"]
    assert torch.allclose(got, want, rtol=0, atol=1e-9 * want.abs().max().item())


def test_cascade_has_the_papers_multi_grid_by_itself() -> None:
    with torch.device("meta"):
        model = DeepLabV3(num_classes=3, output_stride=16, **{**CASCADE, "multi_grid": None})
    assert model.backbone.scheme == "authors, multi-grid 1-2-1"
    assert rates(model.classifier[0].block5) == [4, 8, 4]


def test_cascade_needs_no_second_sample_and_learns() -> None:
    model = DeepLabV3(num_classes=2, output_stride=32, **CASCADE).train()
    logits = model(torch.randn(1, 3, 65, 65))
    logits["out"].square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert isinstance(model.classifier[0], Cascade)


@pytest.mark.parametrize(
    ("options", "found", "fix"),
    [
        ({"backbone": "resnet18"}, "backbone=resnet18 has no meaning in a cascade", "model.backbone=resnet50"),
        ({"backbone": "mobilenet_v2"}, "backbone=mobilenet_v2 has no meaning in a cascade", "model.backbone=resnet50"),
        ({"atrous_rates": [6]}, r"atrous_rates=[6] has no meaning in a cascade", "model.atrous_rates=null"),
        ({"head_conv": True}, "head_conv=true has no meaning in a cascade", "model.head_conv=false"),
        ({"multi_grid": [1, 2]}, "2 factors in multi_grid, 3 units in layer4 of resnet50", "model.multi_grid=null"),
        ({"multi_grid": []}, "0 factors in multi_grid, 3 units in layer4 of resnet50", "model.multi_grid=null"),
    ],
)
def test_what_a_cascade_refuses(options: dict[str, Any], found: str, fix: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        DeepLabV3(num_classes=3, **{**CASCADE, **options})
    assert found in str(caught.value)
    assert fix in str(caught.value)


def test_stride_position_is_for_resnets() -> None:
    with pytest.raises(ConfigError, match="stride_position has no meaning for the backbone mobilenet_v3_large"):
        DeepLabV3(num_classes=3, backbone="mobilenet_v3_large", stride_position="last")


def test_align_corners_reaches_image_pool_and_logits() -> None:
    model = DeepLabV3(num_classes=3, backbone="resnet18", output_stride=16, align_corners=True).eval()
    pyramid = next(module for module in model.modules() if isinstance(module, ASPP))
    assert pyramid.convs[-1].align_corners
    image: Tensor = torch.randn(1, 3, 49, 65)
    with torch.inference_mode():
        want = F.interpolate(model.logits(image)["out"], (49, 65), mode="bilinear", align_corners=True)
        assert torch.equal(model(image)["out"], want)


def test_only_torchvisions_form_takes_its_weights() -> None:
    with torch.device("meta"):
        assert DeepLabV3(num_classes=3).torchvision_form == "deeplabv3_resnet50"
        for options in ({"head_conv": False}, {"multi_grid": [1, 1, 1]}, {"stride_position": "last"}):
            assert DeepLabV3(num_classes=3, **options).torchvision_form is None  # type: ignore[arg-type]

"""PSPNet against recorded logits, hand-counted totals, PyTorch's pooling and the authors' key names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.models.layers import needs_two_samples
from segtrain.models.pretrained import load_weights
from segtrain.models.pspnet import BinPool, PSPNet, PyramidPooling


def small(**options: Any) -> PSPNet:
    return PSPNet(num_classes=3, backbone="resnet18", **options)


@pytest.mark.parametrize(
    ("golden", "options"),
    [
        ("pspnet50_deepstem_21_aux", {}),
        ("pspnet50_deepstem_21_noaux", {"aux": False}),
        ("pspnet50_7x7stem_21_noaux", {"aux": False, "stem": "conv7"}),
        ("pspnet101_deepstem_21_noaux", {"aux": False, "backbone": "resnet101"}),
        ("pspnet101_deepstem_19_aux", {"num_classes": 19, "backbone": "resnet101"}),
    ],
)
def test_totals(golden: str, options: dict[str, Any], goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = PSPNet(**{"num_classes": 21, **options})
    assert sum(p.numel() for p in model.parameters()) == goldens["parameters"][golden]


def test_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"]["pspnet50"]
    model = PSPNet(num_classes=21).double().eval()
    image = wave(*golden["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        logits = model.logits(image)["out"]
    assert list(logits.shape[1:]) == golden["logits_shape"]
    check_logits(logits, golden)


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (6, 12), (13, 60), (60, 7)])
def test_bins_are_adaptive_average_pooling(bins: int, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    want, got = F.adaptive_avg_pool2d(image, bins), BinPool(bins)(image)
    assert torch.allclose(got, want, rtol=0, atol=1e-14)
    weights = torch.randn_like(want)
    wanted, found = (torch.autograd.grad((pooled * weights).sum(), image)[0] for pooled in (want, got))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)


def test_bins_of_a_constant_are_that_constant_in_half_precision() -> None:
    image = torch.full((1, 2, 90, 77), 3.0, dtype=torch.bfloat16)
    assert torch.equal(BinPool(6)(image), torch.full((1, 2, 6, 6), 3.0, dtype=torch.bfloat16))
    assert BinPool(6)(torch.full((1, 1, 90, 90), 1000.0, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize("align_corners", [True, False])
@torch.inference_mode()
def test_pyramid_order_and_resizing(align_corners: bool) -> None:
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, [1, 2, 3, 6], align_corners=align_corners).double().eval()
    image = torch.randn(2, 8, 7, 10, dtype=torch.float64)
    want = [image]
    for bins, level in zip([1, 2, 3, 6], pyramid.features, strict=True):
        pooled = F.batch_norm(
            F.conv2d(F.adaptive_avg_pool2d(image, bins), level[1].weight),
            level[2].running_mean,
            level[2].running_var,
        ).relu()
        want.append(F.interpolate(pooled, (7, 10), mode="bilinear", align_corners=align_corners))
    got = pyramid(image)
    assert got.shape == (2, 16, 7, 10)
    assert torch.allclose(got, torch.cat(want, 1), rtol=0, atol=1e-12)


def test_align_corners_reaches_pyramid_and_logits() -> None:
    image = torch.randn(1, 3, 41, 57)
    aligned, centered = small().eval(), small(align_corners=False).eval()
    centered.load_state_dict(aligned.state_dict())
    with torch.inference_mode():
        native = aligned.logits(image)["out"]
        assert not torch.allclose(native, centered.logits(image)["out"], rtol=1e-3)
        want = F.interpolate(native, (41, 57), mode="bilinear", align_corners=True)
        assert torch.equal(aligned(image)["out"], want)


def test_keys_are_the_authors_under_other_prefixes() -> None:
    with torch.device("meta"):
        ours = set(PSPNet(num_classes=21).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    theirs = [f"layer0.{conv}.weight" for conv in (0, 3, 6)]
    theirs += [f"layer0.{index}.{key}" for index in (1, 4, 7) for key in norm]
    theirs += [f"ppm.features.{level}.1.weight" for level in range(4)]
    theirs += [f"ppm.features.{level}.2.{key}" for level in range(4) for key in norm]
    for head in ("cls", "aux"):
        theirs += [f"{head}.0.weight", f"{head}.4.weight", f"{head}.4.bias", *(f"{head}.1.{key}" for key in norm)]
    stem = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
    names = {"cls": "classifier", "aux": "aux_classifier"}

    def mapped(key: str) -> str:
        first, second, rest = key.split(".", 2)
        return f"backbone.{stem[second]}.{rest}" if first == "layer0" else f"{names.get(first, first)}.{second}.{rest}"

    assert {mapped(key) for key in theirs} == {key for key in ours if not key.startswith("backbone.layer")}


def test_the_deep_stem_has_no_imagenet_weights() -> None:
    with pytest.raises(ConfigError, match="PSPNet has no backbone with ImageNet weights"):
        load_weights(small(), "imagenet")
    assert small(stem="conv7").backbone.name == "resnet18"


def test_dilation_is_the_authors_at_output_stride_8() -> None:
    with torch.device("meta"):
        model = PSPNet(num_classes=21)
        assert model.logits(torch.zeros(2, 3, 473, 473))["out"].shape == (2, 21, 60, 60)
    assert model.backbone.scheme == "authors"
    spread = [
        {m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3}
        for stage in (model.backbone.layer2, model.backbone.layer3, model.backbone.layer4)
    ]
    assert spread == [{1}, {2}, {4}]


def test_both_heads_drop_whole_channels() -> None:
    model = small(dropout=0.5)
    for head in (model.classifier, model.aux_classifier):
        assert [type(layer) for layer in head if "Dropout" in type(layer).__name__] == [nn.Dropout2d]
        dropped = head[3].train()(torch.ones(1, 64, 4, 4)).flatten(2)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(dropped.amin(2), dropped.amax(2))


def test_the_level_of_one_cell_needs_two_samples_in_training() -> None:
    assert needs_two_samples(small())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        small().train()(torch.randn(1, 3, 33, 33))
    coarse = small(bins=[2, 3])
    assert not needs_two_samples(coarse)
    assert coarse.train()(torch.randn(1, 3, 33, 33))["aux"].shape == (1, 3, 33, 33)


@pytest.mark.parametrize(("bins", "widths"), [([1], [512]), ([1, 4], [256, 256]), ([1, 2, 3], [170, 170, 170])])
def test_levels_share_the_channels_evenly(bins: list[int], widths: list[int]) -> None:
    model = small(bins=bins, aux=False)
    assert [level[1].out_channels for level in model.ppm.features] == widths
    assert model.classifier[0].in_channels == 512 + sum(widths)


def test_pooling_is_deterministic_where_pytorchs_is_not_promised() -> None:
    # Adaptive pooling, the reason for BinPool, is not in the network; a pool to one cell is a plain mean.
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in small().modules())


def test_exports_with_free_height_and_width() -> None:
    model = small().eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(1, 3, 65, 49),), dynamic_shapes=({2: auto, 3: auto},))
    image: Tensor = torch.randn(1, 3, 71, 90)
    with torch.no_grad():
        assert torch.allclose(program.module()(image)["out"], model(image)["out"], atol=1e-5)

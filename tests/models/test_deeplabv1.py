"""DeepLab v1: totals, recorded logits, sizes, reach, and VGG-16's thinned weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.models.deeplabv1 import DeepLabV1


def small(**options: Any) -> DeepLabV1:
    torch.manual_seed(0)
    return DeepLabV1(**{"num_classes": 3, "fc_channels": 8, **options})


def test_total(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DeepLabV1(num_classes=21)
    assert sum(p.numel() for p in model.parameters()) == goldens["parameters"]["deeplab_v1_largefov_vgg16_21"]


def test_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"]["deeplab_v1_largefov"]
    model = DeepLabV1(num_classes=21).double().eval()
    image = wave(*golden["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        logits = model.logits(image)["out"]
    assert list(logits.shape[1:]) == golden["logits_shape"]
    check_logits(logits, golden)


@pytest.mark.parametrize(("size", "grid"), [(65, 9), (81, 11), (321, 41), (513, 65), (1, 1), (9, 2), (320, 41)])
def test_sizes_of_8k_plus_1_give_k_plus_1(size: int, grid: int) -> None:
    with torch.device("meta"):
        model = small().eval()
        assert model.logits(torch.empty(1, 3, size, 65))["out"].shape == (1, 3, grid, 9)


def test_every_small_size_works() -> None:
    with torch.device("meta"):
        model = small().eval()
        for height in range(1, 67):
            assert model(torch.empty(1, 3, height, 67 - height))["out"].shape == (1, 3, height, 67 - height)


def test_poolings_and_dilations_are_the_authors() -> None:
    backbone = small().backbone
    pools = [m for m in backbone.features if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2
    convs = [m for m in backbone.features if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convs] == [1] * 10 + [2] * 3
    assert (backbone.fc6.kernel_size, backbone.fc6.dilation, backbone.fc6.padding) == ((3, 3), (12, 12), (12, 12))


def test_mean_counts_the_padding_as_caffe_does() -> None:
    ones = torch.ones(1, 1, 3, 3)
    assert torch.allclose(small().backbone.pool(ones)[0, 0] * 9, torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]))


def test_dilation_sets_how_far_fc6_sees() -> None:
    for dilation in (12, 4):
        fc6 = small(dilation=dilation).backbone.fc6
        grid = torch.zeros(1, 512, 41, 41)
        spot = grid.clone()
        spot[0, :, 20, 20] = 1
        with torch.inference_mode():
            change = (fc6(spot) - fc6(grid))[0].abs().sum(0)
        rows, columns = (sorted(set(axis.tolist())) for axis in change.nonzero().T)
        assert rows == columns == [20 - dilation, 20, 20 + dilation]


def test_resizing_puts_logits_on_every_eighth_pixel() -> None:
    model = small(fc_channels=4).eval()
    image = torch.randn(1, 3, 33, 25)
    with torch.inference_mode():
        native, full = model.logits(image)["out"], model(image)["out"]
    assert native.shape[-2:] == (5, 4)
    assert torch.allclose(full[..., ::8, ::8], native, atol=1e-5)


def test_starts_as_the_authors_last_layer_and_he_before() -> None:
    model = DeepLabV1(num_classes=21, fc_channels=256)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.backbone.fc6.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert model.backbone.fc7.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)


def test_only_the_last_layer_lies_outside_the_backbone() -> None:
    with torch.device("meta"):
        few, many = (small(num_classes=n).state_dict() for n in (2, 5))
    changed = {key for key in few if few[key].shape != many[key].shape}
    assert changed == {"classifier.weight", "classifier.bias"} == {k for k in few if not k.startswith("backbone.")}
    assert DeepLabV1.class_layers == ("classifier",)


def classifier() -> dict[str, torch.Tensor]:
    """torchvision's vgg16 state_dict by keys and shapes; each number of a hidden layer says where it stands."""
    features = {f"features.{key}": value for key, value in small().backbone.features.state_dict().items()}
    rows = torch.arange(4096.0)[:, None]
    return {
        **features,
        "classifier.0.weight": rows + torch.linspace(0, 0.5, 25088),
        "classifier.0.bias": rows[:, 0],
        "classifier.3.weight": rows * 4096 + torch.arange(4096.0),
        "classifier.3.bias": -rows[:, 0],
        "classifier.6.weight": torch.zeros(1000, 4096),
        "classifier.6.bias": torch.zeros(1000),
    }


def test_vgg_weights_are_thinned_as_in_the_paper() -> None:
    state = classifier()
    with torch.device("meta"):
        model = DeepLabV1(num_classes=21)
    converted = model.from_classifier(state)
    own = model.state_dict()
    assert {key: v.shape for key, v in converted.items()} == {
        key: v.shape for key, v in own.items() if key.startswith("backbone.")
    }
    fc6, fc7 = converted["backbone.fc6.weight"], converted["backbone.fc7.weight"]
    whole = state["classifier.0.weight"].view(4096, 512, 7, 7)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        assert torch.equal(fc6[..., row, column], whole[::4, :, 3 * row, 3 * column])
    assert fc7[2, 3].item() == 8 * 4096 + 12
    assert torch.equal(converted["backbone.fc6.bias"], torch.arange(0.0, 4096, 4))
    assert torch.equal(converted["backbone.fc7.bias"], -torch.arange(0.0, 4096, 4))


def test_features_alone_leave_the_hidden_layers_out() -> None:
    model = small()
    state = {key: value for key, value in classifier().items() if key.startswith("features.")}
    assert model.from_classifier(state).keys() == {k for k in model.state_dict() if k.startswith("backbone.features.")}


def test_channels_that_cannot_be_thinned_are_refused() -> None:
    model = small(fc_channels=10)
    with pytest.raises(ConfigError, match="10 channels cannot be drawn evenly from VGG-16's 4096"):
        model.from_classifier({"classifier.3.bias": torch.zeros(4096)})


def test_every_parameter_learns() -> None:
    model = small(in_channels=1).train()
    logits = model(torch.randn(2, 1, 33, 21))["out"]
    F.cross_entropy(logits, torch.randint(3, (2, 33, 21))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, name


def test_bfloat16() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = small().eval()(torch.randn(1, 3, 17, 5))["out"]
    assert logits.shape == (1, 3, 17, 5)
    assert logits.isfinite().all()


def test_one_export_serves_odd_and_even_sizes() -> None:
    model = small().eval()
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(2, 3, 33, 25),), dynamic_shapes=(free,)).module()
    for size in ((33, 25), (24, 40)):
        image = torch.randn(1, 3, *size)
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-5)


def test_compiles_in_one_piece() -> None:
    model = small().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    image = torch.randn(1, 3, 17, 20)
    with torch.no_grad():
        assert torch.equal(compiled(image)["out"], model(image)["out"])

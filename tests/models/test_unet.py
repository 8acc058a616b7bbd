"""U-Net: totals, recorded logits, and pixels that stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segtrain.models.unet import UNet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("bilinear", [False, True])
def test_totals(bilinear: bool, goldens: dict[str, Any]) -> None:
    totals = goldens["parameters"]
    with torch.device("meta"):
        plain = UNet(num_classes=2, in_channels=1, bilinear=bilinear)
        biased = UNet(num_classes=2, in_channels=1, bilinear=bilinear, bias=True)
        bare = UNet(num_classes=2, in_channels=1, bilinear=bilinear, norm=False)
    assert count(plain) == totals["unet_bn_nobias_1_2"]
    assert count(biased) == totals["unet_bn_convbias_1_2"]
    assert count(bare) == totals["unet_1_2"] == totals["unet_bilinear_conv2x2_1_2"]


def test_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"]["unet_same_bn"]
    model = UNet(num_classes=2, bias=True).double().eval()
    assert count(model) == golden["params"]
    image = wave(*golden["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        check_logits(model.logits(image)["out"], golden)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(77, 61), (78, 63), (79, 62)])
def test_odd_sizes_shift_nothing(bilinear: bool, size: tuple[int, int]) -> None:
    # Far from the cut, a cropped image must give the very logits of the whole one.
    torch.manual_seed(0)
    model = UNet(num_classes=2, base_channels=4, depth=2, bilinear=bilinear).double().eval()
    image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    height, width = size
    with torch.inference_mode():
        whole = model(image)["out"]
        cut = model(image[..., :height, :width])["out"]
    assert cut.shape[-2:] == size
    reach = 40  # how far the cut can be felt: convolutions, poolings and upsamplings of three levels
    near = (..., slice(0, height - reach), slice(0, width - reach))
    assert torch.allclose(cut[near], whole[near], rtol=0, atol=1e-12)
    assert not torch.allclose(cut, whole[..., :height, :width])


def test_without_normalization_no_layer_normalizes_and_every_convolution_has_a_bias() -> None:
    model = UNet(num_classes=2, base_channels=4, norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    # One sample, one pixel at the bottom: nothing asks for the statistics of a batch.
    assert model.train()(torch.randn(1, 3, 8, 8))["out"].shape == (1, 2, 8, 8)


def test_dropout_ends_the_contracting_path() -> None:
    torch.manual_seed(0)
    model = UNet(num_classes=2, base_channels=4, depth=3, dropout=1.0)
    image = torch.randn(2, 3, 16, 16)
    model.train()(image)["out"].sum().backward()
    assert [bool(level[0].weight.grad.any()) for level in model.encoder] == [True, True, True, False]
    other = UNet(num_classes=2, base_channels=4, depth=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(image)["out"], other.eval()(image)["out"])


def test_every_level_doubles_the_channels_and_halves_the_grid() -> None:
    model = UNet(num_classes=2, base_channels=4, depth=3).eval()
    shapes: list[torch.Size] = []
    for level in model.encoder:
        level.register_forward_hook(lambda _module, _args, out: shapes.append(out.shape[1:]))
    model(torch.randn(1, 3, 37, 64))
    assert shapes == [(4, 37, 64), (8, 19, 32), (16, 10, 16), (32, 5, 8)]


def test_weights_start_with_variance_two_over_fan_in() -> None:
    torch.manual_seed(0)
    model = UNet(num_classes=2, base_channels=32, depth=3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            incoming = module.in_channels * (9 if isinstance(module, nn.Conv2d) else 1)
            assert module.weight.std().item() == pytest.approx((2 / incoming) ** 0.5, rel=0.05), name


def test_signal_keeps_its_scale_through_the_depth() -> None:
    torch.manual_seed(0)
    model = UNet(num_classes=2, base_channels=16).train()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64))["out"]
    assert 0.1 < logits.std() < 10


def test_one_export_serves_odd_and_even_sizes() -> None:
    model = UNet(num_classes=2, base_channels=2, depth=2).eval()
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(2, 3, 17, 20),), dynamic_shapes=(free,)).module()
    for size in ((17, 20), (16, 24), (15, 13)):
        image = torch.randn(1, 3, *size)
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-5)

"""The shared layers against plain references."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from segtrain.models.deeplab import ASPP, DeepLabV3, DeepLabV3Plus, ImagePool
from segtrain.models.fcn import FCNTorchvision
from segtrain.models.layers import (
    ConvBNReLU,
    GlobalMeanPool,
    SeparableConvBNReLU,
    freeze_batchnorm,
    needs_two_samples,
    resize_logits,
)
from segtrain.models.lraspp import LRASPP
from segtrain.models.unet import UNet


def test_resize_is_bilinear_on_pixel_centers() -> None:
    logits = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 2)
    assert resize_logits(logits, (1, 4)).flatten().tolist() == [0, 1, 3, 4]
    assert resize_logits(logits, (1, 5), align_corners=True).flatten().tolist() == [0, 1, 2, 3, 4]


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    logits = torch.randn(1, 2, 5, 7)
    assert resize_logits(logits, (5, 7)) is logits
    assert resize_logits(logits, (7, 5)) is not logits


def test_global_mean_pool_is_adaptive_average_pool() -> None:
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    assert torch.allclose(GlobalMeanPool()(image), nn.AdaptiveAvgPool2d(1)(image), rtol=0, atol=1e-15)


def test_image_pool_is_torchvisions() -> None:
    theirs = torchvision.models.segmentation.deeplabv3.ASPPPooling(8, 4).double().eval()
    ours = ImagePool(8, 4).double().eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    assert torch.allclose(ours(image), theirs(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("dilation", [1, 6])
def test_conv_keeps_the_size(kernel_size: int, dilation: int) -> None:
    image = torch.randn(2, 3, 11, 9)
    assert ConvBNReLU(3, 5, kernel_size, dilation)(image).shape == (2, 5, 11, 9)


def test_separable_conv_mixes_channels_only_in_its_second_half() -> None:
    block = SeparableConvBNReLU(6, 4, dilation=2).eval()
    image = torch.zeros(1, 6, 9, 9)
    image[0, 2, 4, 4] = 1
    depthwise = block[0](image)
    assert depthwise[0, [0, 1, 3, 4, 5]].abs().sum() == 0
    assert sorted({(y, x) for y, x in depthwise[0, 2].nonzero().tolist()}) == [
        (y, x) for y in (2, 4, 6) for x in (2, 4, 6)
    ]
    assert block(image).shape == (1, 4, 9, 9)
    assert sum(p.numel() for p in block.parameters()) == 6 * 9 + 2 * 6 + 6 * 4 + 2 * 4


POOLED = {
    "our_aspp": lambda: ASPP(8, [6], dropout=0.1),
    "torchvision_aspp": lambda: torchvision.models.segmentation.deeplabv3.ASPP(8, [6]),
    "nested": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), ConvBNReLU(8, 8, 1)),
}
NOT_POOLED = {
    "larger_bins": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
    "norm_before_pool": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)),
    "squeeze_excite": lambda: torchvision.ops.SqueezeExcitation(8, 2),
}


@pytest.mark.parametrize("layer", POOLED)
def test_a_layer_that_needs_two_samples_fails_with_one(layer: str) -> None:
    module = POOLED[layer]()
    assert needs_two_samples(module)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        module.train()(torch.randn(1, 8, 5, 5))
    module.train()(torch.randn(2, 8, 5, 5))


@pytest.mark.parametrize("layer", NOT_POOLED)
def test_a_layer_that_needs_one_sample_works_with_one(layer: str) -> None:
    module = NOT_POOLED[layer]()
    assert not needs_two_samples(module)
    module.train()(torch.randn(1, 8, 5, 5))


def test_which_networks_need_two_samples() -> None:
    assert needs_two_samples(DeepLabV3(num_classes=2, backbone="resnet18"))
    assert needs_two_samples(DeepLabV3Plus(num_classes=2, backbone="resnet18"))
    for model in (
        UNet(num_classes=2, base_channels=2),
        FCNTorchvision(num_classes=2, backbone="resnet18"),
        LRASPP(num_classes=2),
    ):
        assert not needs_two_samples(model)
        model.train()(torch.randn(1, 3, 64, 64))


def test_frozen_batchnorm_neither_moves_nor_learns() -> None:
    model = DeepLabV3(num_classes=2, backbone="resnet18", output_stride=32).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    assert freeze_batchnorm(model) == len(norms) > 20
    model(torch.randn(1, 3, 64, 64))["out"].sum().backward()  # one sample is enough now
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for m in norms for p in m.parameters())
    assert model.backbone.conv1.weight.grad is not None

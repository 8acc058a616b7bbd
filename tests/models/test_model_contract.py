"""What every network promises, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from segtrain.errors import ConfigError
from segtrain.models.deeplab import DeepLabV3, DeepLabV3Plus
from segtrain.models.deeplabv1 import DeepLabV1
from segtrain.models.deeplabv2 import DeepLabV2
from segtrain.models.fcn import FCN, FCNTorchvision
from segtrain.models.layers import resize_logits
from segtrain.models.lraspp import LRASPP
from segtrain.models.pspnet import PSPNet
from segtrain.models.segmentation import SegmentationModel
from segtrain.models.segnet import SegNet
from segtrain.models.unet import UNet, UNetValid


def scored(model: FCN) -> FCN:
    """Its scores start at zero, so that nothing below them has a gradient yet: gives them weights."""
    for name, layer in model.named_children():
        if name.startswith("score"):
            nn.init.normal_(layer.weight, std=0.1)
    return model


MODELS: dict[str, Callable[..., SegmentationModel]] = {
    "fcn16s": lambda **k: scored(FCN(stride=16, fc_channels=8, **k)),
    "fcn8s_modern": lambda **k: scored(FCN(padding="modern", fc_channels=8, learn_upsampling=True, **k)),
    "fcn_torchvision": lambda **k: FCNTorchvision(backbone="resnet18", **k),
    "unet": lambda **k: UNet(base_channels=4, **k),
    "unet_bilinear": lambda **k: UNet(base_channels=4, depth=3, bilinear=True, **k),
    "unet_valid": lambda **k: UNetValid(base_channels=4, depth=2, **k),
    "segnet": lambda **k: SegNet(**k),
    "pspnet": lambda **k: PSPNet(backbone="resnet18", **k),
    "deeplabv1": lambda **k: DeepLabV1(fc_channels=8, **k),
    "deeplabv2": lambda **k: DeepLabV2(backbone="resnet50", **k),
    "deeplabv2_vgg": lambda **k: DeepLabV2(backbone="vgg16", **k),
    "deeplabv3": lambda **k: DeepLabV3(backbone="resnet18", output_stride=16, **k),
    "deeplabv3_cascade": lambda **k: DeepLabV3(
        backbone="resnet50", output_stride=16, head="cascade", head_conv=False, aux=False, **k
    ),
    "deeplabv3_mobilenet": lambda **k: DeepLabV3(backbone="mobilenet_v3_large", **k),
    "deeplabv3_mobilenet_v2": lambda **k: DeepLabV3(
        backbone="mobilenet_v2", last_channels=320, atrous_rates=[], head_conv=False, aux=False, align_corners=True, **k
    ),
    "deeplabv3plus": lambda **k: DeepLabV3Plus(backbone="resnet18", aux=True, **k),
    "deeplabv3plus_mobilenet": lambda **k: DeepLabV3Plus(
        backbone="mobilenet_v2", separable=True, low_level="expansion", **k
    ),
    "deeplabv3plus_xception": lambda **k: DeepLabV3Plus(backbone="xception65", separable=True, **k),
    "lraspp": lambda **k: LRASPP(**k),
}
STRIDES = {
    "fcn16s": 1,
    "fcn8s_modern": 1,
    "fcn_torchvision": 8,
    "unet": 1,
    "unet_bilinear": 1,
    "segnet": 1,
    "pspnet": 8,
    "deeplabv1": 8,
    "deeplabv2": 8,
    "deeplabv2_vgg": 8,
    "deeplabv3": 16,
    "deeplabv3_cascade": 16,
    "deeplabv3_mobilenet": 16,
    "deeplabv3_mobilenet_v2": 16,
    "deeplabv3plus": 4,
    "deeplabv3plus_mobilenet": 4,
    "deeplabv3plus_xception": 4,
    "lraspp": 8,
}
"""Of the native logits; a valid U-Net has them for some sizes only."""
WITH_AUX = {"fcn_torchvision", "pspnet", "deeplabv3", "deeplabv3_mobilenet", "deeplabv3plus"}


@pytest.fixture(params=MODELS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> SegmentationModel:
    """In evaluation mode; tests that change a network build their own."""
    return MODELS[name](num_classes=3).eval()


def test_forward_is_the_native_logits_at_the_size_of_the_image(name: str, model: SegmentationModel) -> None:
    if name not in STRIDES:
        pytest.skip("its native logits are for some sizes only: tests/models/test_unet_valid.py")
    image = torch.randn(1, 3, 185, 129)
    with torch.inference_mode():
        native = model.logits(image)
        logits = model(image)
    stride = STRIDES[name]
    assert list(native) == list(logits) == ["out"]  # no aux outside training
    assert native["out"].shape == (1, 3, -(-185 // stride), -(-129 // stride))
    assert logits["out"].shape == (1, 3, 185, 129)
    assert torch.equal(logits["out"], resize_logits(native["out"], (185, 129), model.align_corners))


def test_training_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](num_classes=2, in_channels=1).train()
    logits = model(torch.randn(2, 1, 65, 49))
    assert list(logits) == (["out", "aux"] if name in WITH_AUX else ["out"])
    assert all(value.shape == (2, 2, 65, 49) for value in logits.values())
    sum(value.square().mean() for value in logits.values()).backward()
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    idle = [key for key, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias or scale may see a zero gradient by chance of ReLU; a kernel may not.
    assert [key for key, p in learned.items() if p.grad is None] == []
    assert [key for key in idle if key.endswith("weight") and "bn" not in key] == []


def test_class_layers_are_exactly_what_the_class_count_changes(name: str) -> None:
    with torch.device("meta"):
        few, many = (MODELS[name](num_classes=count).state_dict() for count in (2, 5))
        declared = MODELS[name](num_classes=2).class_layers
    changed = {key.rpartition(".")[0] for key in few if few[key].shape != many[key].shape}
    assert changed <= set(declared)
    # What is declared and did not change is an auxiliary head that this network does not have.
    assert all(layer.startswith("aux_classifier") for layer in set(declared) - changed)


def test_state_dict_round_trip_gives_the_same_logits(name: str, model: SegmentationModel) -> None:
    image = torch.randn(1, 3, 33, 47)
    other = MODELS[name](num_classes=3).eval()
    with torch.inference_mode():
        assert not torch.equal(model(image)["out"], other(image)["out"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(image)["out"], other(image)["out"])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5)])
def test_tiny_images_work(model: SegmentationModel, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, *size))["out"]
    assert logits.shape == (1, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("build", [FCNTorchvision, DeepLabV3])
def test_aux_can_be_left_out(build: type[nn.Module]) -> None:
    model = build(num_classes=2, backbone="resnet18", aux=False, output_stride=32).train()
    assert list(model(torch.randn(2, 3, 33, 33))) == ["out"]
    assert not any(key.startswith("aux_classifier") for key in model.state_dict())


def test_a_model_without_logits_says_so() -> None:
    with pytest.raises(NotImplementedError, match="SegmentationModel must compute its logits"):
        SegmentationModel(num_classes=2, in_channels=3)(torch.zeros(1, 3, 2, 2))


def test_logits_that_are_no_dict_are_named() -> None:
    class Bare(SegmentationModel):
        def logits(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return image  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=r"Bare\.logits returns a Tensor"):
        Bare(num_classes=3, in_channels=3)(torch.zeros(1, 3, 4, 4))


def test_mixed_precision_trains_and_agrees_with_full(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](num_classes=3).train()
    image = torch.randn(2, 3, 65, 49)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(image)
    assert all(value.isfinite().all() for value in logits.values())
    sum(value.float().square().mean() for value in logits.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.inference_mode():
        full = model(image)["out"]
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)["out"].float()
    # bfloat16 keeps 8 bits; tens of layers add up to a few percent of the scale.
    assert (full - half).abs().mean() < 0.05 * full.abs().max()


def test_compiles_as_one_graph(name: str, model: SegmentationModel) -> None:
    torch._dynamo.reset()
    # Tracing alone, without the minutes that code generation takes: that is the slow test's.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    image = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        assert torch.allclose(compiled(image)["out"], model(image)["out"], atol=1e-4)


def test_exports_with_the_same_logits(name: str, model: SegmentationModel) -> None:
    image = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        exported = torch.export.export(model, (image,)).module()
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["fcn8s_modern", "unet", "unet_valid", "segnet", "pspnet", "deeplabv1", "deeplabv3plus"]
)
def test_generated_code_gives_the_same_logits(kind: str) -> None:
    torch._dynamo.reset()
    model = MODELS[kind](num_classes=3).eval()
    compiled = torch.compile(model, fullgraph=True)
    image = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        expected = model(image)["out"]
        assert (compiled(image)["out"] - expected).abs().max() < 1e-4 * expected.abs().max()

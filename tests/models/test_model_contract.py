"""What every network promises, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from segtrain.errors import ConfigError
from segtrain.models.deeplab import DeepLabV3, DeepLabV3Plus
from segtrain.models.fcn import FCNTorchvision
from segtrain.models.layers import resize_logits
from segtrain.models.lraspp import LRASPP
from segtrain.models.segmentation import SegmentationModel
from segtrain.models.unet import UNet

MODELS: dict[str, Callable[..., SegmentationModel]] = {
    "unet": lambda **k: UNet(base_channels=4, **k),
    "unet_bilinear": lambda **k: UNet(base_channels=4, depth=3, bilinear=True, **k),
    "fcn": lambda **k: FCNTorchvision(backbone="resnet18", **k),
    "deeplabv3": lambda **k: DeepLabV3(backbone="resnet18", output_stride=16, **k),
    "deeplabv3_mobilenet": lambda **k: DeepLabV3(backbone="mobilenet_v3_large", **k),
    "deeplabv3plus": lambda **k: DeepLabV3Plus(backbone="resnet18", aux=True, **k),
    "deeplabv3plus_mobilenet": lambda **k: DeepLabV3Plus(
        backbone="mobilenet_v2", separable=True, low_level="expansion", **k
    ),
    "lraspp": lambda **k: LRASPP(**k),
}
STRIDES = {
    "unet": 1,
    "unet_bilinear": 1,
    "fcn": 8,
    "deeplabv3": 16,
    "deeplabv3_mobilenet": 16,
    "deeplabv3plus": 4,
    "deeplabv3plus_mobilenet": 4,
    "lraspp": 8,
}
WITH_AUX = {"fcn", "deeplabv3", "deeplabv3_mobilenet", "deeplabv3plus"}


@pytest.fixture(params=MODELS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> SegmentationModel:
    """In evaluation mode; tests that change a network build their own."""
    return MODELS[name](num_classes=3).eval()


def test_forward_is_the_native_logits_at_the_size_of_the_image(name: str, model: SegmentationModel) -> None:
    image = torch.randn(1, 3, 341, 257)
    with torch.inference_mode():
        native = model.logits(image)
        logits = model(image)
    stride = STRIDES[name]
    assert list(native) == list(logits) == ["out"]  # no aux outside training
    assert native["out"].shape == (1, 3, -(-341 // stride), -(-257 // stride))
    assert logits["out"].shape == (1, 3, 341, 257)
    assert torch.equal(logits["out"], resize_logits(native["out"], (341, 257), model.align_corners))


def test_training_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](num_classes=2, in_channels=1).train()
    logits = model(torch.randn(2, 1, 65, 49))
    assert list(logits) == (["out", "aux"] if name in WITH_AUX else ["out"])
    assert all(value.shape == (2, 2, 65, 49) for value in logits.values())
    sum(value.square().mean() for value in logits.values()).backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias or scale may see a zero gradient by chance of ReLU; a kernel may not.
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
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

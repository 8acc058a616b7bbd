"""Xception-65 against timm's and against the strides and rates of its authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.models.backbones.xception import SeparableConv, Xception65


def shake(model: nn.Module) -> None:
    """Statistics and scales that are not those of a fresh network, so that each layer matters."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def rates(layers: nn.Module) -> list[int]:
    return [module.conv_dw.dilation[0] for module in layers.modules() if isinstance(module, SeparableConv)]


@pytest.mark.parametrize("output_stride", [16, 8])
@torch.inference_mode()
def test_features_are_timms(output_stride: Any) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("xception65", output_stride=output_stride).double().eval()
    ours = Xception65(output_stride=output_stride).double().eval()
    shake(theirs)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")})
    image = torch.randn(1, 3, 65, 81, dtype=torch.float64)
    *want, last = theirs.forward_intermediates(image, intermediates_only=True)[1:]
    *got, ours_last = ours(image)
    assert (ours_last - last).abs().max() <= 1e-12 * last.abs().max()
    for a, b in zip(got, want, strict=True):
        assert a.min() < 0  # ours are before the ReLU
        assert (a.relu() - b).abs().max() <= 1e-12 * b.abs().max()


def test_total(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = Xception65()
    assert sum(p.numel() for p in model.parameters()) == goldens["parameters"]["xception65_features"]
    # 65 with the classifier: a separable convolution counts once, projections do not count.
    separable = sum(isinstance(module, SeparableConv) for module in model.modules())
    assert 2 + separable == 65


@pytest.mark.parametrize(
    ("output_stride", "entry3", "middle", "exit1", "exit2"), [(32, 1, 1, 1, 1), (16, 1, 1, 1, 2), (8, 1, 2, 2, 4)]
)
def test_rates_are_the_authors(output_stride: Any, entry3: int, middle: int, exit1: int, exit2: int) -> None:
    with torch.device("meta"):
        model = Xception65(output_stride=output_stride)
    want = [1] * 6 + [entry3] * 3 + [middle] * 48 + [exit1] * 3 + [exit2] * 3
    assert rates(model) == want
    strided = [index for index, block in enumerate(model.blocks) if block.stack["conv3"].conv_dw.stride[0] == 2]
    assert strided == {32: [0, 1, 2, 19], 16: [0, 1, 2], 8: [0, 1]}[output_stride]
    assert all(module.eps == 1e-3 for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_sizes_of_the_papers_crop() -> None:
    with torch.device("meta"):
        features = Xception65(output_stride=16)(torch.zeros(1, 3, 513, 513))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (256, 129, 129),
        (728, 65, 65),
        (1024, 33, 33),
        (2048, 33, 33),
    ]


@torch.inference_mode()
def test_the_first_feature_is_the_second_separable_convolution_of_the_second_block() -> None:
    model = Xception65().eval()
    seen: list[Tensor] = []
    model.blocks[1].stack["conv2"].bn_pw.register_forward_hook(lambda _module, _args, out: seen.append(out))
    assert torch.equal(model(torch.randn(1, 3, 33, 33))[0], seen[0])


def test_a_training_step_leaves_no_feature_overwritten() -> None:
    # A ReLU in place on a feature or a shortcut would change it, or stop the gradient.
    model = Xception65(output_stride=16)
    features = model(torch.randn(2, 3, 33, 33))
    kept = [feature.detach().clone() for feature in features]
    sum(feature.square().mean() for feature in features).backward()
    assert all(torch.equal(a, b.detach()) for a, b in zip(kept, features, strict=True))
    assert [name for name, p in model.named_parameters() if p.grad is None] == []

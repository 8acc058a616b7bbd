"""Whatever the protocol, a network that looks at one pixel at a time gives each pixel the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.inference.slide import SlidingWindow
from segtrain.inference.whole import WholeImage


class Pointwise(nn.Module):
    """1x1 convolution; keeps the sizes it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.sizes.append((image.shape[-2], image.shape[-1]))
        return {"out": self.conv(image)}


class Sided(nn.Module):
    """Two classes: the logit of class 1 is the column, so that flips and windows show."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        column = torch.arange(image.shape[-1]).float().expand(len(image), 1, *image.shape[-2:])
        return {"out": torch.cat([torch.zeros_like(column), column / 4], 1)}


@pytest.fixture
def model() -> Pointwise:
    return Pointwise().eval()


@pytest.mark.parametrize("size", [(9, 13), (8, 8), (3, 20), (5, 5), (31, 17)])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 5), ([8, 6], [3, 6]), (64, 40), (1, 1)])
@torch.inference_mode()
def test_sliding_equals_whole_for_a_pointwise_network(
    model: Pointwise, size: tuple[int, int], window: int | list[int], stride: int | list[int]
) -> None:
    image = torch.randn(2, 3, *size)
    whole = WholeImage()(model, image).softmax(1)
    model.sizes.clear()
    slid = SlidingWindow(window_size=window, window_stride=stride)(model, image)
    assert slid.shape == (2, 4, *size)
    assert torch.allclose(slid.exp(), whole, atol=1e-6)  # log probabilities, each pixel divided by how often it is seen
    assert set(model.sizes) == {(window, window) if isinstance(window, int) else tuple(window)}


@torch.inference_mode()
def test_windows_average_probabilities_by_how_often_a_pixel_is_seen() -> None:
    """Columns 0-9, windows of 6 at 0, 3 and 4: column 5 is seen as column 5, 2 and 1 of its windows."""
    probs = SlidingWindow(window_size=[2, 6], window_stride=[2, 3])(Sided(), torch.zeros(1, 3, 2, 10)).softmax(1)
    starts = [0, 3, 4]
    for column in range(10):
        inside = [column - start for start in starts if 0 <= column - start < 6]
        expected = sum(torch.sigmoid(torch.tensor(offset / 4)) for offset in inside) / len(inside)
        assert probs[0, 1, 0, column] == pytest.approx(float(expected), abs=1e-6)


@torch.inference_mode()
def test_flip_and_scales_average_probabilities(model: Pointwise) -> None:
    image = torch.zeros(1, 3, 4, 8)
    flipped = WholeImage(flip=True)(Sided(), image).softmax(1)[0, 1, 0]
    one_way = torch.sigmoid(torch.arange(8) / 4)
    assert torch.allclose(flipped, (one_way + one_way.flip(0)) / 2, atol=1e-6)
    image = torch.randn(1, 3, 9, 7)
    mixed = WholeImage(scales=[0.5, 1.0, 1.5], flip=True)(model, image)
    assert model.sizes == [(4, 4), (4, 4), (9, 7), (9, 7), (14, 10), (14, 10)]
    expected = torch.zeros(1, 4, 9, 7)
    for size in [(4, 4), (9, 7), (14, 10)]:
        logits = model.conv(F.interpolate(image, size=size, mode="bilinear", align_corners=False))
        expected += F.interpolate(logits, size=(9, 7), mode="bilinear", align_corners=False).softmax(1) / 3
    assert torch.allclose(mixed.softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "protocol", [WholeImage(size=[6, 12]), SlidingWindow(window_size=6, window_stride=4, size=[6, 12])]
)
@torch.inference_mode()
def test_size_resizes_the_input_and_returns_to_the_images_own(model: Pointwise, protocol: WholeImage) -> None:
    image = torch.randn(2, 3, 15, 11)
    logits = protocol(model, image)
    assert logits.shape == (2, 4, 15, 11)
    assert max(model.sizes) in ((6, 12), (6, 6))
    inner = model.conv(F.interpolate(image, size=(6, 12), mode="bilinear", align_corners=False)).log_softmax(1)
    expected = F.interpolate(inner, size=(15, 11), mode="bilinear", align_corners=False).softmax(1)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@torch.inference_mode()
def test_results_are_finite_logits_even_for_certain_networks(flip: bool) -> None:
    class Certain(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"out": torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, *image.shape[-2:]).bfloat16()}

    for protocol in (WholeImage(flip=flip), SlidingWindow(window_size=4, window_stride=3, flip=flip)):
        logits = protocol(Certain(), torch.zeros(1, 3, 7, 7))
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert torch.allclose(logits.softmax(1).sum(1), torch.ones(1, 7, 7))
        assert (logits.argmax(1) == 0).all()


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_stride") as caught:
        SlidingWindow(window_size=[8, 16], window_stride=[9, 9])
    assert "every pixel" in (caught.value.expected or "")
    assert "inference.window_stride=[6, 11]" in (caught.value.fix or "")
    assert SlidingWindow(window_size=[8, 16], window_stride=[6, 11]).stride == (6, 11)


@pytest.mark.parametrize(
    ("window", "stride"), [(1, (1, 1)), (2, (2, 2)), (3, (2, 2)), (64, (43, 43)), ([8, 16], (6, 11))]
)
def test_without_a_stride_it_is_two_thirds_of_the_window(window: int | list[int], stride: tuple[int, int]) -> None:
    assert SlidingWindow(window_size=window).stride == stride


class Says(nn.Module):
    """Returns what it is given."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, image: Tensor) -> Any:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (torch.zeros(1, 2, 4, 4), "the model returns a Tensor"),
        ([torch.zeros(1, 2, 4, 4)], "the model returns a list"),
        ({}, "the model returns a dict of nothing, without a tensor 'out'"),
        ({"logits": 1, "aux": 2}, "the model returns a dict of logits, aux, without a tensor 'out'"),
        ({"out": [1.0]}, "the model returns a dict of out, without a tensor 'out'"),
        ({"out": torch.zeros(1, 4, 4)}, "the model's 'out' is (1, 4, 4)"),
    ],
)
@pytest.mark.parametrize("protocol", [WholeImage(), SlidingWindow(window_size=4)])
def test_a_network_that_breaks_the_contract_is_told_so(outputs: Any, found: str, protocol: WholeImage) -> None:
    with pytest.raises(ConfigError) as caught:
        protocol(Says(outputs), torch.zeros(1, 3, 4, 4))
    assert caught.value.found == found
    assert caught.value.where == "model._target_"
    assert '{"out": logits (B, num_classes, H, W)}' in str(caught.value.expected)

"""Tiles of the paper's U-Net: the whole image's logits, whatever its size, with no seam to be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.inference.tile import OverlapTile
from segtrain.inference.whole import WholeImage
from segtrain.models.unet import UNet, UNetValid


def network(depth: int = 2) -> UNetValid:
    torch.manual_seed(0)
    return UNetValid(num_classes=3, base_channels=4, depth=depth).eval()


def inputs_of(model: UNetValid) -> list[tuple[int, int]]:
    """Sizes of the input tiles that the network sees from now on."""
    sizes: list[tuple[int, int]] = []
    model.encoder[0].register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape[-2:])))
    return sizes


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (21, 17), (64, 64), (97, 50), (33, 130)])
@pytest.mark.parametrize(("depth", "window"), [(1, 1), (1, 7), (2, 12), (2, [5, 37]), (3, 20), (3, 388)])
@torch.inference_mode()
def test_tiles_give_the_logits_of_the_whole_image(size: tuple[int, int], depth: int, window: int | list[int]) -> None:
    model, image = network(depth), torch.randn(1, 3, *size)
    tiled = OverlapTile(window_size=window)(model, image)
    assert tiled.shape == (1, 3, *size)
    whole = model(image)["out"]
    # Not to the bit: convolutions of another size may add in another order.
    assert (tiled - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))


@torch.inference_mode()
def test_the_papers_network_on_a_batch_larger_than_its_tile() -> None:
    torch.manual_seed(0)
    model = UNetValid(num_classes=2, in_channels=1, base_channels=2).eval()
    image = torch.randn(2, 1, 401, 389)
    expected = model(image)["out"]
    sizes = inputs_of(model)
    assert (OverlapTile()(model, image) - expected).abs().max() < 1e-5
    assert sizes == [(572, 572)] * 4


@pytest.mark.parametrize(
    ("side", "window", "tiles"),
    [
        (388, 388, [572]),  # the paper's tile needs no second one
        (389, 388, [572, 572]),
        (772, 388, [572, 572]),  # 384 + 388
        (773, 388, [572, 572, 572]),
        (1000, 100, [284] * 11),  # 100 is an output size; tiles start 96 apart
        (1000, 101, [300] * 9),  # 101 is none: 116, tiles start 112 apart
        (30, 388, [220]),  # no larger than the image asks for
        (40, 1, [204] * 3),  # at least one stride
    ],
)
@torch.inference_mode()
def test_tiles_are_as_few_as_their_size_allows(side: int, window: int, tiles: list[int]) -> None:
    model = network(4)
    sizes = inputs_of(model)
    OverlapTile(window_size=[window, 4])(model, torch.zeros(1, 3, side, 1))
    assert [height for height, _ in sizes] == tiles
    assert {width for _, width in sizes} == {188}


@torch.inference_mode()
def test_a_tile_sees_real_surroundings() -> None:
    """A change of one pixel is felt across tiles as far as the margin, which is that of a block of four outputs."""
    model, image = network(), torch.zeros(1, 3, 80, 80)
    other = image.clone()
    other[..., 30, 41] = 5
    protocol = OverlapTile(window_size=12)
    felt = (protocol(model, image) != protocol(model, other)).any(1)[0]
    rows, columns = felt.any(1).nonzero().flatten(), felt.any(0).nonzero().flatten()
    reach = model.margin + 3
    for found, place in ((rows, 30), (columns, 41)):
        assert place - reach <= found.min() <= place - 12
        assert place + 12 <= found.max() <= place + reach


@pytest.mark.parametrize("options", [{"size": [30, 44]}, {"scales": [0.5, 1.25]}, {"flip": True}])
@torch.inference_mode()
def test_size_scales_and_flip_are_those_of_the_whole_image(options: dict[str, Any]) -> None:
    model, image = network(), torch.randn(1, 3, 37, 52)
    found = OverlapTile(window_size=12, **options)(model, image).softmax(1)
    assert torch.allclose(found, WholeImage(**options)(model, image).softmax(1), atol=1e-5)
    assert not torch.allclose(found, WholeImage()(model, image).softmax(1), atol=1e-3)


@torch.inference_mode()
def test_half_precision_gives_float32_logits() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert OverlapTile(window_size=12)(network(), torch.randn(1, 3, 20, 20)).dtype == torch.float32


class Pointwise(nn.Module):
    """A network that needs no surroundings."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": image}


@pytest.mark.parametrize("model", [UNet(num_classes=2, base_channels=2, depth=1), Pointwise()])
def test_a_network_that_pads_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError) as caught:
        OverlapTile()(model, torch.zeros(1, 3, 8, 8))
    assert f"inference=tile with {type(model).__name__}, which has no margin" in str(caught.value)
    assert "set inference=whole, or inference=slide" in str(caught.value)
    assert "model=unet_valid" in str(caught.value)

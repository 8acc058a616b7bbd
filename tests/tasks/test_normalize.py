"""What the network sees is the image, its colors changed and clamped, minus the mean, over the deviation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.pixel import CrossEntropy
from segtrain.tasks.semantic import SemanticTask

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def task(channels: int, layout: torch.memory_format) -> SemanticTask:
    made = SemanticTask(
        loss=SegmentationLoss(terms={"ce": CrossEntropy()}),
        classes=["a", "b"],
        palette=[[0, 0, 0], [255, 0, 0]],
        mean=MEAN[:channels],
        std=STD[:channels],
        inference=lambda model, image: model(image),
    )
    return made.to(torch.device("cpu"), layout)


def images(channels: int, dtype: torch.dtype, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *size, channels), generator=generator, dtype=torch.uint8)
    return (
        image if dtype == torch.uint8 else (image.float() + torch.rand(image.shape, generator=generator)).clamp(max=255)
    )


def matrices(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    color = torch.eye(channels, channels + 1) + 0.3 * torch.randn((3, channels, channels + 1), generator=generator)
    color[..., -1] *= 100
    color[1] = torch.eye(channels, channels + 1)
    return color


def reference(image: Tensor, color: Tensor | None) -> Tensor:
    exact = image.double()
    if color is not None:
        linear, shift = color[..., :-1].double(), color[..., -1].double()
        exact = (torch.einsum("bhwj,bij->bhwi", exact, linear) + shift[:, None, None]).clamp(0, 255)
    channels = image.shape[-1]
    mean, std = torch.tensor(MEAN[:channels], dtype=torch.float64), torch.tensor(STD[:channels], dtype=torch.float64)
    return ((exact / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("size", [(33, 47), (1, 1)])
def test_it_equals_the_formula_in_double_precision(
    layout: torch.memory_format, channels: int, dtype: torch.dtype, colored: bool, size: tuple[int, int]
) -> None:
    image, color = images(channels, dtype, size), matrices(channels) if colored else None
    before = image.clone()
    out = task(channels, layout).normalize(image, color)
    expected = reference(image, color)
    assert out.dtype == torch.float32
    assert out.shape == expected.shape
    assert out.is_contiguous(memory_format=layout)
    assert float((out - expected).abs().max() / expected.abs().max()) < 1e-6
    assert torch.equal(image, before)  # a caller's image stays as it is, float32 too


def test_a_view_is_taken_as_it_looks() -> None:
    image = images(3, torch.float32, (8, 9))
    for layout in (torch.contiguous_format, torch.channels_last):
        flipped = task(3, layout).normalize(image.flip(2))
        strided = task(3, layout).normalize(image.permute(0, 2, 1, 3))
        plain = task(3, layout).normalize(image)
        assert torch.equal(flipped, plain.flip(3))
        assert torch.equal(strided, plain.permute(0, 1, 3, 2))


def test_autocast_rounds_nothing() -> None:
    image, color = images(3, torch.uint8, (16, 16)), matrices(3)
    plain = task(3, torch.contiguous_format).normalize(image, color)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task(3, torch.contiguous_format).normalize(image, color), plain)


def test_the_identity_changes_colors_by_rounding_alone() -> None:
    image = images(3, torch.uint8, (16, 16))
    same = torch.eye(3, 4).repeat(3, 1, 1)
    made = task(3, torch.contiguous_format)
    assert torch.allclose(made.normalize(image, same), made.normalize(image), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("colored", [False, True])
def test_one_mean_for_all_channels_is_each_channels_mean(layout: torch.memory_format, colored: bool) -> None:
    image = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    color = torch.cat([torch.eye(3) * 1.1, torch.ones(3, 1)], 1).repeat(2, 1, 1) if colored else None
    made = task(3, layout)
    made.mean, made.std = torch.full((1, 3, 1, 1), 120.0), torch.full((1, 3, 1, 1), 50.0)
    each = made.normalize(image, color)
    made.mean, made.std = torch.full((1, 1, 1, 1), 120.0), torch.full((1, 1, 1, 1), 50.0)
    assert torch.equal(made.normalize(image, color), each)

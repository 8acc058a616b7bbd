"""Rows that come as soon as they are final are those of all windows together, and nothing large is held."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.inference.base import ImageInference
from segtrain.inference.outputs import LARGEST_WHOLE
from segtrain.inference.slide import SlidingWindow
from segtrain.inference.tile import OverlapTile
from segtrain.inference.whole import WholeImage
from segtrain.models.unet import UNet, UNetValid
from segtrain.tasks.semantic import SemanticTask
from segtrain.windows import averaged_bands, stacked, starts

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def task(inference: Any, classes: int = 3) -> SemanticTask:
    return SemanticTask(
        loss=None,  # type: ignore[arg-type]  # nothing is trained here
        classes=[str(index) for index in range(classes)],
        palette=[[index] * 3 for index in range(classes)],
        mean=MEAN,
        std=STD,
        inference=inference,
    )


def uint8(*size: int) -> Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def padded() -> nn.Module:
    torch.manual_seed(0)
    return UNet(num_classes=3, base_channels=4, depth=2).eval()


def valid() -> UNetValid:
    torch.manual_seed(0)
    return UNetValid(num_classes=3, base_channels=4, depth=2).eval()


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (50, 7), (33, 47), (64, 64), (90, 61), (131, 40), (200, 33)])
@pytest.mark.parametrize(("window", "stride"), [(32, 32), (32, None), (32, 7), ([16, 48], [5, 48]), ([48, 16], 16)])
@torch.inference_mode()
def test_bands_of_windows_are_the_whole_to_the_bit(size: tuple[int, int], window: Any, stride: Any) -> None:
    one, model, image = task(SlidingWindow(window_size=window, window_stride=stride)), padded(), uint8(1, *size, 3)
    whole = one.logits(model, image)
    bands = list(one.bands(model, image))
    assert [first for first, _, _ in bands] == [0, *(last for _, last, _ in bands[:-1])]
    assert torch.equal(stacked(iter(bands), size[0]), whole)
    assert torch.equal(one.predict(model, image), whole.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("size", [(1, 1), (21, 17), (64, 64), (97, 50), (33, 130), (130, 33)])
@pytest.mark.parametrize("window", [1, 12, 20, [5, 37]])
@torch.inference_mode()
def test_bands_of_tiles_are_the_whole_to_the_bit(size: tuple[int, int], window: Any) -> None:
    one, model, image = task(OverlapTile(window_size=window)), valid(), uint8(1, *size, 3)
    whole = one.logits(model, image)
    assert torch.equal(stacked(one.bands(model, image), size[0]), whole)
    assert torch.equal(one.predict(model, image), whole.argmax(1).to(torch.uint8))


@torch.inference_mode()
def test_bands_of_several_images_and_of_deep_grey() -> None:
    model = padded()
    one = task(SlidingWindow(window_size=32, window_stride=20))
    for image in (uint8(3, 70, 45, 3), uint8(1, 70, 45, 3).float() * 255 / 256 + 0.25):
        assert torch.equal(stacked(one.bands(model, image), 70), one.logits(model, image))


def by_hand(probs: dict[tuple[int, int], np.ndarray], image: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """The mean per pixel by loops, in float64."""
    mean = np.zeros((2, *image))
    for y in range(image[0]):
        for x in range(image[1]):
            seen = [
                part[:, y - top, x - left]
                for (top, left), part in probs.items()
                if 0 <= y - top < window[0] and 0 <= x - left < window[1]
            ]
            mean[:, y, x] = np.mean(seen, axis=0)
    return mean


@pytest.mark.parametrize("image", [(6, 6), (13, 9), (80, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 5), (4, 4), (6, 6)])
def test_the_mean_is_that_of_every_window_over_a_pixel(image: tuple[int, int], stride: tuple[int, int]) -> None:
    window, rng = (6, 6), np.random.default_rng(0)
    tops, lefts = (starts(*axis) for axis in zip(image, window, stride, strict=True))
    probs = {(top, left): rng.uniform(0.1, 1, (2, 6, 6)) for top in tops for left in lefts}
    bands = averaged_bands(lambda y, x: torch.tensor(probs[y, x], dtype=torch.float32)[None], image, window, stride)
    found = stacked(bands, image[0])[0].exp().numpy()
    assert np.allclose(found, by_hand(probs, image, window), rtol=1e-5)


class Pointwise(nn.Module):
    """One multiplication per class and pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.largest = 0

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.largest = max(self.largest, image.numel())
        return {"out": self.conv(image)}


@torch.inference_mode()
def test_no_tensor_of_the_images_size_is_made() -> None:
    """Every allocation of a long image is that of a short one; its logits would be 40 times as many."""

    def largest_of(height: int) -> int:
        model, one, image = Pointwise(3), task(SlidingWindow(window_size=64)), uint8(1, height, 64, 3)
        with torch.profiler.profile(profile_memory=True) as profile:
            one.predict(model, image)
        assert model.largest == 64 * 64 * 3
        return max(event.self_cpu_memory_usage for event in profile.events())

    labels = 64 * 64 * 40
    assert largest_of(64 * 40) <= max(largest_of(64 * 2), labels)


@pytest.mark.parametrize(
    ("inference", "streams"),
    [
        (WholeImage(), False),
        (SlidingWindow(window_size=8), True),
        (OverlapTile(), True),
        (SlidingWindow(window_size=8, scales=[1.0]), True),
        (SlidingWindow(window_size=8, flip=True), False),
        (SlidingWindow(window_size=8, scales=[0.5]), False),
        (SlidingWindow(window_size=8, scales=[1.0, 1.0]), False),
        (SlidingWindow(window_size=8, size=32), False),
        (OverlapTile(flip=True), False),
    ],
)
@torch.inference_mode()
def test_only_one_view_streams_and_the_others_are_whole(inference: ImageInference, streams: bool) -> None:
    model, image = valid(), uint8(1, 90, 20, 3)
    one = task(inference)
    assert inference.streams() is streams
    direct = stacked(inference.bands(model, image, one.normalize), 90)
    assert torch.equal(direct, one.logits(model, image))
    assert (len(list(one.bands(model, image))) > 1) is (streams and not isinstance(inference, OverlapTile))


@pytest.mark.parametrize(
    ("inference", "fix"),
    [
        (WholeImage(), "inference=slide, with inference.size=null inference.scales=[1.0]"),
        (SlidingWindow(window_size=8, flip=True), "inference.size=null inference.scales=[1.0] inference.flip=false"),
    ],
)
def test_logits_that_would_fill_the_memory_are_refused_before_they_are_made(
    inference: ImageInference, fix: str
) -> None:
    side = int((LARGEST_WHOLE / 3) ** 0.5) + 1
    huge = torch.zeros(1, dtype=torch.uint8).expand(1, side, side, 3)  # one byte that says it is an image
    with pytest.raises(ConfigError) as caught:
        task(inference).predict(padded(), huge)
    assert f"an image of {side}x{side} pixels has {3 * side * side:,} logits in 3 classes" in str(caught.value)
    assert (caught.value.fix or "").startswith(fix)


def test_a_network_with_other_classes_is_told_so_in_bands_too() -> None:
    with pytest.raises(ConfigError, match="the data have 5 classes"):
        task(SlidingWindow(window_size=8), classes=5).predict(padded(), uint8(1, 20, 20, 3))

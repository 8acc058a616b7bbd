"""Labels without full-size logits: the same labels, to the pixel, and little memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from segtrain import upsampling
from segtrain.experiment import build_dataset, build_model, compose
from segtrain.inference.base import ImageInference
from segtrain.inference.whole import WholeImage
from segtrain.models.layers import resize_logits
from segtrain.parts import make_task
from segtrain.settings import Settings
from segtrain.tasks.semantic import SemanticMeter, SemanticTask
from segtrain.types import Batch
from segtrain.upsampling import possible_classes, upsampled_labels

FORMATS = [torch.contiguous_format, torch.channels_last]


def plain(native: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    return resize_logits(native, size, align_corners).max(1).indices.to(torch.uint8)


@given(data=st.data())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_labels_are_those_of_the_resized_logits(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 10_000)))
    shape = [draw(st.integers(1, top)) for top in (3, 23, 13, 13)]
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    native = torch.randn(shape)
    if draw(st.booleans()):  # as trained networks have it: few classes that matter
        native = native - 20.0 * (torch.arange(shape[1]) % 5 > 1).view(1, -1, 1, 1)
    native = native.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    native = native.contiguous(memory_format=draw(st.sampled_from(FORMATS)))
    align_corners = draw(st.booleans())
    expected = plain(native, size, align_corners)
    with pytest.MonkeyPatch.context() as patch:  # bands of one row, of some, of all
        patch.setattr(upsampling, "BAND", draw(st.sampled_from([1, 100, upsampling.BAND])))
        assert torch.equal(upsampled_labels(native, size, align_corners), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_classes_the_first_has_the_pixel(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    native = torch.randn(1, 11, 9, 8, dtype=dtype)
    twice = native.repeat_interleave(2, 1)
    labels = upsampled_labels(twice, (70, 61))
    assert labels.unique().tolist() == [2 * number for number in range(11)]
    assert torch.equal(labels // 2, upsampled_labels(native, (70, 61)))


def test_no_plane_of_the_image_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        """The most bytes that one tensor had."""

        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype != torch.uint8:
                self.bytes = max(self.bytes, found.untyped_storage().nbytes())
            return found

    monkeypatch.setattr(upsampling, "BAND", 2**14 // torch.get_num_threads())
    native = torch.randn(1, 19, 32, 64)
    band, plane = 4 * 2**14, 4 * 512 * 1024
    with Largest() as seen:
        upsampled_labels(native, (512, 1024))
    assert band <= seen.bytes <= 4 * 19 * 3 * 1024 < plane / 8  # three rows of the network's, as wide as the image


@pytest.mark.parametrize("size", [(65, 97), (512, 375), (7, 9)])
def test_a_class_is_passed_over_only_where_it_never_wins(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    native = F.interpolate(torch.randn(1, 21, 3, 3) * 8, (17, 23), mode="bicubic")
    native[:, 5:] -= 30
    possible = possible_classes(native)
    assert set(np.unique(plain(native, size))) <= set(possible.nonzero().flatten().tolist())
    assert possible.sum() < 10
    assert torch.equal(upsampled_labels(native, size), plain(native, size))


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_classes_that_are_masked_or_broken_are_labelled_as_by_the_largest_logit(value: float) -> None:
    torch.manual_seed(0)
    native = torch.randn(2, 5, 9, 9)
    native[0, 1] = value
    assert torch.equal(upsampled_labels(native, (37, 29)), plain(native, (37, 29)))
    assert torch.equal(upsampled_labels(native.requires_grad_(), (37, 29)), plain(native, (37, 29)))
    assert upsampled_labels(native[:0], (37, 29)).shape == (0, 37, 29)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("where", [slice(0, 1), slice(5, 6), slice(3, 20), slice(0, 20)])
def test_a_gpu_labels_them_alike_without_asking_whether_there_are_any(value: float, where: slice) -> None:
    torch.manual_seed(0)
    native = torch.randn(1, 20, 9, 9)
    native[0, where, 2:5, 3:] = value
    native[0, 17, 6, 6] = torch.nan
    labels = torch.empty(1, 37, 29, dtype=torch.uint8)
    upsampling._compare(native, labels, align_corners=False)
    assert torch.equal(labels, plain(native, (37, 29)))


def test_values_that_are_not_numbers_drop_no_class() -> None:
    native = torch.full((1, 3, 4, 4), torch.nan)
    assert possible_classes(native).all()
    assert upsampled_labels(native, (8, 8)).shape == (1, 8, 8)


def parts(*overrides: str) -> tuple[torch.nn.Module, SemanticTask, list[Batch]]:
    torch.manual_seed(3)
    cfg = compose(["data=shapes", "data.size=45", "data.limit=6", *overrides])
    cfg_settings = Settings(cfg)
    model = build_model(cfg).eval()
    for module in model.modules():  # so that an untrained network does not say the same everywhere
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 5:
            torch.nn.init.normal_(module.weight)
    dataset = build_dataset(cfg, "val")
    inference: ImageInference = cfg_settings.make("inference")
    task = make_task(cfg_settings, None, dataset.classes, dataset.palette, inference)
    samples = [dataset[i] for i in range(len(dataset))]
    batches = [
        Batch(
            torch.from_numpy(np.stack([one[0] for one in pair])),
            torch.from_numpy(np.stack([one[1] for one in pair])),
            torch.arange(2),
            [one[2] for one in pair],
        )
        for pair in (samples[:2], samples[2:4], samples[4:])
    ]
    return model, task, batches


MODELS = [
    ["model=unet_small"],
    ["model=unet_valid", "model.base_channels=4"],
    ["model=deeplabv3plus", "model.backbone=mobilenet_v2"],
    ["model=pspnet", "model.backbone=resnet18"],
    ["model=lraspp"],
    ["model=torchvision"],
]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("model", MODELS, ids=lambda words: words[0])
def test_an_evaluation_without_losses_counts_the_same_pixels(model: list[str], layout: torch.memory_format) -> None:
    network, task, batches = parts(*model)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    task.to(torch.device("cpu"), layout)
    with_losses, without = SemanticMeter(task), SemanticMeter(task, losses=False)
    with torch.inference_mode():
        for batch in batches:
            with_losses.update(network, batch)
            without.update(network, batch)
    assert torch.equal(with_losses.confusion.counts, without.confusion.counts)
    assert model[0] in ("model=torchvision", "model=lraspp") or len(without.confusion.counts.sum(0).nonzero()) > 1
    assert np.isnan(without.scores()["loss"])
    assert np.isfinite(with_losses.scores()["loss"])


@pytest.mark.parametrize(
    ("inference", "native"),
    [
        ([], True),
        (["inference.flip=true"], False),
        (["inference.scales=[0.5]"], False),
        (["inference.size=32"], False),
        (["inference=slide", "inference.window_size=32"], False),
    ],
)
def test_only_one_plain_view_is_resized_once(inference: list[str], native: bool) -> None:
    network, task, batches = parts("model=deeplabv3plus", "model.backbone=mobilenet_v2", *inference)
    assert isinstance(task.inference, ImageInference)
    with torch.inference_mode():
        assert (task.inference.native(network, batches[0].image, task.normalize) is not None) == native
        labels = task.predict(network, batches[0].image)
        assert torch.equal(labels.long(), task.logits(network, batches[0].image).max(1).indices)


def test_a_network_that_resizes_in_its_own_way_is_not_resized_here() -> None:
    network, task, batches = parts("model=unet_small")

    class Mirrored(type(network)):  # type: ignore[misc]
        def forward(self, image: torch.Tensor, resize: bool = True) -> dict[str, torch.Tensor]:
            return {name: value.flip(-1) for name, value in super().forward(image, resize).items()}

    network.__class__ = Mirrored
    assert WholeImage().native(network, batches[0].image, task.normalize) is None

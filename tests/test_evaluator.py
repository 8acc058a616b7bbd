"""Scores do not depend on how images are put into batches, and equal a count by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from segtrain.data.loader import EvalLoader
from segtrain.errors import ConfigError
from segtrain.evaluator import evaluate
from segtrain.inference.whole import WholeImage
from segtrain.losses.base import Loss
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.pixel import CrossEntropy, Focal, OhemCrossEntropy
from segtrain.losses.region import Dice, Lovasz, Tversky
from segtrain.tasks.semantic import SemanticTask
from segtrain.types import Batch, Record

SIZES = [(8, 8), (8, 8), (5, 9), (8, 8), (7, 3), (7, 3), (7, 3)]
CPU = torch.device("cpu")


class Images(Dataset[Any]):
    """Images of mixed sizes with a fifth of the pixels unlabelled, and one image without labels."""

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        target = rng.integers(0, 3, SIZES[index]).astype(np.uint8)
        target[rng.random(SIZES[index]) < 0.2] = 255
        if index == 3:
            target[:] = 255
        return rng.integers(0, 256, (*SIZES[index], 3), dtype=np.uint8), target, Record(str(index))


class Net(nn.Module):
    """A 1x1 convolution with dropout and normalization, which evaluation must switch off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.norm(self.conv(self.drop(image)))}


def task(**terms: Any) -> SemanticTask:
    return SemanticTask(
        loss=SegmentationLoss(terms=terms or {"ce": CrossEntropy()}),
        classes=["a", "b", "c"],
        palette=[[0, 0, 0]] * 3,
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.2, 0.3],
        inference=WholeImage(),
    )


def scores(judged: SemanticTask, batch_size: int, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    loader = EvalLoader(Images(), batch_size=batch_size, num_workers=0)  # type: ignore[arg-type]
    options = {"precision": contextlib.nullcontext, **options}
    return evaluate(model or Net(), loader, judged, CPU, **options)


@torch.no_grad()
def by_hand(weights: Tensor | None) -> tuple[np.ndarray, float]:
    """Confusion counts pixel by pixel, and torch's own weighted mean over all pixels of all images."""
    model, counts = Net().eval(), np.zeros((3, 3), int)
    logits, targets = [], []
    for index in range(len(SIZES)):
        image, target, _ = Images()[index]
        pixels = (torch.from_numpy(image) / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.2, 0.3])
        out = model(pixels.permute(2, 0, 1)[None])["out"][0]
        for truth, guess in zip(target.flat, out.argmax(0).flatten().tolist(), strict=True):
            if truth != 255:
                counts[truth, guess] += 1
        logits.append(out.flatten(1).T)
        targets.append(torch.from_numpy(target).long().flatten())
    loss = F.cross_entropy(torch.cat(logits), torch.cat(targets), weight=weights, ignore_index=255)
    return counts, float(loss)


@pytest.mark.parametrize("weights", [None, [1.0, 4.0, 0.5]])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_equal_a_count_by_hand(batch_size: int, weights: list[float] | None) -> None:
    judged = task()
    if weights:
        judged.loss.use_class_weights(torch.tensor(weights))
    found = scores(judged, batch_size)
    counts, loss = by_hand(torch.tensor(weights) if weights else None)
    assert found["confusion"] == counts.tolist()
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert found["miou"] == pytest.approx(iou.mean())
    assert list(found["iou"].values()) == pytest.approx(iou.tolist())
    assert found["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert found["images"] == len(SIZES)


def test_a_weighted_sum_of_pixel_losses_does_not_depend_on_the_batch_size() -> None:
    found = [scores(task(ce=CrossEntropy(), focal=Focal(weight=0.5)), size)["loss"] for size in (1, 2, 5)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)
    assert found[0] > scores(task(), 2)["loss"]


REGIONS: list[Callable[[], Loss]] = [Dice, Tversky, Lovasz, lambda: OhemCrossEntropy(threshold=0.01, min_kept=9)]


@pytest.mark.parametrize("term", REGIONS)
def test_a_loss_that_looks_at_a_whole_batch_does_not_depend_on_its_size_either(term: Callable[[], Loss]) -> None:
    found = [scores(task(ce=CrossEntropy(), term=term()), size)["loss"] for size in (1, 2, 5)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)


@torch.no_grad()
def test_a_loss_of_regions_is_the_mean_of_the_images_own() -> None:
    judged, model = task(dice=Dice(weight=0.5)), Net().eval()
    each = []
    for index in range(len(SIZES)):
        image, target, _ = Images()[index]
        logits = judged.logits(model, torch.from_numpy(image)[None])
        each.append(float(Dice()(logits, torch.from_numpy(target)[None].long())))
    assert scores(judged, 3)["loss"] == pytest.approx(0.5 * np.mean(each), abs=1e-6)


class Channels(nn.Module):
    """As many channels as asked for, which need not be the classes."""

    def __init__(self, out: int, aux: int | None = None) -> None:
        super().__init__()
        self.channels = {"out": out} if aux is None else {"out": out, "aux": aux}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: image[:, :1].expand(-1, count, -1, -1) for name, count in self.channels.items()}


def batch(side: int = 4) -> Batch:
    image, target = torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.zeros(1, side, side, dtype=torch.uint8)
    return Batch(image, target, torch.zeros(1, dtype=torch.int64), [Record("0")])


@pytest.mark.parametrize("channels", [(2,), (4,), (3, 2)])
def test_a_network_of_other_channels_than_classes_is_told_so_in_training(channels: tuple[int, ...]) -> None:
    judged = task()
    with pytest.raises(ConfigError) as caught:
        judged.losses(Channels(*channels), batch(), judged.counts(batch()))
    wrong = next(count for count in channels if count != 3)
    assert caught.value.found == f"the model's logits are (1, {wrong}, 4, 4), the data have 3 classes"
    assert '{"out": logits (B, 3, H, W)}' in str(caught.value.expected)
    judged.losses(Channels(3, 3), batch(), judged.counts(batch()))


@pytest.mark.parametrize("channels", [2, 4])
def test_a_network_of_other_channels_than_classes_is_told_so_in_evaluation(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"logits are \(2, {channels}, 8, 8\), the data have 3 classes"):
        scores(task(), 2, Channels(channels))


def test_a_batch_too_small_for_batch_normalization_is_told_so() -> None:
    judged, model = task(), nn.Sequential(nn.MaxPool2d(4), Net())
    with pytest.raises(ConfigError) as caught:
        judged.losses(model, batch(4), judged.counts(batch(4)))
    assert caught.value.found == "a batch of 1 with crops of 4x4 leaves batch normalization one value per channel"
    assert "data.batch_size=2" in str(caught.value.fix)
    assert "data.crop_size" in str(caught.value.fix)


def test_another_fault_of_the_network_is_not_taken_for_it() -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            raise ValueError("a fault of its own")

    judged = task()
    with pytest.raises(ValueError, match="a fault of its own"):
        judged.losses(Broken(), batch(), judged.counts(batch()))


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_comes_back_even_after_an_error(training: bool) -> None:
    model = Net().train(training)
    statistics = model.norm.running_mean.clone()  # type: ignore[union-attr]
    seen: list[bool] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    scores(task(), 2, model)
    assert set(seen) == {False}
    assert model.training is model.drop.training is training
    assert torch.equal(model.norm.running_mean, statistics)  # type: ignore[arg-type]

    def stop(images: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        scores(task(), 2, model, after_batch=stop)
    assert model.training is training


def test_progress_is_told_every_image_once() -> None:
    told: list[int] = []
    scores(task(), 3, after_batch=told.append)
    assert sum(told) == len(SIZES)


def test_normalization_is_that_of_the_config_for_bytes_and_floats() -> None:
    image = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    normal = task().normalize(image)
    assert normal.shape == (2, 3, 4, 5)
    assert normal[1, 2, 3, 4] == pytest.approx((float(image[1, 3, 4, 2]) / 255 - 0.6) / 0.3, abs=1e-5)
    assert torch.equal(normal, task().normalize(image.float()))


def test_nothing_labelled_gives_no_score_and_no_error() -> None:
    class Blank(Images):
        def __getitem__(self, index: int) -> Any:
            image, target, record = super().__getitem__(index)
            return image, np.full_like(target, 255), record

    loader = EvalLoader(Blank(), batch_size=2, num_workers=0)  # type: ignore[arg-type]
    found = evaluate(Net(), loader, task(), CPU, precision=contextlib.nullcontext)
    assert np.isnan(found["miou"])
    assert found["loss"] == 0
    assert found["classes_counted"] == 0

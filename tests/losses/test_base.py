"""What holds for every loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.losses.base import Loss
from segtrain.losses.pixel import CrossEntropy, Focal, OhemCrossEntropy
from segtrain.losses.region import Dice, Lovasz, Tversky

C = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0])


def weighted(loss: CrossEntropy | OhemCrossEntropy | Focal) -> Loss:
    loss.use_class_weights(WEIGHTS)
    return loss


PIXEL: dict[str, Callable[[], Loss]] = {
    "ce": CrossEntropy,
    "ce_smoothed": lambda: CrossEntropy(label_smoothing=0.2),
    "ce_weighted": lambda: weighted(CrossEntropy()),
    "ce_weighted_smoothed": lambda: weighted(CrossEntropy(label_smoothing=0.2)),
    "ohem": lambda: OhemCrossEntropy(threshold=0.5, min_kept=1),
    "ohem_weighted": lambda: weighted(OhemCrossEntropy(threshold=0.5, min_kept=1)),
    "focal": Focal,
    "focal_balanced": lambda: Focal(gamma=0.5, alpha=0.25),
    "focal_weighted": lambda: weighted(Focal()),
}
REGION: dict[str, Callable[[], Loss]] = {
    "dice": Dice,
    "tversky": Tversky,
    "lovasz": Lovasz,
    "lovasz_all": lambda: Lovasz(classes="all"),
}
EVERY = {**PIXEL, **REGION}
every_loss = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


def example(batch: int = 2, void: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and a target without class 4, some of it unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, C, 9, 7, generator=generator) * 2
    target = torch.randint(0, C - 1, (batch, 9, 7), generator=generator)
    return logits, target.masked_fill(torch.rand(target.shape, generator=generator) < void, 255)


def value_and_gradient(loss: Loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


@every_loss
@pytest.mark.parametrize("size", [1.0, 1e4, 1e38])
def test_unlabelled_pixels_change_nothing(make: Callable[[], Loss], size: float) -> None:
    logits, target = example()
    void = (target == 255).unsqueeze(1).expand_as(logits)
    changed = torch.where(void, size * torch.randn_like(logits).clamp(-3, 3), logits)
    value, gradient = value_and_gradient(make(), logits, target)
    value_changed, gradient_changed = value_and_gradient(make(), changed, target)
    assert value > 0
    assert torch.equal(value, value_changed)
    assert torch.equal(gradient, gradient_changed)
    assert (gradient[void] == 0).all()


@every_loss
@pytest.mark.parametrize("size", [1.0, 1e38])
def test_a_batch_without_labels_gives_zero_and_a_zero_gradient(make: Callable[[], Loss], size: float) -> None:
    logits, target = example()
    value, gradient = value_and_gradient(make(), logits.clamp(-3, 3) * size, torch.full_like(target, 255))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@every_loss
def test_a_batch_without_labels_beside_others_adds_nothing(make: Callable[[], Loss]) -> None:
    logits, target = example()
    loss = make()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(target, 255), count=torch.tensor(60.0))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make: Callable[[], Loss], dtype: torch.dtype) -> None:
    logits, target = example()
    half = (logits * 1000).to(dtype)
    expected = make()(half.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make()(half, target)
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert torch.equal(found, expected)


@every_loss
def test_the_memory_layout_does_not_matter(make: Callable[[], Loss]) -> None:
    logits, target = example()
    value, gradient = value_and_gradient(make(), logits, target)
    last = logits.to(memory_format=torch.channels_last)
    strided = target.transpose(1, 2).contiguous().transpose(1, 2)
    value_last, gradient_last = value_and_gradient(make(), last, strided)
    torch.testing.assert_close(value_last, value)
    torch.testing.assert_close(gradient_last, gradient)


@every_loss
def test_a_class_that_the_logits_do_not_have_is_refused(make: Callable[[], Loss]) -> None:
    logits, target = example()
    target[0, 0, 0] = C + 1
    with pytest.raises((IndexError, RuntimeError)):
        make()(logits, target)


@every_loss
def test_logits_of_another_size_are_refused(make: Callable[[], Loss]) -> None:
    logits, target = example()
    with pytest.raises(ConfigError) as error:
        make()(logits.transpose(2, 3), target)
    assert "the model's logits are (2, 5, 7, 9), the target is (2, 9, 7)" in str(error.value)
    assert "resize the logits to the input's size" in str(error.value)


@every_loss
def test_descending_the_gradient_lowers_the_loss(make: Callable[[], Loss]) -> None:
    logits, target = example()
    value, gradient = value_and_gradient(make(), logits, target)
    assert make()(logits - 0.1 * gradient / gradient.norm(), target) < value


@pytest.mark.parametrize("make", PIXEL.values(), ids=PIXEL.keys())
def test_micro_batches_add_up_to_the_whole_step(make: Callable[[], Loss]) -> None:
    parts = [example(1, void=0.9, seed=1), example(3, void=0.0, seed=2), example(2, void=1.0, seed=3)]
    logits = torch.cat([part[0] for part in parts])
    target = torch.cat([part[1] for part in parts])
    loss = make()
    value, gradient = value_and_gradient(loss, logits, target)
    count = torch.stack([loss.count(part[1]) for part in parts]).sum()
    summed = torch.zeros(())
    gradients = []
    for part_logits, part_target in parts:
        part_logits.requires_grad_()
        part_value = loss(part_logits, part_target, count)
        gradients += torch.autograd.grad(part_value, part_logits)
        summed += part_value.detach()
    torch.testing.assert_close(summed, value)
    torch.testing.assert_close(torch.cat(gradients), gradient)


@pytest.mark.parametrize("make", REGION.values(), ids=REGION.keys())
def test_a_region_loss_counts_one_per_call(make: Callable[[], Loss]) -> None:
    logits, target = example()
    loss = make()
    assert loss.count(target) == 1
    assert loss.count(torch.full_like(target, 255)) == 1
    assert loss(logits, target, count=torch.tensor(4.0)) == loss(logits, target) / 4


def test_the_weight_is_kept_for_the_sum_and_not_applied() -> None:
    logits, target = example()
    assert CrossEntropy(weight=3.0).weight == 3.0
    assert CrossEntropy(weight=3.0)(logits, target) == CrossEntropy()(logits, target)


@pytest.mark.gpu
@every_loss
def test_a_gpu_gives_the_same_twice_and_as_the_cpu(make: Callable[[], Loss]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits, target = example()
    value, gradient = value_and_gradient(make(), logits, target)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (value_and_gradient(make().cuda(), logits.cuda(), target.cuda()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[0].cpu(), value)
    torch.testing.assert_close(first[1].cpu(), gradient)

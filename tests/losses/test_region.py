"""Dice, Tversky and Lovász against one-hot and sorting references in float64, and what defines them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segtrain.losses.base import Loss
from segtrain.losses.region import Dice, Lovasz, Tversky

C = 5


def example(seed: int = 0, void: float = 0.3, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Class 4 is never in the target."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, C, 8, 6, generator=generator) * scale
    target = torch.randint(0, C - 1, (2, 8, 6), generator=generator)
    return logits.requires_grad_(), target.masked_fill(torch.rand(2, 8, 6, generator=generator) < void, 255)


def flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) in float64 and labels (N,) of the labelled pixels."""
    valid = target != 255
    return logits.double().softmax(1).permute(0, 2, 3, 1)[valid], target[valid]


def tversky_by_one_hot(logits: Tensor, target: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    probs, labels = flat(logits, target)
    truth = F.one_hot(labels, logits.shape[1]).double()
    hits = (probs * truth).sum(0)
    false_positives, false_negatives = (probs * (1 - truth)).sum(0), ((1 - probs) * truth).sum(0)
    index = (hits + smooth) / (hits + alpha * false_positives + beta * false_negatives + smooth)
    return 1 - index[truth.sum(0) > 0].mean()


def lovasz_by_definition(logits: Tensor, target: Tensor, every_class: bool) -> Tensor:
    """Sorts the errors of each class and weighs each by the Jaccard loss that its pixel adds."""
    probs, labels = flat(logits, target)
    losses = []
    for index in range(logits.shape[1]):
        truth = labels == index
        if not every_class and not truth.any():
            continue
        errors = (truth.double() - probs[:, index]).abs()
        order = errors.argsort(descending=True, stable=True)
        before, loss = 0.0, torch.zeros((), dtype=torch.float64)
        wrong = torch.zeros_like(truth)
        for pixel in order.tolist():
            wrong[pixel] = True
            predicted = truth ^ wrong
            after = 1 - (truth & predicted).sum().item() / (truth | predicted).sum().clamp(min=1).item()
            loss = loss + errors[pixel] * (after - before)
            before = after
        losses.append(loss)
    return torch.stack(losses).mean()


def assert_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    """Equal values and equal gradients."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "smooth"), [(0.3, 0.7, 1.0), (1.0, 1.0, 0.01), (0.0, 2.0, 1.0), (0.0, 0.0, 1e-3)]
)
@pytest.mark.parametrize("void", [0.0, 0.6])
def test_tversky_is_its_one_hot_formula(alpha: float, beta: float, smooth: float, void: float) -> None:
    logits, target = example(void=void)
    found = Tversky(alpha=alpha, beta=beta, smooth=smooth)(logits, target)
    assert_same(found, tversky_by_one_hot(logits, target, alpha, beta, smooth), logits)


@pytest.mark.parametrize("smooth", [1e-6, 1.0, 50.0])
def test_dice_is_its_one_hot_formula_and_tversky_with_halves(smooth: float) -> None:
    logits, target = example()
    probs, labels = flat(logits, target)
    truth = F.one_hot(labels, C).double()
    overlap = 2 * ((probs * truth).sum(0) + smooth) / (probs.sum(0) + truth.sum(0) + 2 * smooth)
    dice = Dice(smooth=smooth)(logits, target)
    assert_same(dice, 1 - overlap[truth.sum(0) > 0].mean(), logits)
    assert torch.equal(dice, Tversky(alpha=0.5, beta=0.5, smooth=smooth)(logits, target))


def test_overlaps_keep_their_digits_over_millions_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(1, 1200, 3000, generator=generator) < 1e-4).long()
    logits = torch.randn(1, 2, 1200, 3000, generator=generator) * 0.1
    logits[:, 0] += 2.0
    expected = tversky_by_one_hot(logits, target, 0.5, 0.5, 1.0)
    assert Dice()(logits, target).item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize("void", [0.0, 0.6])
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lovasz_is_its_definition(void: float, classes: str, seed: int) -> None:
    logits, target = example(seed, void)
    found = Lovasz(classes=classes)(logits, target)
    assert_same(found, lovasz_by_definition(logits, target, classes == "all"), logits)


@pytest.mark.parametrize("classes", ["present", "all"])
def test_lovasz_does_not_depend_on_how_ties_are_ordered(classes: str) -> None:
    _, target = example()
    found = Lovasz(classes=classes)(torch.zeros(2, C, 8, 6), target)
    shuffled = Lovasz(classes=classes)(torch.zeros(2, C, 8, 6), target.flip(1, 2))
    assert found.item() == pytest.approx(shuffled.item(), rel=1e-6)
    exact = lovasz_by_definition(torch.zeros(2, C, 8, 6), target, classes == "all")
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


@given(seed=st.integers(0, 10_000), void=st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_lovasz_of_certain_predictions_is_one_minus_mean_iou(seed: int, void: float) -> None:
    logits, target = example(seed, void)
    valid = target != 255
    if not valid.any():
        return
    prediction = logits.argmax(1)
    ious = []
    for index in target[valid].unique():
        truth, found = (target == index) & valid, (prediction == index) & valid
        ious.append((truth & found).sum().item() / (truth | found).sum().item())
    certain = F.one_hot(prediction, C).permute(0, 3, 1, 2) * 500.0
    expected = 1 - sum(ious) / len(ious)
    assert Lovasz()(certain, target).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


EVERY = [Dice(), Dice(smooth=1e-6), Tversky(), Tversky(alpha=0.0, beta=3.0), Lovasz(), Lovasz(classes="all")]


@pytest.mark.parametrize("loss", EVERY)
@given(seed=st.integers(0, 10_000), void=st.floats(0, 1), scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_values_lie_between_0_and_1(loss: Loss, seed: int, void: float, scale: float) -> None:
    logits, target = example(seed, void, scale)
    value = loss(logits, target)
    assert 0 <= value.item() <= 1 + 1e-6
    assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


@pytest.mark.parametrize("loss", EVERY)
def test_a_perfect_prediction_costs_nothing(loss: Loss) -> None:
    target = example(void=0.0)[1]
    logits = F.one_hot(target, C).permute(0, 3, 1, 2) * 200.0
    assert loss(logits, target).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", EVERY[:2] + EVERY[4:])
def test_a_wholly_wrong_prediction_costs_almost_everything(loss: Loss) -> None:
    target = example(void=0.0)[1]
    logits = F.one_hot((target + 1) % (C - 1), C).permute(0, 3, 1, 2) * 200.0
    cost = loss(logits, target).item()
    # `all` adds class 4, which nothing predicts: 4 of 5 classes are wrong.
    assert cost == pytest.approx(0.8 if getattr(loss, "classes", "") == "all" else 1.0, abs=0.06)


def test_classes_that_the_target_lacks_are_left_out() -> None:
    logits, target = example()
    without = torch.cat([logits[:, :4], torch.full_like(logits[:, :1], -1e4)], dim=1)
    for loss in (Dice(), Tversky(), Lovasz()):
        assert loss(without, target).item() == pytest.approx(loss(logits[:, :4], target).item(), rel=1e-6)


def test_lovasz_of_an_absent_class_is_its_highest_probability() -> None:
    logits, target = example()
    present = Lovasz()(logits, target) * (C - 1)
    every = Lovasz(classes="all")(logits, target) * C
    highest = logits.softmax(1)[:, 4][target != 255].max()
    assert (every - present).item() == pytest.approx(highest.item(), rel=1e-5)


def test_rounding_never_makes_a_loss_negative() -> None:
    # Class 0 has no false positives, only misses of every size; class 1 is not in the target.
    target = torch.zeros(1, 97, 101, dtype=torch.int64)
    for seed in range(10):
        logits = torch.randn(1, 2, 97, 101, generator=torch.Generator().manual_seed(seed))
        assert 0 <= Tversky(alpha=1.0, beta=0.0)(logits, target).item() < 1e-6

"""Cross-entropy, OHEM and focal loss against torch, float64 references and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segtrain.losses.pixel import CrossEntropy, Focal, OhemCrossEntropy

C = 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0])


def example(seed: int = 0, void: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, C, 8, 6, generator=generator) * 2
    target = torch.randint(0, C, (2, 8, 6), generator=generator)
    return logits.requires_grad_(), target.masked_fill(torch.rand(2, 8, 6, generator=generator) < void, 255)


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs_mean(smoothing: float, weights: Tensor | None) -> None:
    logits, target = example()
    loss = CrossEntropy(label_smoothing=smoothing)
    if weights is not None:
        loss.use_class_weights(weights)
    expected = F.cross_entropy(logits, target, weight=weights, ignore_index=255, label_smoothing=smoothing)
    found = loss(logits, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


def test_the_count_is_the_weight_of_the_labelled_pixels() -> None:
    target = torch.tensor([[[0, 0, 1, 2, 3, 255, 255]]])
    loss = CrossEntropy()
    assert loss.count(target) == 5
    loss.use_class_weights(WEIGHTS)
    assert loss.count(target) == 0.5 + 0.5 + 1.0 + 2.0 + 0.0


def test_classes_without_weight_alone_give_zero() -> None:
    logits, target = example()
    loss = CrossEntropy(label_smoothing=0.5)
    loss.use_class_weights(WEIGHTS)
    found = loss(logits, torch.full_like(target, 3))
    assert found == 0
    assert torch.equal(gradient(found, logits), torch.zeros_like(logits))


def test_class_weights_are_no_part_of_a_checkpoint() -> None:
    loss = CrossEntropy()
    loss.use_class_weights(WEIGHTS.double())
    assert loss.state_dict() == {}
    assert loss.class_weights is not None
    assert loss.class_weights.dtype == torch.float32


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_with_threshold_1_is_cross_entropy(weights: Tensor | None) -> None:
    logits, target = example()
    # A pixel of probability 1, and one of probability 0.
    spikes = torch.zeros_like(logits)
    spikes[0, target[0, 0, 0] % C, 0, 0] = 200
    spikes[0, (target[0, 1, 1] + 1) % C, 1, 1] = 200
    logits = (logits + spikes).detach().requires_grad_()
    ohem, ce = OhemCrossEntropy(threshold=1.0, min_kept=1), CrossEntropy()
    if weights is not None:
        ohem.use_class_weights(weights)
        ce.use_class_weights(weights)
    found, expected = ohem(logits, target), ce(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-6, atol=1e-12)


def ohem_by_sorting(logits: Tensor, target: Tensor, threshold: float, min_kept: int) -> float:
    """The definition, pixel by pixel in float64."""
    probs = logits.detach().double().softmax(1).permute(0, 2, 3, 1).reshape(-1, C).numpy()
    labels = target.flatten().numpy()
    true = np.sort([p[c] for p, c in zip(probs, labels, strict=True) if c != 255])
    kept = max(int((true <= threshold).sum()), min(min_kept, len(true)))
    return float(-np.log(true[:kept]).sum() / len(true))


@given(
    seed=st.integers(0, 10_000),
    void=st.floats(0, 0.9),
    threshold=st.floats(0, 1),
    min_kept=st.integers(1, 120),
)
@settings(max_examples=60, deadline=None)
def test_ohem_keeps_the_hardest_pixels(seed: int, void: float, threshold: float, min_kept: int) -> None:
    logits, target = example(seed, void)
    if (target == 255).all():
        return
    found = OhemCrossEntropy(threshold=threshold, min_kept=min_kept)(logits, target)
    assert found.item() == pytest.approx(ohem_by_sorting(logits, target, threshold, min_kept), rel=1e-4)


def test_ohem_gives_easy_pixels_no_gradient() -> None:
    logits, target = example()
    found = gradient(OhemCrossEntropy(threshold=0.3, min_kept=1)(logits, target), logits)
    true = logits.softmax(1).gather(1, target.masked_fill(target == 255, 0).unsqueeze(1)).squeeze(1)
    touched = (found != 0).any(1)
    assert torch.equal(touched, (true <= 0.3) & (target != 255))
    assert touched.any()
    assert not touched.all()


def test_ohem_keeps_ties_together() -> None:
    _, target = example()
    logits = torch.zeros(2, C, 8, 6)
    assert OhemCrossEntropy(threshold=0.0, min_kept=1)(logits, target).item() == pytest.approx(math.log(C))


def test_ohem_judges_without_class_weights() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).T.view(1, 2, 1, 2)
    target = torch.zeros(1, 1, 2, dtype=torch.int64)
    target[0, 0, 0] = 1
    loss = OhemCrossEntropy(threshold=0.0, min_kept=1)
    loss.use_class_weights(torch.tensor([100.0, 1.0]))
    hardest = -math.log(1 / (1 + math.exp(3)))
    assert loss(logits, target).item() == pytest.approx(hardest / 101)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_is_cross_entropy(weights: Tensor | None) -> None:
    logits, target = example()
    focal, ce = Focal(gamma=0.0), CrossEntropy()
    if weights is not None:
        focal.use_class_weights(weights)
        ce.use_class_weights(weights)
    found, expected = focal(logits, target), ce(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_focal_is_its_formula(gamma: float, alpha: float | None) -> None:
    logits, target = example()
    found = Focal(gamma=gamma, alpha=alpha)(logits, target)
    exact = logits.detach().double().requires_grad_()
    log_probs = exact.log_softmax(1).permute(0, 2, 3, 1)[target != 255]
    labels = target[target != 255]
    log_true = log_probs[torch.arange(len(labels)), labels]
    balance = torch.ones(len(labels)) if alpha is None else torch.where(labels == 0, 1 - alpha, alpha)
    expected = -(balance * (1 - log_true.exp()) ** gamma * log_true).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, exact).float())


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
def test_focal_stays_finite_for_saturated_logits(gamma: float) -> None:
    target = torch.tensor([[[0, 1]]])
    logits = torch.tensor([[[[500.0, 500.0]], [[-500.0, -500.0]]]], requires_grad=True)
    found = Focal(gamma=gamma)(logits, target)
    # One pixel is right with probability 1 (loss 0), one wrong with probability 1 (loss 1000).
    assert found.item() == pytest.approx(500.0)
    assert gradient(found, logits).flatten().tolist() == pytest.approx([0.0, 0.5, 0.0, -0.5])

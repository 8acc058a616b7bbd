"""The border weight map against its definition, pixel by pixel, and what it does to the loss."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segtrain.errors import ConfigError
from segtrain.losses.border import BorderCrossEntropy, border_term
from segtrain.losses.pixel import CrossEntropy


def by_definition(target: np.ndarray, w0: float, sigma: float, background: int, connectivity: int) -> np.ndarray:
    """Every pixel against every pixel of every cell, in float64."""
    structure = np.ones((3, 3)) if connectivity == 8 else None
    cells = []
    for label in set(np.unique(target)) - {background, 255}:
        components, count = ndimage.label(target == label, structure)
        cells += [np.argwhere(components == cell) for cell in range(1, count + 1)]
    term = np.zeros(target.shape)
    for pixel in np.argwhere(target == background):
        distances = sorted(np.sqrt(((cell - pixel) ** 2).sum(1)).min() for cell in cells)
        if len(distances) > 1:
            term[tuple(pixel)] = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return term


def scattered(seed: int, height: int, width: int, labels: int = 3, share: float = 0.1) -> np.ndarray:
    """Small blobs of several classes, touching at sides and corners, with some pixels unlabelled."""
    rng = np.random.default_rng(seed)
    target = np.where(rng.random((height, width)) < share, rng.integers(1, labels, (height, width)), 0)
    target = np.where(rng.random((height, width)) < 0.5, ndimage.grey_dilation(target, (2, 2)), target)
    return np.where(rng.random((height, width)) < 0.05, 255, target).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    sigma=st.floats(0.3, 8),
    background=st.integers(0, 2),
    connectivity=st.sampled_from([4, 8]),
)
def test_the_term_is_its_definition(
    seed: int, height: int, width: int, sigma: float, background: int, connectivity: int
) -> None:
    target = scattered(seed, height, width)
    found = border_term(target, 10.0, sigma, background, connectivity)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    assert np.abs(found - by_definition(target, 10.0, sigma, background, connectivity)).max() < 1e-5


def test_cells_measured_in_their_surroundings_miss_nothing() -> None:
    """An image many reaches wide, against a distance transform of the whole of it for each cell."""
    target = scattered(3, 150, 170, labels=2, share=0.002)
    components, count = ndimage.label(target == 1, np.ones((3, 3)))
    assert count > 30
    distances = [ndimage.distance_transform_edt(components != cell) for cell in range(1, count + 1)]
    nearest = np.sort(distances, axis=0)[:2].sum(0)
    expected = np.where(target == 0, 10 * np.exp(-(nearest**2) / (2 * 3.0**2)), 0)
    assert 1 < expected.max() < 10
    assert np.abs(border_term(target, 10.0, 3.0) - expected).max() < 1e-5


def test_hundreds_of_cells_take_a_moment() -> None:
    grid = np.zeros((512, 512), np.uint8)
    grid[np.add.outer(np.arange(0, 500, 20), np.arange(16)).ravel()] = 1
    grid[:, np.add.outer(np.arange(16, 500, 20), np.arange(4)).ravel()] = 0
    assert ndimage.label(grid)[1] > 500
    border_term(grid, 10.0, 5.0)
    spent = min(_seconds(grid) for _ in range(3))
    assert spent < 1.0


def _seconds(target: np.ndarray) -> float:
    start = time.process_time()
    border_term(target, 10.0, 5.0)
    return time.process_time() - start


def two_cells(gap: int) -> torch.Tensor:
    target = torch.zeros(1, 9, 20 + gap, dtype=torch.int64)
    target[:, :, :10] = 1
    target[:, :, 10 + gap :] = 1
    return target


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_a_straight_gap_weighs_by_its_width_alone(gap: int) -> None:
    # d1 + d2 is gap + 1 anywhere in it, as distances run between the centers of pixels.
    weights = BorderCrossEntropy(w0=10, sigma=5).border_weights(two_cells(gap))
    expected = 10 * np.exp(-((gap + 1) ** 2) / 50)
    assert torch.allclose(weights[:, :, 10 : 10 + gap], torch.tensor(expected, dtype=torch.float32))
    assert not weights[:, :, :10].any()
    assert not weights[:, :, 10 + gap :].any()


def test_fewer_than_two_cells_is_cross_entropy() -> None:
    torch.manual_seed(0)
    for target in (torch.zeros(2, 8, 9), torch.full((2, 8, 9), 255), F.pad(torch.ones(2, 4, 5), (2, 2, 2, 2))):
        logits = torch.randn(2, 3, *target.shape[1:])
        for weights in (None, torch.tensor([0.5, 2.0, 1.0])):
            border, plain = BorderCrossEntropy(), CrossEntropy()
            if weights is not None:
                border.use_class_weights(weights)
                plain.use_class_weights(weights)
            torch.testing.assert_close(border(logits, target.long()), plain(logits, target.long()))


def test_each_image_of_a_batch_has_its_own_cells() -> None:
    # One cell in each image is no pair of cells.
    target = torch.zeros(2, 8, 8, dtype=torch.int64)
    target[0, :, 0] = target[1, :, 3] = 1
    assert not BorderCrossEntropy().border_weights(target).any()
    both = torch.stack([two_cells(2)[0], two_cells(2)[0].flip(0).roll(1, 1)])
    weights = BorderCrossEntropy().border_weights(both)
    assert torch.equal(weights[1], BorderCrossEntropy().border_weights(both[1:])[0])


def test_the_loss_is_the_weighted_sum_over_the_class_weights() -> None:
    torch.manual_seed(0)
    target = torch.from_numpy(np.stack([scattered(seed, 20, 22) for seed in (1, 2)])).long()
    logits = torch.randn(2, 3, 20, 22, requires_grad=True)
    table = torch.tensor([0.5, 1.5, 3.0])
    loss = BorderCrossEntropy(w0=7, sigma=2)
    loss.use_class_weights(table)
    labelled = target != 255
    classes = target.clamp(max=2)
    w_c = table[classes] * labelled
    border = np.stack([by_definition(one.numpy().astype(np.uint8), 7, 2, 0, 8) for one in target])
    losses = -logits.log_softmax(1).gather(1, classes[:, None])[:, 0]
    expected = (losses * (w_c + torch.from_numpy(border)) * labelled).sum() / w_c.sum()
    found = loss(logits, target)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(found, logits)
    assert not gradient.movedim(1, -1)[~labelled].any()
    assert torch.equal(loss.count(target), w_c.sum())


def test_unlabelled_pixels_are_of_no_cell_and_weigh_nothing() -> None:
    target = two_cells(4)
    target[:, :, 11:13] = 255
    weights = BorderCrossEntropy().border_weights(target)
    assert not weights[target == 255].any()
    # The hole is no third cell: what is left of the gap weighs as before.
    assert torch.equal(weights[target == 0], BorderCrossEntropy().border_weights(two_cells(4))[target == 0])


def test_touching_cells_of_two_classes_are_two() -> None:
    target = np.zeros((5, 12), np.uint8)
    target[2:, 2:6] = 1
    target[2:, 6:10] = 2
    assert border_term(target, 10.0, 5.0)[1, 6] > 5
    assert not border_term(np.minimum(target, 1), 10.0, 5.0).any()


def test_connectivity_decides_whether_corners_join() -> None:
    target = np.zeros((6, 6), np.uint8)
    target[:3, :3] = target[3:, 3:] = 1
    assert not border_term(target, 10.0, 5.0, connectivity=8).any()
    assert border_term(target, 10.0, 5.0, connectivity=4).max() > 5


def test_a_background_that_is_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="the background is class 3, and there are 3 classes") as caught:
        BorderCrossEntropy(background=3)(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    assert "loss.terms.border.background=0" in str(caught.value)

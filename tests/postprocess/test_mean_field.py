"""The exact mean field equals what was recorded with weights and figures by hand (goldens/dense_crf.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.postprocess.mean_field import gaussian_kernel, mean_field, positions

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "dense_crf.json").read_text())
IMAGE = torch.tensor(GOLDENS["image"])
PROBS = torch.tensor(GOLDENS["prob"], dtype=torch.float64)
CASES = [(case, variant) for case in GOLDENS if isinstance(GOLDENS[case], dict) for variant in GOLDENS[case]]
RECORDED = [(case, variant) for case, variant in CASES if isinstance(GOLDENS[case][variant], dict)]
EXACT = [(case, variant) for case, variant in RECORDED if "Q" in GOLDENS[case][variant]]


def kernel(case: dict[str, Any], normalization: Any, include_self: bool) -> Tensor:
    place = positions(*IMAGE.shape[:2])
    color = IMAGE.flatten(0, 1).double()
    bilateral = torch.cat([place / case["bilateral_sxy"], color / case["bilateral_srgb"]], 1)
    smooth = gaussian_kernel(place / case["gaussian_sxy"], normalization, include_self=include_self)
    alike = gaussian_kernel(bilateral, normalization, include_self=include_self)
    return case["gaussian_compat"] * smooth + case["bilateral_compat"] * alike


def test_the_file_holds_what_is_expected() -> None:
    assert len(EXACT) == 9
    assert {variant for _, variant in EXACT} == {
        "symmetric_it1",
        "symmetric_it5",
        "after_it10",
        "none_it5",
        "symmetric_it5_noself",
    }


@pytest.mark.parametrize(("case", "variant"), EXACT)
def test_every_variant_is_met(case: str, variant: str) -> None:
    normalization, iterations, *rest = variant.split("_")
    weights = kernel(GOLDENS[case], normalization, include_self=rest != ["noself"])
    unary = PROBS.clamp(1e-5, 1).log().flatten(1)
    q = mean_field(unary, weights, int(iterations.removeprefix("it"))).exp().view_as(PROBS)
    recorded = torch.tensor(GOLDENS[case][variant]["Q"], dtype=torch.float64)
    assert (q - recorded).abs().max() < 1e-10
    assert torch.equal(q.argmax(0), torch.tensor(GOLDENS[case][variant]["map"]))


def test_positions_go_row_by_row_x_first() -> None:
    assert positions(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_a_kernel_by_hand() -> None:
    near, far = math.exp(-0.5), math.exp(-2)
    features = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    raw = torch.tensor([[1, near, far], [near, 1, near], [far, near, 1]], dtype=torch.float64)
    assert torch.allclose(gaussian_kernel(features, "none"), raw, atol=1e-15)
    sums = raw.sum(1)
    assert torch.allclose(gaussian_kernel(features, "after"), raw / sums[:, None], atol=1e-15)
    wanted = raw / (sums[:, None] * sums).sqrt()
    assert torch.allclose(gaussian_kernel(features, "symmetric"), wanted, atol=1e-15)
    others = raw - torch.eye(3)
    assert torch.allclose(gaussian_kernel(features, "none", include_self=False), others, atol=1e-15)
    found = gaussian_kernel(features, "after", include_self=False)
    assert torch.allclose(found, others / others.sum(1, keepdim=True), atol=1e-15)


@pytest.mark.parametrize("normalization", ["symmetric", "after", "none"])
def test_a_lone_pixel_without_itself_hears_nothing(normalization: Any) -> None:
    lone = gaussian_kernel(torch.zeros(1, 2).double(), normalization, include_self=False)
    assert lone.tolist() == [[0]]
    assert gaussian_kernel(torch.zeros(1, 2).double(), normalization).tolist() == [[1]]


def test_one_update_by_hand() -> None:
    """Two pixels, two classes: pixel 0 hears 2 Q_1, pixel 1 hears 3 Q_0."""
    p = torch.tensor([[0.9, 0.4], [0.1, 0.6]], dtype=torch.float64)
    weights = torch.tensor([[0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    q = mean_field(p.log(), weights, 1).exp()
    first = 0.9 * math.exp(2 * 0.4) / (0.9 * math.exp(2 * 0.4) + 0.1 * math.exp(2 * 0.6))
    second = 0.4 * math.exp(3 * 0.9) / (0.4 * math.exp(3 * 0.9) + 0.6 * math.exp(3 * 0.1))
    assert q[0].tolist() == pytest.approx([first, second], abs=1e-15)


def test_constants_per_pixel_change_nothing_and_certain_pixels_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    weights = torch.rand(20, 20, dtype=torch.float64, generator=generator)
    moved = unary + torch.randn(20, dtype=torch.float64, generator=generator)
    assert torch.allclose(mean_field(unary, weights, 4), mean_field(moved, weights, 4), atol=1e-12)
    log_q = mean_field(1e4 * unary, 1e4 * weights, 4)
    assert torch.isfinite(log_q).all()
    assert torch.allclose(log_q.exp().sum(0), torch.ones(20).double())

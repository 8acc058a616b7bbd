"""Both CRFs from logits to logits: the exact one meets the recorded figures, the lattice meets the exact one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain import signatures
from segtrain.errors import ConfigError
from segtrain.postprocess.crf import DenseCRF, ExactCRF, FullyConnectedCRF

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "dense_crf.json").read_text())
IMAGE = torch.tensor(GOLDENS["image"], dtype=torch.uint8)[None]
LOGITS = torch.tensor(GOLDENS["prob"], dtype=torch.float64).log()[None]
EXACT = [
    (case, variant)
    for case, figures in GOLDENS.items()
    if isinstance(figures, dict)
    for variant in figures
    if variant[-1].isdigit() and "lattice" not in variant
]
PUBLISHED: dict[str, dict[str, Any]] = {
    "readme": {
        "gaussian_sigma": 3,
        "bilateral_sigma": 80,
        "bilateral_rgb": 13,
        "bilateral_weight": 10,
        "iterations": 5,
    },
    "v1": {"gaussian_sigma": 3, "bilateral_sigma": 49, "bilateral_rgb": 5},
    "v2_vgg": {"gaussian_sigma": 2, "gaussian_weight": 2, "bilateral_sigma": 65},
    "v2_resnet": {},
}


@pytest.fixture
def lattice() -> type[DenseCRF]:
    pytest.importorskip("pydensecrf.densecrf", reason="the extra crf is not installed")
    return DenseCRF


@pytest.fixture(params=["exact", "lattice"])
def crf(request: pytest.FixtureRequest) -> type[FullyConnectedCRF]:
    return ExactCRF if request.param == "exact" else request.getfixturevalue("lattice")


def settings(case: str, variant: str = "symmetric_it5") -> dict[str, Any]:
    figures = GOLDENS[case]
    normalization, iterations = variant.split("_it")
    return {
        "iterations": int(iterations),
        "gaussian_sigma": figures["gaussian_sxy"],
        "gaussian_weight": figures["gaussian_compat"],
        "bilateral_sigma": figures["bilateral_sxy"],
        "bilateral_rgb": figures["bilateral_srgb"],
        "bilateral_weight": figures["bilateral_compat"],
        "normalization": normalization,
    }


def scene(height: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """A smooth color image (1, H, W, 3) uint8 and smooth logits (1, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3 + classes, 5, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    color, logits = smooth[0, :3].permute(1, 2, 0), smooth[:, 3:]
    color = (color - color.min()) / (color.max() - color.min())
    return (255 * color).round().to(torch.uint8)[None], 2 * logits / logits.std()


def step(height: int = 24, width: int = 32, edge: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Two colors that meet at column `edge`, logits that place it four columns too far left, and the true labels."""
    truth = (torch.arange(width) >= edge).long().expand(1, height, width)
    image = torch.tensor([[180, 60, 40], [50, 90, 160]], dtype=torch.uint8)[truth]
    guess = (torch.arange(width) - (edge - 4.5)) / 3
    return image, torch.stack([-guess, guess]).view(1, 2, 1, width).expand(1, 2, height, width), truth


# --- against the figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "variant"), EXACT)
def test_the_exact_one_meets_every_figure(case: str, variant: str) -> None:
    log_q = ExactCRF(**settings(case, variant))(IMAGE, LOGITS)
    recorded = torch.tensor(GOLDENS[case][variant]["Q"], dtype=torch.float64)
    assert log_q.dtype == torch.float64
    assert (log_q.softmax(1)[0] - recorded).abs().max() < 1e-9
    assert torch.equal(log_q[0].argmax(0), torch.tensor(GOLDENS[case][variant]["map"]))


@pytest.mark.parametrize("case", ["small", "deeplab_v1_like", "deeplab_v2_like"])
def test_the_lattice_is_as_far_from_the_figures_as_recorded(lattice: type[DenseCRF], case: str) -> None:
    recorded = GOLDENS[case]["pydensecrf_lattice_vs_exact_it5"]
    exact = torch.tensor(GOLDENS[case]["symmetric_it5"]["Q"], dtype=torch.float64)
    q = lattice(**settings(case))(IMAGE, LOGITS).softmax(1)[0]
    assert float((q - exact).abs().max()) == pytest.approx(recorded["max_abs_diff"], abs=1e-5)
    assert int((q.argmax(0) != exact.argmax(0)).sum()) == recorded["map_disagreements"]
    after = torch.tensor(GOLDENS[case]["after_it10"]["Q"], dtype=torch.float64)
    q = lattice(**settings(case, "after_it10"))(IMAGE, LOGITS).softmax(1)[0]
    assert (q - after).abs().max() < 0.005
    assert torch.equal(q.argmax(0), after.argmax(0))


@pytest.mark.parametrize("normalization", ["symmetric", "after"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_lattice_gives_the_exact_labels_on_larger_images(
    lattice: type[DenseCRF], name: str, normalization: Any
) -> None:
    given: dict[str, Any] = {**PUBLISHED[name], "normalization": normalization}
    agreed, moved = [], []
    for seed in range(3):
        image, logits = scene(32, 40, 4, seed)
        exact = ExactCRF(**given)(image, logits)
        found = lattice(**given)(image, logits)
        agreed.append((exact.argmax(1) == found.argmax(1)).float().mean())
        moved.append((exact.argmax(1) != logits.argmax(1)).float().mean())
    # The README's kernels are strong, and wider than this image, where a lattice is at its worst.
    assert sum(agreed) / 3 > (0.95 if name == "readme" else 0.97)
    assert sum(moved) / 3 > 2 * (1 - sum(agreed) / 3), "the CRF must change more than the two differ by"


# --- what it does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["symmetric", "after"])
def test_labels_move_to_the_edge_of_the_colors(crf: type[FullyConnectedCRF], normalization: Any) -> None:
    image, logits, truth = step()
    assert (logits.argmax(1) != truth).float().mean() > 0.1
    refined = crf(normalization=normalization)(image, logits)
    assert torch.equal(refined.argmax(1), truth)


def test_without_the_colors_kernel_labels_stay(crf: type[FullyConnectedCRF]) -> None:
    image, logits, truth = step()
    smooth = crf(bilateral_weight=0)(image, logits)
    assert (smooth.argmax(1) != truth).float().mean() > 0.1
    assert torch.equal(smooth, crf(bilateral_weight=0)(torch.zeros_like(image), logits)), "colors play no part"


def test_without_kernels_it_is_the_clipped_softmax(crf: type[FullyConnectedCRF]) -> None:
    logits = torch.tensor([30.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 5, 4)
    q = crf(gaussian_weight=0, bilateral_weight=0)(torch.zeros(1, 5, 4, 3, dtype=torch.uint8), logits).softmax(1)
    assert q[0, :, 2, 2].tolist() == pytest.approx([1 / (1 + 2e-5), 1e-5, 1e-5], rel=1e-3)


def test_a_batch_is_its_images_one_by_one_and_inputs_stay(crf: type[FullyConnectedCRF]) -> None:
    scenes = [scene(9, 13, 3, seed) for seed in range(3)]
    image, logits = (torch.cat(parts) for parts in zip(*scenes, strict=True))
    kept = image.clone(), logits.clone()
    batch = crf()(image, logits)
    assert batch.shape == logits.shape
    assert torch.equal(batch, torch.cat([crf()(*one) for one in scenes]))
    assert torch.equal(image, kept[0])
    assert torch.equal(logits, kept[1])


def test_gray_counts_as_three_equal_channels_and_floats_are_rounded(crf: type[FullyConnectedCRF]) -> None:
    image, logits = scene(12, 15, 3, 0)
    gray = image[..., :1]
    assert torch.equal(crf()(gray, logits), crf()(gray.repeat(1, 1, 1, 3), logits))
    nearly = image.float() + torch.linspace(-0.49, 0.49, 15)[:, None]
    assert torch.equal(crf()(nearly, logits), crf()(image, logits))
    beyond = torch.where(image > 128, 300.0, -20.0)
    assert torch.equal(crf()(beyond, logits), crf()(torch.where(image > 128, 255, 0).to(torch.uint8), logits))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (2, 3)])
def test_any_size_and_precision(crf: type[FullyConnectedCRF], size: tuple[int, int], dtype: Any, wanted: Any) -> None:
    image, logits = scene(*size, 3, 0) if min(size) > 1 else (torch.zeros(1, *size, 3), torch.randn(1, 3, *size))
    with torch.inference_mode():
        log_q = crf()(image, logits.to(dtype))
    assert log_q.shape == logits.shape
    assert log_q.dtype == wanted
    assert torch.isfinite(log_q).all()
    assert torch.allclose(log_q.exp().sum(1), torch.ones(1, *size).to(wanted), atol=1e-5)


def test_layout_of_the_tensors_does_not_matter(crf: type[FullyConnectedCRF]) -> None:
    image, logits = scene(10, 14, 3, 1)
    turned = image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not turned.is_contiguous()
    found = crf()(turned, logits.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, crf()(image, logits), atol=1e-5)


def test_autocast_changes_nothing(crf: type[FullyConnectedCRF]) -> None:
    image, logits = scene(10, 14, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = crf()(image, logits)
    assert torch.equal(found, crf()(image, logits))


@pytest.mark.gpu
def test_tensors_of_a_gpu_come_back_to_it(crf: type[FullyConnectedCRF]) -> None:
    image, logits = scene(10, 14, 3, 1)
    found = crf()(image.cuda(), logits.cuda())
    assert found.is_cuda
    assert torch.allclose(found.cpu(), crf()(image, logits), atol=1e-4)


def test_the_logarithm_of_an_impossible_class_is_finite(lattice: type[DenseCRF]) -> None:
    image = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    logits = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1).repeat(1, 1, 16, 16)
    log_q = lattice(gaussian_weight=300, bilateral_weight=300)(image, logits)
    assert torch.isfinite(log_q).all()
    assert (log_q[:, 1] < -87).all()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["gaussian_sigma", "bilateral_sigma", "bilateral_rgb"])
@pytest.mark.parametrize("value", [0, -1, 1e-8, 0.09])
def test_a_sigma_that_would_break_the_lattice_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"a sigma below 0\.1"):
        DenseCRF(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gaussian_sigma", -3, "greater than or equal to 0.1"),
        ("bilateral_rgb", 0, "greater than or equal to 0.1"),
        ("bilateral_weight", -1, "greater than or equal to 0"),
        ("iterations", 0, "greater than 0"),
        ("iterations", 2.5, "integer"),
        ("gaussian_weight", "3", "number"),
        ("normalization", "afer", "after"),
    ],
)
def test_signatures_hold_the_ranges(key: str, value: Any, expected: str) -> None:
    for target in (DenseCRF, ExactCRF):
        with pytest.raises(ConfigError, match=f"crf_settings.{key}=") as caught:
            signatures.check({key: value}, target, "inference.crf_settings")
        assert expected in str(caught.value)


def test_the_smallest_sigma_is_accepted_by_both_checks(crf: type[FullyConnectedCRF]) -> None:
    smallest = {"gaussian_sigma": 0.1, "bilateral_sigma": 0.1, "bilateral_rgb": 0.1}
    signatures.check(smallest, crf, "inference.crf_settings")
    image, logits = scene(20, 30, 3, 0)
    alone = crf(**smallest)(image, logits)  # type: ignore[arg-type]
    assert torch.equal(alone.argmax(1), logits.argmax(1)), "each pixel hears itself alone"


def test_an_image_too_large_for_the_exact_one() -> None:
    image, logits = scene(65, 64, 2, 0)
    with pytest.raises(ConfigError) as caught:
        ExactCRF()(image, logits)
    assert caught.value.found == "an image of 65x64 pixels for the exact CRF"
    assert caught.value.fix == "set inference.crf_settings._target_=segtrain.postprocess.crf.DenseCRF, the lattice"
    assert "at most 4096 pixels" in str(caught.value)


@pytest.mark.parametrize("absent", ["pydensecrf", "pydensecrf.densecrf"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    monkeypatch.delattr("pydensecrf.densecrf", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    crf = DenseCRF()  # settings alone need nothing
    with pytest.raises(ConfigError) as caught:
        crf.prepare()
    assert "needs pydensecrf" in caught.value.found
    assert "pip install -e '.[crf]'" in str(caught.value.fix)
    assert "ExactCRF" in str(caught.value.fix)
    ExactCRF().prepare()

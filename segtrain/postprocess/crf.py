"""The fully connected CRF on top of a network: labels move to the image's edges.

Krähenbühl and Koltun 2011, arXiv 1210.5644; DeepLab v1 (Chen et al. 2015, arXiv 1412.7062, section 3.2) and v2 (Chen
et al. 2017, arXiv 1606.00915, section 3.3) end with it. Two kernels, one of positions (smoothness) and one of
positions and colors (appearance), and a number of mean field updates; see `segtrain.postprocess.mean_field`.

Published settings, each found by a grid search on top of one network:

| setting             | gaussian sigma, weight | bilateral sigma, rgb, weight     | iterations |
|---------------------|------------------------|----------------------------------|------------|
| pydensecrf's README | 3, 3                   | 80, 13, 10                       | 5          |
| DeepLab v1, VGG-16  | 3, 3                   | 49 to 50, 3 to 10, 4 to 5        | 10         |
| DeepLab v2, VGG-16  | 2, 2                   | 65, 3, 4                         | 10         |
| DeepLab v2, ResNet  | 1, 3                   | 67, 3, 4                         | 10         |

For v1 it is the range that its scripts hold for several checkpoints. DeepLab's own code normalizes `after`,
pydensecrf and the PyTorch ports `symmetric`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.postprocess.mean_field import Normalization, gaussian_kernel, mean_field, positions
from segtrain.types import NonNegativeFloat, PositiveInt

SMALLEST_PROBABILITY = 1e-5
"""Probabilities are clipped here, so that no network is too certain to be overruled."""

SMALLEST_SIGMA = 0.1
"""In pixels or steps of color. One step apart is then ten deviations: a smaller one would change nothing."""

Sigma = Annotated[float, Ge(SMALLEST_SIGMA)]

MAX_EXACT_PIXELS = 4096
"""Of an image for `ExactCRF`: 64x64, whose kernels take 0.4 GB."""


class FullyConnectedCRF(ABC):
    """What both ways to compute it share: the settings, and the way from logits to logits.

    The defaults are those of DeepLab v2 with ResNet-101.

    Args:
        iterations: mean field updates.
        gaussian_sigma: of the smoothness kernel, in pixels, at least 0.1.
        gaussian_weight: what a label that differs costs in that kernel; 0 leaves it out.
        bilateral_sigma: of the appearance kernel, in pixels, at least 0.1.
        bilateral_rgb: of the appearance kernel, in steps of 8-bit color, at least 0.1; the same for red, green, blue.
        bilateral_weight: what a label that differs costs in that kernel; 0 leaves it out.
        normalization: `symmetric`, `after` or `none`, see `segtrain.postprocess.mean_field.Normalization`.

    Raises:
        ValueError: a smaller sigma.
    """

    def __init__(
        self,
        *,
        iterations: PositiveInt = 10,
        gaussian_sigma: Sigma = 1.0,
        gaussian_weight: NonNegativeFloat = 3.0,
        bilateral_sigma: Sigma = 67.0,
        bilateral_rgb: Sigma = 3.0,
        bilateral_weight: NonNegativeFloat = 4.0,
        normalization: Normalization = "symmetric",
    ) -> None:
        # The config's check knows this bound too; from Python, the lattice's code would write past its arrays.
        if min(gaussian_sigma, bilateral_sigma, bilateral_rgb) < SMALLEST_SIGMA:
            raise ValueError(f"a sigma below {SMALLEST_SIGMA}: {gaussian_sigma}, {bilateral_sigma}, {bilateral_rgb}")
        self.iterations = iterations
        self.gaussian_sigma = gaussian_sigma
        self.gaussian_weight = gaussian_weight
        self.bilateral_sigma = bilateral_sigma
        self.bilateral_rgb = bilateral_rgb
        self.bilateral_weight = bilateral_weight
        self.normalization: Normalization = normalization

    def prepare(self) -> None:  # noqa: B027 - not every CRF needs something
        """Called when a run is built and will use this: whatever is missing must show then.

        Raises:
            ConfigError: something that it needs is not there.
        """

    def __call__(self, image: Tensor, logits: Tensor) -> Tensor:
        """Logits -> log Q (B, num_classes, H, W) in float32 or better on the same device; its `softmax` is Q.

        Args:
            image: (B, H, W, C) in [0, 255], not normalized; C is 3 (RGB) or 1, which counts as three equal channels.
            logits: (B, num_classes, H, W), any dtype.
        """
        probs = logits.double() if logits.dtype == torch.float64 else logits.float()
        # One image at a time: the memory of a batch would be that of its images together.
        refined = [
            self.log_q(one.softmax(0).cpu().clamp(SMALLEST_PROBABILITY, 1), _rgb(picture.cpu()))
            for picture, one in zip(image, probs, strict=True)
        ]
        return torch.stack([one.to(probs) for one in refined])

    @abstractmethod
    def log_q(self, probs: Tensor, rgb: Tensor) -> Tensor:
        """The CRF of one image: `probs` (num_classes, H, W), `rgb` (H, W, 3) uint8 -> log Q (num_classes, H, W)."""


class DenseCRF(FullyConnectedCRF):
    """The CRF with its sums filtered on a permutohedral lattice: linear cost, about 1.5 s for a photo of VOC.

    Needs the extra `crf` (the package pydensecrf2 with the authors' C++ code). The lattice is an approximation:
    away from edges labels are the exact ones, on images of a few pixels probabilities differ by up to 0.2. Without
    normalization its kernels are also weaker than the exact ones, by a tenth (gaussian) to a half (bilateral); the
    other two cancel that.

    Args:
        settings: as for `FullyConnectedCRF`.

    Raises:
        ConfigError: the package is not installed (from `prepare`).
    """

    def prepare(self) -> None:
        """Imports the package, so that a run without it stops before its first image."""
        _pydensecrf()

    def log_q(self, probs: Tensor, rgb: Tensor) -> Tensor:
        """log Q of one image, float32; no entry is below the smallest normal number's logarithm, -87.3."""
        library = _pydensecrf()
        classes, height, width = probs.shape
        crf = library.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(-probs.float().log().flatten(1).contiguous().numpy())
        shared = {
            "kernel": library.DIAG_KERNEL,
            "normalization": {
                "symmetric": library.NORMALIZE_SYMMETRIC,
                "after": library.NORMALIZE_AFTER,
                "none": library.NO_NORMALIZATION,
            }[self.normalization],
        }
        if self.gaussian_weight:
            crf.addPairwiseGaussian(sxy=self.gaussian_sigma, compat=self.gaussian_weight, **shared)
        if self.bilateral_weight:
            crf.addPairwiseBilateral(
                sxy=self.bilateral_sigma,
                srgb=self.bilateral_rgb,
                rgbim=rgb.contiguous().numpy(),
                compat=self.bilateral_weight,
                **shared,
            )
        q = torch.from_numpy(np.array(crf.inference(self.iterations), np.float32))
        return q.clamp_min(torch.finfo(q.dtype).tiny).log().view(classes, height, width)


class ExactCRF(FullyConnectedCRF):
    """The CRF without approximation, in float64: for small images, and to judge the lattice by.

    Cost and memory grow with the square of the pixels, so images above `MAX_EXACT_PIXELS` are refused.

    Args:
        settings: as for `FullyConnectedCRF`.

    Raises:
        ConfigError: a larger image (from the call).
    """

    def log_q(self, probs: Tensor, rgb: Tensor) -> Tensor:
        """log Q of one image, float64."""
        classes, height, width = probs.shape
        if height * width > MAX_EXACT_PIXELS:
            raise ConfigError(
                f"an image of {height}x{width} pixels for the exact CRF",
                where="inference.crf_settings._target_",
                expected=f"at most {MAX_EXACT_PIXELS} pixels: memory grows with their square",
                fix=f"set inference.crf_settings._target_={__name__}.DenseCRF, the lattice",
            )
        log_q = mean_field(probs.double().log().flatten(1), self._kernel(rgb), self.iterations)
        return log_q.view(classes, height, width)

    def _kernel(self, rgb: Tensor) -> Tensor:
        """The weighted sum of both kernels (N, N)."""
        place = positions(*rgb.shape[:2])
        total = place.new_zeros(len(place), len(place))
        if self.gaussian_weight:
            total.add_(gaussian_kernel(place / self.gaussian_sigma, self.normalization), alpha=self.gaussian_weight)
        if self.bilateral_weight:
            color = rgb.flatten(0, 1).double() / self.bilateral_rgb
            features = torch.cat([place / self.bilateral_sigma, color], 1)
            total.add_(gaussian_kernel(features, self.normalization), alpha=self.bilateral_weight)
        return total


def _rgb(image: Tensor) -> Tensor:
    """(H, W, C) in [0, 255] -> (H, W, 3) uint8; the published settings are in steps of 8-bit color."""
    if image.is_floating_point():
        image = image.round().clamp(0, 255).to(torch.uint8)
    return image.expand(*image.shape[:2], 3)


def _pydensecrf() -> Any:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise ConfigError(
            f"inference.crf=true needs pydensecrf, which cannot be imported: {error}",
            where="inference.crf",
            expected="the optional package pydensecrf2",
            fix=f"pip install -e '.[crf]'; images of at most {MAX_EXACT_PIXELS} pixels also do with "
            f"inference.crf_settings._target_={__name__}.ExactCRF",
        ) from error
    return densecrf

"""Whether a network is right as often as it says: calibration error, and the temperature that mends it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import NonFiniteError
from segtrain.metrics.base import Judged, SummedMetric
from segtrain.metrics.fixed_point import from_fixed, to_fixed
from segtrain.types import IGNORE_INDEX, PositiveInt

BINS = 15
GRID = np.array([1.03**power for power in range(-78, 79)])
"""Temperatures 0.1 to 10 in steps of 3 %, 1 among them."""
SAMPLES = 4096
BITS = 20
"""Sums per image are kept in units of 2**-20: 2**43 pixels fit, or 2**34 of 2**9 nats each."""
ROWS = 64
"""Rows whose softmax is taken at a time, so that no second copy of the logits is held."""


class Calibration(SummedMetric):
    """Expected calibration error over the labelled pixels, and the temperature T that softmax(logits / T) needs.

    A pixel's confidence is the largest softmax value. The error is the mean distance of confidence and accuracy over
    equal bins of confidence (low, high], weighted by pixels (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). `ece` and `bins` are of every labelled pixel.

    The temperature is the one with the least negative log likelihood. It is found without keeping logits: the
    likelihood is summed on a fixed grid of temperatures, 3 % apart from 0.1 to 10, and the least is refined by a
    parabola in log T. This uses every n-th labelled pixel of an image, n odd and such that at least `samples` are
    used (and, of a large image, less than three times as many); each stands for n. `bins_at_temperature` and
    `ece_at_temperature` are of these pixels at the temperature of the grid nearest to the fitted one,
    `temperature_of_bins`, which is at most 1.5 % off. `ece_of_sample` is of them at temperature 1: how far it is from
    `ece` says how well they stand for all. A temperature at an end of the grid is no fit: then
    `temperature_at_limit` is true.

    Args:
        samples: pixels of each image that the temperature is fitted on; all if the image has fewer.
    """

    def __init__(self, *, samples: PositiveInt = SAMPLES) -> None:
        self.samples = samples
        self.sums = {
            "bins": np.zeros((3, BINS), np.int64),  # pixels, right, confidence
            "grid_bins": np.zeros((3, len(GRID), BINS), np.int64),
            "grid_nll": np.zeros(len(GRID), np.int64),
            "sampled": np.zeros(1, np.int64),
        }

    def update(self, judged: Judged) -> None:
        """Takes in one image.

        Raises:
            NonFiniteError: logits that are NaN or infinite on a labelled pixel.
        """
        labelled = np.flatnonzero(judged.target.ravel() != IGNORE_INDEX)
        if not len(labelled):
            return
        right = (judged.prediction == judged.target).ravel()
        confidence = _confidence(judged.logits).ravel()[labelled]
        if not np.isfinite(confidence).all():
            raise _not_finite(judged)
        self.sums["bins"] += _binned(confidence[None], right[labelled])[:, 0]
        stride = sampling_stride(len(labelled), self.samples)
        sample = labelled[::stride]
        nll, confidence = self._over_grid(judged, sample)
        if not np.isfinite(nll).all():
            raise _not_finite(judged)
        self.sums["grid_nll"] += stride * to_fixed(nll, BITS)
        self.sums["grid_bins"] += stride * _binned(confidence, right[sample])
        self.sums["sampled"] += len(sample)

    def compute(self) -> dict[str, Any]:
        temperature, nearest = self._fit()
        at_one = int(np.argmin(np.abs(np.log(GRID))))
        grid_bins = self.sums["grid_bins"]
        weight = grid_bins[0, 0].sum()
        nll = from_fixed(self.sums["grid_nll"], BITS) / weight if weight else np.full(len(GRID), np.nan)
        found = {
            "ece": _ece(self.sums["bins"]),
            "temperature": temperature,
            "temperature_at_limit": nearest in (0, len(GRID) - 1),
            "ece_at_temperature": _ece(grid_bins[:, nearest]),
            "temperature_of_bins": float(GRID[nearest]),
            "ece_of_sample": _ece(grid_bins[:, at_one]),
            "nll": float(nll[at_one]),
            "nll_at_temperature": float(nll[nearest]),
            "pixels": int(self.sums["bins"][0].sum()),
            "sampled_pixels": int(self.sums["sampled"][0]),
            "bins": _rows(self.sums["bins"]),
            "bins_at_temperature": _rows(grid_bins[:, nearest]),
        }
        return {"calibration": found}

    def _over_grid(self, judged: Judged, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per temperature the summed negative log likelihood (T,) and each pixel's confidence (T, n)."""
        where = torch.from_numpy(sample).to(judged.logits.device)
        logits = judged.logits.flatten(1)[:, where]
        truth = torch.from_numpy(judged.target.ravel()[sample].astype(np.int64)).to(where.device)
        below = logits - logits.amax(0)
        # One piece of memory for all temperatures: to ask for it anew takes longer than to compute what goes into it.
        scaled = torch.empty_like(below)
        parts = [torch.div(below, float(temperature), out=scaled).exp_().sum(0) for temperature in GRID]
        sums = torch.stack(parts).cpu().double()
        true = below.gather(0, truth[None]).cpu().double()
        nll = sums.log() - true / torch.from_numpy(GRID)[:, None]
        return nll.sum(1).numpy(), sums.reciprocal().numpy()

    def _fit(self) -> tuple[float, int]:
        """The temperature, and the nearest one's place on the grid; NaN and that of 1 where nothing was counted."""
        if not self.sums["sampled"][0]:
            return math.nan, int(np.argmin(np.abs(np.log(GRID))))
        sums = self.sums["grid_nll"]
        least = int(sums.argmin())
        if least in (0, len(GRID) - 1):
            return float(GRID[least]), least
        before, here, after = (float(value - sums[least]) for value in sums[least - 1 : least + 2])
        bend = before - 2 * here + after
        steps = 0.5 * (before - after) / bend if bend > 0 else 0.0
        return float(GRID[least] * 1.03**steps), least


def sampling_stride(pixels: int, samples: int) -> int:
    """Every which pixel is used: the largest odd number that leaves at least `samples`.

    Odd, so that in images of even width the samples do not all lie in the same few columns.
    """
    return max(1, (pixels // samples - 1) | 1)


def _confidence(logits: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W) float64 on the CPU: the largest softmax value."""
    strips = [(strip - strip.amax(0)).exp_().sum(0).reciprocal_() for strip in logits.split(ROWS, dim=1)]
    return torch.cat(strips).cpu().double().numpy()


def _binned(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Confidences (T, n), right (n,) bool -> (3, T, BINS) int64: pixels, right ones, summed confidence."""
    rows = len(confidence)
    place = np.ceil(confidence * BINS).astype(np.int64).clip(1, BINS) - 1
    place = (place + BINS * np.arange(rows)[:, None]).ravel()
    everywhere = np.broadcast_to(right, confidence.shape).ravel()
    counts = np.bincount(place, minlength=rows * BINS)
    correct = np.bincount(place[everywhere], minlength=rows * BINS)
    sums = to_fixed(np.bincount(place, weights=confidence.ravel(), minlength=rows * BINS), BITS)
    return np.stack([counts, correct, sums]).reshape(3, rows, BINS)


def _ece(bins: np.ndarray) -> float:
    pixels, right, confidence = bins[0], bins[1], from_fixed(bins[2], BITS)
    return float(np.abs(right - confidence).sum() / pixels.sum()) if pixels.sum() else math.nan


def _rows(bins: np.ndarray) -> list[dict[str, float]]:
    confidence = from_fixed(bins[2], BITS)
    return [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "confidence": float(confidence[place] / pixels) if pixels else math.nan,
            "accuracy": float(right / pixels) if pixels else math.nan,
            "pixels": int(pixels),
        }
        for place, (pixels, right) in enumerate(zip(bins[0], bins[1], strict=True))
    ]


def _not_finite(judged: Judged) -> NonFiniteError:
    return NonFiniteError(
        "the network's logits are NaN or infinite, so that they have no probabilities",
        where=judged.record.source,
        fix="trainer.amp=off if it is half precision that overflows; otherwise evaluate an earlier checkpoint",
    )

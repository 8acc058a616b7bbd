"""One gray value parts an image: Otsu's threshold or the valley between two peaks; morphology and a watershed after."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Interval

from segtrain.models.classical.baseline import Baseline, Foreground, disk, gray_of, scikit
from segtrain.types import NumClasses, PositiveFloat, PositiveInt

LEVELS = 10**9
"""In how many steps a smoothed histogram is measured."""
MarkerShare = Annotated[float, Interval(ge=0, lt=1)]


class Threshold(Baseline):
    """Two sides of a gray value; a subclass implements `threshold`."""

    @abstractmethod
    def threshold(self, gray: np.ndarray) -> int | None:
        """Gray image (H, W) uint8 -> the largest value of the darker side; None where no value parts it."""

    def foreground_of(self, image: np.ndarray) -> np.ndarray:
        gray = gray_of(image)
        value = self.threshold(gray)
        return np.zeros(gray.shape, bool) if value is None else self.choose(gray > value)


class Otsu(Threshold):
    """The threshold that parts the gray values into two classes of greatest variance between them (Otsu 1979)."""

    def threshold(self, gray: np.ndarray) -> int | None:
        return otsu_threshold(histogram(gray))


class DoublePeak(Threshold):
    """The valley between the two highest peaks of the smoothed histogram (Prewitt and Mendelsohn 1966).

    An image whose histogram has one peak has no valley, hence no foreground.

    Args:
        num_classes, in_channels, foreground: as for `Baseline`.
        smoothing: standard deviation of the Gaussian that smooths the histogram, in gray values.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: int = 3,
        foreground: Foreground = "center",
        smoothing: PositiveFloat = 8.0,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, foreground=foreground)
        self.smoothing = smoothing

    def threshold(self, gray: np.ndarray) -> int | None:
        return valley_threshold(histogram(gray), self.smoothing)


class Morphology(Otsu):
    """Otsu's foreground, opened (specks go) and then closed (holes go) with a disk (Serra 1982).

    Args:
        num_classes, in_channels, foreground: as for `Baseline`.
        radius: of the disk, in pixels.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: int = 3,
        foreground: Foreground = "center",
        radius: PositiveInt = 3,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, foreground=foreground)
        self.radius = radius

    def foreground_of(self, image: np.ndarray) -> np.ndarray:
        opened = morphology(super().foreground_of(image), cv2.MORPH_OPEN, self.radius)
        return morphology(opened, cv2.MORPH_CLOSE, self.radius)


class Watershed(Otsu):
    """The parts of Otsu's foreground that a watershed floods from their thick places.

    Markers are the pixels whose distance to the background is above a share of the largest one. From them
    -distance is flooded inside the foreground (Vincent and Soille 1991): a part that no marker reaches is thin all
    over, and becomes background. How the basins share a part among them does not matter here; `basins` has it.

    Args:
        num_classes, in_channels, foreground: as for `Baseline`.
        marker_share: of the image's largest distance; 0 keeps all of Otsu's foreground.

    Raises:
        ConfigError: scikit-image is not installed.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: int = 3,
        foreground: Foreground = "center",
        marker_share: MarkerShare = 0.7,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, foreground=foreground)
        scikit("segmentation", "model=watershed")
        self.marker_share = marker_share

    def foreground_of(self, image: np.ndarray) -> np.ndarray:
        return basins(super().foreground_of(image), self.marker_share) > 0


def histogram(gray: np.ndarray) -> np.ndarray:
    """Gray image uint8 -> pixels of each value (256,) int64."""
    return np.bincount(gray.ravel(), minlength=256).astype(np.int64)


def otsu_threshold(counts: np.ndarray) -> int | None:
    """Counts (256,) of gray values -> the first t that maximizes the variance between values <= t and > t.

    None if there is one value only.
    """
    total, total_sum = int(counts.sum()), int(counts @ np.arange(256))
    best, best_variance, below, below_sum = None, -1.0, 0, 0
    for value, count in enumerate(counts.tolist()):
        below, below_sum = below + count, below_sum + count * value
        if not 0 < below < total:
            continue
        # With w = n / N, w0 w1 (m0 - m1)^2 = (N s0 - n0 S)^2 / (n0 n1 N^2); N does not matter. Python's integers are
        # exact for images of any size.
        variance = (total * below_sum - below * total_sum) ** 2 / (below * (total - below))
        if variance > best_variance:
            best, best_variance = value, variance
    return best


def valley_threshold(counts: np.ndarray, smoothing: float) -> int | None:
    """Counts (256,) of gray values -> where the smoothed ones are lowest between their two highest peaks.

    None if there are fewer peaks. Of equal peaks the darker ones are taken, of equal depths the darkest.
    """
    smooth = smoothed(counts, smoothing)
    peaks = local_maxima(smooth)
    if len(peaks) < 2:
        return None
    first, second = sorted(sorted(peaks, key=lambda peak: -smooth[peak])[:2])
    return first + int(smooth[first : second + 1].argmin())


def smoothed(counts: np.ndarray, deviation: float) -> np.ndarray:
    """Counts (256,) -> (256,) int64, convolved with a Gaussian and scaled to `LEVELS`; nothing lies beyond the ends."""
    reach = max(1, round(4 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    values = np.convolve(counts.astype(np.float64), kernel)[reach : reach + len(counts)]
    # In whole steps, or rounding errors would make peaks on what is level.
    return np.rint(values / values.max() * LEVELS).astype(np.int64)


def local_maxima(values: np.ndarray) -> list[int]:
    """Where values (N,) are above what is to their left and right; of a level stretch its first index.

    Beyond the ends lies nothing, so that an end can be a peak: black or white may be a whole side of an image.
    """
    found, rise = [], 0
    for index in range(len(values)):
        before = values[index - 1] if index else -np.inf
        after = values[index + 1] if index + 1 < len(values) else -np.inf
        rise = index if values[index] > before else rise if values[index] == before else -1
        if rise >= 0 and values[index] > after and values[index] > 0:
            found.append(rise)
    return found


def morphology(mask: np.ndarray, operation: int, radius: int) -> np.ndarray:
    """Mask (H, W) bool after one of OpenCV's operations with a disk; what lies beyond the border changes nothing."""
    return cv2.morphologyEx(mask.astype(np.uint8), operation, disk(radius)).astype(bool)


def basins(mask: np.ndarray, marker_share: float) -> np.ndarray:
    """Mask (H, W) bool -> basins (H, W) int32 numbered from 1; 0 is the background and what no marker reaches.

    Markers are connected pixels (also by a corner) with a distance above `marker_share` times the largest.
    """
    if mask.all() or not mask.any():  # without a background there is no distance to it
        return mask.astype(np.int32)
    distance = importlib.import_module("scipy.ndimage").distance_transform_edt(mask)
    markers = scikit("measure", "basins").label(distance > marker_share * distance.max())
    return scikit("segmentation", "basins").watershed(-distance, markers, mask=mask).astype(np.int32)

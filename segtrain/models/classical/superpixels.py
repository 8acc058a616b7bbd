"""Superpixels are grouped by their colors: whole regions are foreground or not."""

from __future__ import annotations

import numpy as np

from segtrain.models.classical.baseline import Baseline, Foreground, scikit
from segtrain.types import NumClasses, PositiveFloat, PositiveInt

BOUNDARY = (255, 220, 0)


class SlicKMeans(Baseline):
    """Superpixels (SLIC, Achanta et al. 2012), and 2-means of their mean colors: one of the two is the foreground.

    Colors are compared in CIELAB, and each superpixel weighs as much as it has pixels.

    Args:
        num_classes, in_channels, foreground: as for `Baseline`.
        segments: about how many superpixels an image is cut into.
        compactness: how much nearness counts against color; higher gives squarer superpixels.

    Raises:
        ConfigError: scikit-image is not installed.
    """

    def __init__(
        self,
        *,
        num_classes: NumClasses,
        in_channels: int = 3,
        foreground: Foreground = "center",
        segments: PositiveInt = 250,
        compactness: PositiveFloat = 10.0,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, foreground=foreground)
        scikit("segmentation", "model=slic_kmeans")
        self.segments = segments
        self.compactness = compactness

    def foreground_of(self, image: np.ndarray) -> np.ndarray:
        labels = superpixels(image, self.segments, self.compactness)
        colors, pixels = mean_colors(image, labels)
        bright = two_means(colors, pixels)
        return np.zeros(labels.shape, bool) if bright is None else self.choose(bright[labels])


def superpixels(image: np.ndarray, segments: int, compactness: float = 10.0) -> np.ndarray:
    """Image (H, W, 1|3) uint8 RGB -> superpixels (H, W) int64, numbered from 0; each is connected.

    SLIC as scikit-image has it: 10 rounds in CIELAB on a grid of S = sqrt(H W / segments), each center searching
    windows of 2S. The number found is near `segments`, seldom equal to it.
    """
    found = scikit("segmentation", "superpixels").slic(
        _rgb(image), n_segments=segments, compactness=compactness, start_label=0, channel_axis=-1
    )
    return found.astype(np.int64)


def mean_colors(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 1|3) and regions (H, W) -> mean CIELAB color (N, 3) and number of pixels (N,) of each."""
    lab = scikit("color", "mean_colors").rgb2lab(_rgb(image)).reshape(-1, 3)
    flat = labels.ravel()
    pixels = np.bincount(flat)
    sums = np.stack([np.bincount(flat, weights=channel) for channel in lab.T], axis=1)
    return sums / np.maximum(pixels, 1)[:, None], pixels


def two_means(colors: np.ndarray, weights: np.ndarray, rounds: int = 100) -> np.ndarray | None:
    """Colors (N, 3), lightness first, with their weights (N,) -> (N,) bool: the lighter of two clusters.

    Starts from the two sides of the mean along the longest axis, so that nothing is drawn at random. None if there is
    one color only: no two clusters.
    """
    around = colors - np.average(colors, axis=0, weights=weights)
    if np.abs(around).max() < 1e-6:
        return None
    axis = np.linalg.eigh((around * weights[:, None]).T @ around)[1][:, -1]
    second = around @ axis > 0
    for _ in range(rounds):
        centers = np.stack([np.average(colors[side], axis=0, weights=weights[side]) for side in (~second, second)])
        distance = ((colors[:, None] - centers) ** 2).sum(-1)
        moved = distance[:, 1] < distance[:, 0]
        if (moved == second).all():
            break
        second = moved
    return second if centers[1, 0] >= centers[0, 0] else ~second


def superpixel_picture(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image (H, W, 1|3) uint8 with the borders of its regions (H, W) drawn in yellow: (H, W, 3) uint8."""
    picture = _rgb(image).copy()
    border = np.zeros(labels.shape, bool)
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border[:-1] |= labels[:-1] != labels[1:]
    picture[border] = BOUNDARY
    return picture


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

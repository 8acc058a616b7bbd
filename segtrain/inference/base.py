"""From an image to logits at its own size, and to labels: what all protocols share.

Whatever a protocol averages, the result is logits: `softmax` of it gives the averaged probabilities, so that loss,
prediction and confidence are computed one way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.models.layers import resize_logits
from segtrain.postprocess.crf import FullyConnectedCRF
from segtrain.types import PositiveFloat, Size, height_width
from segtrain.windows import Band, log_probs, stacked

Scales = Annotated[list[PositiveFloat], Len(1)]
Normalize = Callable[[Tensor], Tensor]
"""(B, H, W, C) in [0, 255] -> (B, C, H, W), the network's input."""
Window = Callable[[tuple[int, int], tuple[int, int]], Tensor]
"""(first row, rows) and (first column, columns) -> that part of the image, normalized (B, C, rows, columns)."""


class ImageInference(ABC):
    """Base of the protocols: one view of the image, or the average of several, and what the image itself adds.

    Args:
        size: resize the image to this size first (bilinear, aspect ratio not kept), logits back to the image's size.
        scales: image scales whose probabilities are averaged; None: the image's own alone.
        flip: average with the mirrored image too.
        crf: refine the averaged probabilities with the image at its own size; without it nothing is done or loaded.
        crf_settings: the CRF; not used without `crf`.

    Raises:
        ConfigError: the CRF is asked for and cannot be used, e.g. because its package is missing.
    """

    def __init__(
        self,
        *,
        size: Size | None = None,
        scales: Scales | None = None,
        flip: bool = False,
        crf: bool = False,
        crf_settings: FullyConnectedCRF | None = None,
    ) -> None:
        if not isinstance(crf_settings, FullyConnectedCRF | None) or (crf and crf_settings is None):
            raise ConfigError(
                f"inference.crf={str(crf).lower()} with inference.crf_settings={crf_settings}",
                expected="the settings of a segtrain.postprocess.crf.FullyConnectedCRF, by its _target_",
                fix="leave inference.crf_settings as in configs/inference/_crf.yaml, and change single keys of it",
            )
        self.size = size
        self.scales = scales or [1.0]
        self.flip = flip
        self.crf = crf_settings if crf else None
        if self.crf is not None:
            self.crf.prepare()

    @abstractmethod
    def view(self, model: nn.Module, image: Tensor) -> Tensor:
        """One view (B, C, H, W), normalized -> its logits (B, num_classes, H, W) float32."""

    def check(self, model: nn.Module) -> None:  # noqa: B027 - most protocols take any network
        """Raises a ConfigError for a network that the protocol cannot use."""

    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32.

        Raises:
            ConfigError: as `check`.
        """
        self.check(model)
        own = (image.shape[-2], image.shape[-1])
        base = own if self.size is None else height_width(self.size)
        if self.scales == [1.0] and not self.flip:
            return resize_logits(self.view(model, _resized(image, base)), own)
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        probs: Tensor | None = None
        for scale, mirrored in views:
            scaled = _resized(image, (max(1, round(base[0] * scale)), max(1, round(base[1] * scale))))
            logits = self.view(model, scaled.flip(-1)).flip(-1) if mirrored else self.view(model, scaled)
            part = resize_logits(logits, own).softmax(1)
            probs = part if probs is None else probs + part
        assert probs is not None
        return log_probs(probs / len(views))

    def refine(self, image: Tensor, logits: Tensor) -> Tensor:
        """`image` (B, H, W, C) in [0, 255], not normalized, and its logits -> logits whose `softmax` is the CRF's Q."""
        return logits if self.crf is None else self.crf(image, logits)

    def plain(self) -> bool:
        """Whether the network sees the image as it is, once, and its logits are the result."""
        return self.size is None and self.scales == [1.0] and not self.flip and self.crf is None

    def streams(self) -> bool:
        """Whether `bands` gives an image's rows one after the other and never holds the logits of all of it."""
        return False

    def bands(self, model: nn.Module, image: Tensor, normalize: Normalize) -> Iterator[Band]:
        """`image` (B, H, W, C) not normalized -> (first row, row after the last, logits (B, num_classes, rows, W)).

        Bands come from top to bottom and cover the image once; together they are what a call and `refine` give.
        """
        yield 0, image.shape[1], self.refine(image, self(model, normalize(image)))

    def native(self, model: nn.Module, image: Tensor, normalize: Normalize) -> tuple[Tensor, bool] | None:
        """Logits (B, num_classes, h, w) that, resized, are the result for `image` (B, H, W, C), and `align_corners`.

        None: there are none, because the result is more than one view resized. With them, labels need no logits of the
        image's size.
        """
        return None


class WindowedInference(ImageInference):
    """Base of the protocols that cut the image: rows of windows come from top to bottom, and go when they are done."""

    @abstractmethod
    def cut(self, image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """The part (B, C, rows, columns) of `image` (B, C, H, W) from (first row, rows) and (first column, columns)."""

    @abstractmethod
    def rows(self, model: nn.Module, window: Window, size: tuple[int, int]) -> Iterator[Band]:
        """Bands of logits of an image of `size` = (H, W), of which `window` gives parts."""

    def view(self, model: nn.Module, image: Tensor) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        return stacked(self.rows(model, lambda *window: self.cut(image, *window), size), size[0])

    def streams(self) -> bool:
        """Whether rows can be had one after the other: with one view, at the image's own size, without CRF."""
        return self.plain()

    def bands(self, model: nn.Module, image: Tensor, normalize: Normalize) -> Iterator[Band]:
        """As for `ImageInference`; where it streams, nothing but a window is ever held as floats."""
        if not self.streams():
            return super().bands(model, image, normalize)
        self.check(model)
        planes = image.permute(0, 3, 1, 2)

        def window(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
            return normalize(self.cut(planes, rows, columns).permute(0, 2, 3, 1))

        return self.rows(model, window, (image.shape[1], image.shape[2]))


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    # No antialiasing: the same resampling as OpenCV's in the training transforms.
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)

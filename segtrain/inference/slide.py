"""The network sees windows of its training size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.inference.base import Window, WindowedInference
from segtrain.inference.outputs import outputs_of
from segtrain.types import Size, height_width
from segtrain.windows import Band, averaged_bands


class SlidingWindow(WindowedInference):
    """The network sees windows of its training size; probabilities are averaged where windows overlap.

    Args:
        window_size: side or [height, width] of a window; smaller images are padded with zeros (the mean color).
        window_stride: step between windows, at most the window's size; the last window is moved back to fit.
            None: two thirds of the window, rounded up.
        kwargs: as for `ImageInference`.
    """

    def __init__(self, *, window_size: Size, window_stride: Size | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = height_width(window_size)
        two_thirds = (-(-2 * self.window[0] // 3), -(-2 * self.window[1] // 3))
        self.stride = two_thirds if window_stride is None else height_width(window_stride)
        if any(step > side for step, side in zip(self.stride, self.window, strict=True)):
            raise ConfigError(
                f"inference.window_stride={list(self.stride)} is larger than window_size={list(self.window)}",
                expected="windows that touch or overlap, so that every pixel is seen",
                fix=f"set inference.window_stride={list(two_thirds)}, two thirds of window_size; null means the same",
            )

    def cut(self, image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        return image[..., rows[0] : sum(rows), columns[0] : sum(columns)]

    def rows(self, model: nn.Module, window: Window, size: tuple[int, int]) -> Iterator[Band]:
        height, width = size
        padded = max(height, self.window[0]), max(width, self.window[1])

        def probs_of(top: int, left: int) -> Tensor:
            part = window((top, min(self.window[0], height)), (left, min(self.window[1], width)))
            part = F.pad(part, (0, self.window[1] - part.shape[-1], 0, self.window[0] - part.shape[-2]))
            return outputs_of(model, part)["out"].float().softmax(1)

        for first, last, logits in averaged_bands(probs_of, padded, self.window, self.stride):
            if first < height:
                yield first, min(last, height), logits[..., : height - first, :width]

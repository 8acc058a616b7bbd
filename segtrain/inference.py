"""From a normalized image to logits at the image's own size, with whatever protocol the config asks for.

Whatever the protocol averages, the result is logits: `softmax` of it gives the averaged probabilities, so that loss,
prediction and confidence are computed one way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from segtrain.errors import ConfigError, listed
from segtrain.models.layers import resize_logits
from segtrain.types import PositiveFloat, Size, height_width

Scales = Annotated[list[PositiveFloat], Len(1)]


class WholeImage:
    """The network sees the whole image at once.

    Args:
        size: resize the image to this size first (bilinear, aspect ratio not kept), logits back to the image's size.
        scales: image scales whose probabilities are averaged; None: the image's own alone.
        flip: average with the mirrored image too.
    """

    def __init__(self, *, size: Size | None = None, scales: Scales | None = None, flip: bool = False) -> None:
        self.size = size
        self.scales = scales or [1.0]
        self.flip = flip

    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32."""
        return _averaged(lambda view: _logits(model, view), image, self.size, self.scales, self.flip)


class SlidingWindow:
    """The network sees windows of its training size; probabilities are averaged where windows overlap.

    Args:
        window_size: side or [height, width] of a window; smaller images are padded with zeros (the mean color).
        window_stride: step between windows, at most the window's size; the last window is moved back to fit.
            None: two thirds of the window, rounded up.
        size, scales, flip: as for `WholeImage`.
    """

    def __init__(
        self,
        *,
        window_size: Size,
        window_stride: Size | None = None,
        size: Size | None = None,
        scales: Scales | None = None,
        flip: bool = False,
    ) -> None:
        self.window = height_width(window_size)
        two_thirds = (-(-2 * self.window[0] // 3), -(-2 * self.window[1] // 3))
        self.stride = two_thirds if window_stride is None else height_width(window_stride)
        if any(step > side for step, side in zip(self.stride, self.window, strict=True)):
            raise ConfigError(
                f"inference.window_stride={list(self.stride)} is larger than window_size={list(self.window)}",
                expected="windows that touch or overlap, so that every pixel is seen",
                fix=f"set inference.window_stride={list(two_thirds)}, two thirds of window_size; null means the same",
            )
        self.size = size
        self.scales = scales or [1.0]
        self.flip = flip

    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32."""
        return _averaged(lambda view: self._slide(model, view), image, self.size, self.scales, self.flip)

    def _slide(self, model: nn.Module, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        spare = max(0, self.window[0] - height), max(0, self.window[1] - width)
        image = F.pad(image, (0, spare[1], 0, spare[0]))
        total: Tensor | None = None
        seen = image.new_zeros(1, 1, *image.shape[-2:], dtype=torch.float32)
        for y in _starts(image.shape[-2], self.window[0], self.stride[0]):
            for x in _starts(image.shape[-1], self.window[1], self.stride[1]):
                rows, columns = slice(y, y + self.window[0]), slice(x, x + self.window[1])
                probs = _logits(model, image[..., rows, columns]).softmax(1)
                if total is None:
                    total = probs.new_zeros(*probs.shape[:2], *image.shape[-2:])
                total[..., rows, columns] += probs
                seen[..., rows, columns] += 1
        assert total is not None
        return _log(total / seen)[..., :height, :width]


def _averaged(
    protocol: Callable[[Tensor], Tensor], image: Tensor, size: Size | None, scales: list[float], flip: bool
) -> Tensor:
    own = (image.shape[-2], image.shape[-1])
    base = height_width(size) if size is not None else own
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    if len(views) == 1 and scales[0] == 1.0:
        return resize_logits(protocol(_resize_image(image, base)), own)
    probs: Tensor | None = None
    for scale, mirrored in views:
        view = _resize_image(image, (max(1, round(base[0] * scale)), max(1, round(base[1] * scale))))
        logits = protocol(view.flip(-1)).flip(-1) if mirrored else protocol(view)
        part = resize_logits(logits, own).softmax(1)
        probs = part if probs is None else probs + part
    assert probs is not None
    return _log(probs / len(views))


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    return outputs_of(model, image)["out"].float()


def outputs_of(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What the network says of `image` (B, C, H, W): `out` and maybe `aux`, logits (B, num_classes, H, W).

    Raises:
        ConfigError: it says something else.
    """
    outputs = model(image)
    if not isinstance(outputs, Mapping):
        raise wrong_outputs(f"the model returns a {type(outputs).__name__}")
    if not isinstance(outputs.get("out"), Tensor):
        raise wrong_outputs(f"the model returns a dict of {listed(outputs) or 'nothing'}, without a tensor 'out'")
    if outputs["out"].ndim != 4:
        raise wrong_outputs(f"the model's 'out' is {tuple(outputs['out'].shape)}")
    return dict(outputs)


def wrong_outputs(found: str, channels: object = "num_classes") -> ConfigError:
    """The error for a network that does not keep the contract of all networks."""
    return ConfigError(
        found,
        where="model._target_",
        expected=f'{{"out": logits (B, {channels}, H, W)}} and maybe "aux": one channel per class of data.classes',
        fix="change what the model's forward returns, or name another model._target_",
    )


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    # No antialiasing: the same resampling as OpenCV's in the training transforms.
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, the last one flush with the end."""
    return [*range(0, length - window, stride), length - window]

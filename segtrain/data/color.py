"""Color jitter as one matrix per image, so that no worker needs to touch a pixel for it.

Brightness, contrast, saturation and hue are all affine in RGB: what they do to a color is one 3x4 matrix, which the
device applies to the whole batch on its way to the network (`SemanticTask.normalize`). Beside
`albumentations.ColorJitter`, which works on pixels in HSV, one operation after the other:

- colors are clamped to [0, 255] once at the end, not after each operation, and are not rounded in between;
- hue turns the plane of I and Q in YIQ, which keeps the luma; in HSV it keeps the largest and the smallest channel;
- the order of the four operations makes no difference, so none is drawn.

Brightness, contrast and saturation alone give the same colors as ColorJitter up to clamping and rounding.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import cv2
import numpy as np
from albumentations.core.transforms_interface import ImageOnlyTransform
from annotated_types import Interval, Len

from segtrain.errors import ConfigError
from segtrain.types import Fraction, NonNegativeFloat

LUMA = np.array([0.299, 0.587, 0.114])
"""Shares of R, G and B in the luma (ITU-R BT.601), as OpenCV's grey."""
_TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # FCC 1953, rounded as usual
_TO_RGB = np.linalg.inv(_TO_YIQ)
# What a turn by t in the plane of I and Q does to RGB is luma + cos(t) ALONG + sin(t) ACROSS. I points to orange and Q
# to purple: red turns towards yellow, as it does in HSV, against the IQ plane.
_LUMA = LUMA.tolist()
_ALONG = (_TO_RGB[:, 1:] @ _TO_YIQ[1:]).tolist()
_ACROSS = (_TO_RGB[:, 1:] @ [[0, 1], [-1, 0]] @ _TO_YIQ[1:]).tolist()
_TURNS = tuple(zip(_ALONG, _ACROSS, strict=True))

Factors = NonNegativeFloat | Annotated[list[NonNegativeFloat], Len(2, 2)]
_Turn = Annotated[float, Interval(ge=-0.5, le=0.5)]
Turns = Annotated[float, Interval(ge=0, le=0.5)] | Annotated[list[_Turn], Len(2, 2)]


class ColorMatrix(ImageOnlyTransform):
    """Brightness, contrast, saturation and hue in one step; grey images take brightness and contrast alone.

    Contrast pulls colors towards the image's mean luma, or pushes them away from it.

    Args:
        brightness, contrast, saturation: v draws a factor evenly from [max(0, 1 - v), 1 + v], [a, b] from [a, b].
        hue: v draws a turn of the color circle evenly from [-v, v], [a, b] from [a, b].
        p: share of the images that are changed.
    """

    def __init__(
        self,
        *,
        brightness: Factors = 0.2,
        contrast: Factors = 0.2,
        saturation: Factors = 0.2,
        hue: Turns = 0.05,
        p: Fraction = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.brightness = _range("brightness", brightness, 1.0)
        self.contrast = _range("contrast", contrast, 1.0)
        self.saturation = _range("saturation", saturation, 1.0)
        self.hue = _range("hue", hue, 0.0)

    def get_params(self) -> dict[str, float]:
        # Drawn as ColorJitter draws them, so that one may stand in for the other and the later steps draw the same.
        draw = self.py_random.uniform
        return {
            "brightness": draw(*self.brightness),
            "contrast": draw(*self.contrast),
            "saturation": draw(*self.saturation),
            "hue": draw(*self.hue),
        }

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """The image (H, W, C) with its colors changed: uint8, or float32 in [0, 1] as everywhere in albumentations."""
        factors = {name: params[name] for name in ("brightness", "contrast", "saturation", "hue")}
        deep = img.dtype == np.float32
        matrix = color_matrix(mean_color(img) * (255 if deep else 1), **factors)
        if deep:
            matrix[:, -1] /= 255
        return _transformed(img, matrix, 1.0)


def color_matrix(mean: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """(C, C + 1) float64 for colors in [0, 255]; `mean` (C,) is the image's mean color in [0, 255], C is 1 or 3."""
    gain = brightness * contrast
    pull = brightness * (1 - contrast)
    if len(mean) == 1:
        return np.array([[gain, pull * float(mean[0])]])
    # On plain numbers: right after a large image, when no code is in the processor's cache, NumPy's calls on 3x3 cost
    # more than all of the arithmetic.
    cosine = gain * saturation * math.cos(math.tau * hue)
    sine = gain * saturation * math.sin(math.tau * hue)
    y0, y1, y2 = _LUMA
    red, green, blue = mean.tolist()
    shift = pull * (y0 * red + y1 * green + y2 * blue)
    y0, y1, y2 = gain * y0, gain * y1, gain * y2
    return np.array(
        [
            (y0 + cosine * a0 + sine * b0, y1 + cosine * a1 + sine * b1, y2 + cosine * a2 + sine * b2, shift)
            for (a0, a1, a2), (b0, b1, b2) in _TURNS
        ]
    )


def mean_color(image: np.ndarray) -> np.ndarray:
    """The mean (C,) float64 of an image (H, W, C), of large ones of at least 64 evenly spaced rows."""
    # The pivot of a contrast that is random anyhow: off by a fraction of a gray level, and several times faster.
    return np.array(cv2.mean(image[:: max(1, image.shape[0] // 64)])[: image.shape[2]])


def chained(first: np.ndarray | None, then: np.ndarray) -> np.ndarray:
    """The (C, C + 1) matrix that does what `first` and `then` do one after the other."""
    if first is None:
        return then
    linear = then[:, :-1]
    both: np.ndarray = linear @ first
    both[:, -1] += then[:, -1]
    return both


def painted(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`matrix` (C, C + 1) applied to an image (H, W, C) in [0, 255], uint8 (then rounded) or float32, and clamped."""
    return _transformed(image, matrix, 255.0)


def _transformed(image: np.ndarray, matrix: np.ndarray, top: float) -> np.ndarray:
    result = cv2.transform(image, matrix.astype(np.float32)).reshape(image.shape)  # bytes saturate by themselves
    return np.clip(result, 0, top, out=result) if image.dtype == np.float32 else result


def _range(name: str, value: float | list[float], middle: float) -> tuple[float, float]:
    if not isinstance(value, int | float):
        low, high = value
        if low > high:
            raise ConfigError(f"ColorMatrix {name}={list(value)}", expected="[smallest, largest]")
        return low, high
    return (max(0.0, middle - value) if middle else -value), middle + value

"""From a normalized image to logits at the image's own size, with whatever protocol the config asks for.

Whatever the protocol averages, the result is logits: `softmax` of it gives the averaged probabilities, so that loss,
prediction and confidence are computed one way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Protocol, cast, runtime_checkable

import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from segtrain.errors import ConfigError, listed
from segtrain.models.layers import mirror_window, resize_logits
from segtrain.postprocess.crf import FullyConnectedCRF
from segtrain.types import PositiveFloat, Size, height_width
from segtrain.windows import Band, averaged_bands, log_probs, stacked

Scales = Annotated[list[PositiveFloat], Len(1)]
Window = Callable[[tuple[int, int], tuple[int, int]], Tensor]
"""(first row, rows) and (first column, columns) -> that part of the image, normalized (B, C, rows, columns)."""

LARGEST_WHOLE = 2**31
"""Logits (classes x pixels) that may be held at once: 8 GiB as float32, and what 32-bit indices of kernels reach."""


class ImageInference(ABC):
    """Base of the protocols: a call gives the network's logits, `refine` what the image itself adds to them.

    Args:
        crf: refine the averaged probabilities with the image at its own size; without it nothing is done or loaded.
        crf_settings: the CRF; not used without `crf`.

    Raises:
        ConfigError: the CRF is asked for and cannot be used, e.g. because its package is missing.
    """

    def __init__(self, *, crf: bool = False, crf_settings: FullyConnectedCRF | None = None) -> None:
        if not isinstance(crf_settings, FullyConnectedCRF | None) or (crf and crf_settings is None):
            raise ConfigError(
                f"inference.crf={str(crf).lower()} with inference.crf_settings={crf_settings}",
                expected="the settings of a segtrain.postprocess.crf.FullyConnectedCRF, by its _target_",
                fix="leave inference.crf_settings as in configs/inference/_crf.yaml, and change single keys of it",
            )
        self.crf = crf_settings if crf else None
        if self.crf is not None:
            self.crf.prepare()

    @abstractmethod
    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32."""

    def check(self, model: nn.Module) -> None:  # noqa: B027 - most protocols take any network
        """Raises a ConfigError for a network that the protocol cannot use."""

    def streams(self) -> bool:
        """Whether `bands` gives an image's rows one after the other and never holds the logits of all of it."""
        return False

    def bands(self, model: nn.Module, image: Tensor, normalize: Callable[[Tensor], Tensor]) -> Iterator[Band]:
        """`image` (B, H, W, C) not normalized -> (first row, row after the last, logits (B, num_classes, rows, W)).

        Bands come from top to bottom and cover the image once; together they are what a call and `refine` give.
        """
        yield 0, image.shape[1], self.refine(image, self(model, normalize(image)))

    def refine(self, image: Tensor, logits: Tensor) -> Tensor:
        """`image` (B, H, W, C) in [0, 255], not normalized, and its logits -> logits whose `softmax` is the CRF's Q."""
        return logits if self.crf is None else self.crf(image, logits)


class WholeImage(ImageInference):
    """The network sees the whole image at once.

    Args:
        size: resize the image to this size first (bilinear, aspect ratio not kept), logits back to the image's size.
        scales: image scales whose probabilities are averaged; None: the image's own alone.
        flip: average with the mirrored image too.
        crf, crf_settings: as for `ImageInference`.
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
        super().__init__(crf=crf, crf_settings=crf_settings)
        self.size = size
        self.scales = scales or [1.0]
        self.flip = flip

    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32."""
        return _averaged(lambda view: _logits(model, view), image, self.size, self.scales, self.flip)


class SlidingWindow(ImageInference):
    """The network sees windows of its training size; probabilities are averaged where windows overlap.

    Args:
        window_size: side or [height, width] of a window; smaller images are padded with zeros (the mean color).
        window_stride: step between windows, at most the window's size; the last window is moved back to fit.
            None: two thirds of the window, rounded up.
        size, scales, flip: as for `WholeImage`.
        crf, crf_settings: as for `ImageInference`.
    """

    def __init__(
        self,
        *,
        window_size: Size,
        window_stride: Size | None = None,
        size: Size | None = None,
        scales: Scales | None = None,
        flip: bool = False,
        crf: bool = False,
        crf_settings: FullyConnectedCRF | None = None,
    ) -> None:
        super().__init__(crf=crf, crf_settings=crf_settings)
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

    def streams(self) -> bool:
        """Whether rows can be had one after the other: with one view, at the image's own size, without CRF."""
        return self.crf is None and _one_view(self.size, self.scales, self.flip)

    def bands(self, model: nn.Module, image: Tensor, normalize: Callable[[Tensor], Tensor]) -> Iterator[Band]:
        """As for `ImageInference`; where it streams, windows are normalized one by one."""
        if not self.streams():
            return super().bands(model, image, normalize)
        return self._rows(model, _cut_then_normalized(image, normalize), (image.shape[1], image.shape[2]))

    def _slide(self, model: nn.Module, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]

        def cut(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
            return image[..., rows[0] : sum(rows), columns[0] : sum(columns)]

        return stacked(self._rows(model, cut, (height, width)), height)

    def _rows(self, model: nn.Module, cut: Window, size: tuple[int, int]) -> Iterator[Band]:
        height, width = size
        padded = max(height, self.window[0]), max(width, self.window[1])

        def probs_of(top: int, left: int) -> Tensor:
            part = cut((top, min(self.window[0], height)), (left, min(self.window[1], width)))
            part = F.pad(part, (0, self.window[1] - part.shape[-1], 0, self.window[0] - part.shape[-2]))
            return _logits(model, part).softmax(1)

        for first, last, logits in averaged_bands(probs_of, padded, self.window, self.stride):
            if first < height:
                yield first, min(last, height), logits[..., : height - first, :width]


@runtime_checkable
class ValidNetwork(Protocol):
    """A network without padding: its `logits` are smaller than its image."""

    @property
    def margin(self) -> int:
        """Pixels that are lost on each side."""

    def valid_size(self, length: int) -> int:
        """The smallest valid input whose output has at least `length` pixels."""

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, C, H, W) of valid size -> `{"out": (B, num_classes, H - 2 margin, W - 2 margin)}`."""


class OverlapTile(ImageInference):
    """The network sees tiles with what surrounds them in the image, and its mirror image beyond the border.

    For networks without padding (U-Net, arXiv 1505.04597, section 2 and figure 2). Output tiles lie side by side;
    their input tiles overlap. A seam cannot be seen: tiles start at multiples of the network's stride, so that each
    pixel gets the logits that the network would give it in the whole image.

    Args:
        window_size: side or [height, width] of an output tile; rounded up to one that the network can give, and no
            larger than the image asks for. 388 is U-Net's, from an input tile of 572.
        size, scales, flip: as for `WholeImage`.
        crf, crf_settings: as for `ImageInference`.
    """

    def __init__(
        self,
        *,
        window_size: Size = 388,
        size: Size | None = None,
        scales: Scales | None = None,
        flip: bool = False,
        crf: bool = False,
        crf_settings: FullyConnectedCRF | None = None,
    ) -> None:
        super().__init__(crf=crf, crf_settings=crf_settings)
        self.window = height_width(window_size)
        self.size = size
        self.scales = scales or [1.0]
        self.flip = flip

    def __call__(self, model: nn.Module, image: Tensor) -> Tensor:
        """`image` (B, C, H, W) normalized -> logits (B, num_classes, H, W) float32.

        Raises:
            ConfigError: the network pads its convolutions.
        """
        self.check(model)
        return _averaged(
            lambda view: self._tile(cast(ValidNetwork, model), view), image, self.size, self.scales, self.flip
        )

    def streams(self) -> bool:
        """Whether rows can be had one after the other: with one view, at the image's own size, without CRF."""
        return self.crf is None and _one_view(self.size, self.scales, self.flip)

    def bands(self, model: nn.Module, image: Tensor, normalize: Callable[[Tensor], Tensor]) -> Iterator[Band]:
        """As for `ImageInference`; where it streams, tiles are normalized one by one."""
        if not self.streams():
            return super().bands(model, image, normalize)
        self.check(model)
        mirrored = _mirrored_then_normalized(image, normalize)
        return self._rows(cast(ValidNetwork, model), mirrored, (image.shape[1], image.shape[2]))

    def check(self, model: nn.Module) -> None:
        """Raises a ConfigError for a network that pads its convolutions."""
        if not isinstance(model, ValidNetwork):
            raise ConfigError(
                f"inference=tile with {type(model).__name__}, which has no margin",
                where="inference._target_",
                expected="a network whose output is smaller than its input, as model=unet_valid",
                fix="set inference=whole, or inference=slide for windows of the training size",
            )

    def _tile(self, model: ValidNetwork, image: Tensor) -> Tensor:
        size = image.shape[-2], image.shape[-1]
        return stacked(self._rows(model, lambda *window: mirror_window(image, *window), size), size[0])

    def _rows(self, model: ValidNetwork, cut: Window, size: tuple[int, int]) -> Iterator[Band]:
        height, width = size
        rows, columns = (_tiles(model, *lengths) for lengths in zip(size, self.window, strict=True))
        # Where two tiles overlap, the later one counts: a row of tiles ends where the next one starts.
        for (y, down), (end, _) in pairwise([*rows, (height, 0)]):
            logits: Tensor | None = None
            for x, right in columns:
                around = (y - model.margin, down + 2 * model.margin), (x - model.margin, right + 2 * model.margin)
                tile = model.logits(cut(*around))["out"].float()
                if logits is None:
                    logits = tile.new_empty(*tile.shape[:2], end - y, width)
                logits[..., x : x + right] = tile[..., : end - y, : width - x]
            assert logits is not None
            yield y, end, logits


def _cut_then_normalized(image: Tensor, normalize: Callable[[Tensor], Tensor]) -> Window:
    """Windows of `image` (B, H, W, C), of which nothing but the window is ever held as floats."""
    return lambda rows, columns: normalize(image[:, rows[0] : sum(rows), columns[0] : sum(columns)])


def _mirrored_then_normalized(image: Tensor, normalize: Callable[[Tensor], Tensor]) -> Window:
    """As above, for windows that may reach beyond the border."""
    channels_first = image.permute(0, 3, 1, 2)
    return lambda *window: normalize(mirror_window(channels_first, *window).permute(0, 2, 3, 1))


def refuse_too_large(inference: object, image: Tensor, num_classes: int) -> None:
    """Stops before the logits of a huge `image` (B, H, W, C) would be held all at once.

    Raises:
        ConfigError: more than `LARGEST_WHOLE` of them.
    """
    count, height, width = image.shape[:3]
    if count * height * width * num_classes <= LARGEST_WHOLE:
        return
    windows = isinstance(inference, SlidingWindow | OverlapTile)
    raise ConfigError(
        f"an image of {height}x{width} pixels has {height * width * num_classes:,} logits in {num_classes} classes",
        where=f"inference._target_={type(inference).__module__}.{type(inference).__qualname__}",
        expected=f"at most {LARGEST_WHOLE:,} at once; windows of one view, without CRF, need not hold them at once",
        fix=("" if windows else "inference=slide, with ")
        + "inference.size=null inference.scales=[1.0] inference.flip=false inference.crf=false",
    )


def _tiles(model: ValidNetwork, length: int, window: int) -> list[tuple[int, int]]:
    """(start, length) of the output tiles along an axis: of one length, and all starts multiples of the stride."""
    lost = 2 * model.margin
    smallest = model.valid_size(1)
    stride = model.valid_size(smallest - lost + 1) - smallest  # valid sizes lie one stride apart
    covering = model.valid_size(length) - lost
    tile = min(model.valid_size(max(window, stride)) - lost, covering)
    if tile == covering:
        return [(0, tile)]
    step = tile // stride * stride
    return [(start, tile) for start in range(0, length - tile + step, step)]


def _averaged(
    protocol: Callable[[Tensor], Tensor], image: Tensor, size: Size | None, scales: list[float], flip: bool
) -> Tensor:
    own = (image.shape[-2], image.shape[-1])
    base = height_width(size) if size is not None else own
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    if _one_view(None, scales, flip):
        return resize_logits(protocol(_resize_image(image, base)), own)
    probs: Tensor | None = None
    for scale, mirrored in views:
        view = _resize_image(image, (max(1, round(base[0] * scale)), max(1, round(base[1] * scale))))
        logits = protocol(view.flip(-1)).flip(-1) if mirrored else protocol(view)
        part = resize_logits(logits, own).softmax(1)
        probs = part if probs is None else probs + part
    assert probs is not None
    return log_probs(probs / len(views))


def _one_view(size: Size | None, scales: list[float], flip: bool) -> bool:
    return size is None and scales == [1.0] and not flip


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    return outputs_of(model, image)["out"].float()


def outputs_of(model: nn.Module, image: Tensor, *, resize: bool = True) -> dict[str, Tensor]:
    """What the network says of `image` (B, C, H, W): `out` and maybe others, logits (B, num_classes, H, W).

    With `resize=False`, which only networks of this package know, logits stay at their native size.

    Raises:
        ConfigError: it says something else.
    """
    outputs = model(image) if resize else model(image, resize=False)
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


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    # No antialiasing: the same resampling as OpenCV's in the training transforms.
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)

"""Tiles for networks without padding: the overlap-tile strategy of U-Net."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.inference.base import Window, WindowedInference
from segtrain.models.layers import mirror_window
from segtrain.types import Size, height_width
from segtrain.windows import Band


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


class OverlapTile(WindowedInference):
    """The network sees tiles with what surrounds them in the image, and its mirror image beyond the border.

    For networks without padding (U-Net, arXiv 1505.04597, section 2 and figure 2). Output tiles lie side by side;
    their input tiles overlap. A seam cannot be seen: tiles start at multiples of the network's stride, so that each
    pixel gets the logits that the network would give it in the whole image.

    Args:
        window_size: side or [height, width] of an output tile; rounded up to one that the network can give, and no
            larger than the image asks for. 388 is U-Net's, from an input tile of 572.
        kwargs: as for `ImageInference`.
    """

    def __init__(self, *, window_size: Size = 388, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = height_width(window_size)

    def check(self, model: nn.Module) -> None:
        """Raises a ConfigError for a network that pads its convolutions."""
        if not isinstance(model, ValidNetwork):
            raise ConfigError(
                f"inference=tile with {type(model).__name__}, which has no margin",
                where="inference._target_",
                expected="a network whose output is smaller than its input, as model=unet_valid",
                fix="set inference=whole, or inference=slide for windows of the training size",
            )

    def cut(self, image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        return mirror_window(image, rows, columns)

    def rows(self, model: nn.Module, window: Window, size: tuple[int, int]) -> Iterator[Band]:
        network = cast(ValidNetwork, model)
        height, width = size
        rows, columns = (_tiles(network, *lengths) for lengths in zip(size, self.window, strict=True))
        # Where two tiles overlap, the later one counts: a row of tiles ends where the next one starts.
        for (y, down), (end, _) in pairwise([*rows, (height, 0)]):
            logits: Tensor | None = None
            for x, right in columns:
                around = (
                    (y - network.margin, down + 2 * network.margin),
                    (x - network.margin, right + 2 * network.margin),
                )
                tile = network.logits(window(*around))["out"].float()
                if logits is None:
                    logits = tile.new_empty(*tile.shape[:2], end - y, width)
                logits[..., x : x + right] = tile[..., : end - y, : width - x]
            assert logits is not None
            yield y, end, logits


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

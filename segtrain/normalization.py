"""From what a loader delivers to what a network takes: float32, normalized, with the colors changed that were left."""

from __future__ import annotations

import torch
from torch import Tensor


class Normalization:
    """(image / 255 - mean) / std on the network's device, in its memory layout.

    Args:
        mean, std: per channel, for images scaled to [0, 1].
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std).view(1, -1, 1, 1) * 255
        self.memory_format = torch.contiguous_format

    @property
    def device(self) -> torch.device:
        """Where images must be."""
        return self.mean.device

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Normalization:
        """Images will be on this device and have this layout."""
        self.memory_format = memory_format
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, image: Tensor, color: Tensor | None = None) -> Tensor:
        """Image (B, H, W, C) uint8 or float32 in [0, 255] -> network input (B, C, H, W) float32.

        `color` (B, C, C + 1) float32 changes the image's colors first, which are then clamped to [0, 255].
        """
        if color is not None:
            return self._painted(image, color)
        if self.memory_format == torch.channels_last:
            # As rows of W * C values: a broadcast along the last axis alone is several times faster on the CPU.
            width, channels = image.shape[2:]
            rows = image.to(torch.float32, copy=True).contiguous().flatten(2)
            mean, std = (value.view(-1).expand(channels).repeat(width) for value in (self.mean, self.std))
            rows.sub_(mean).div_(std)
            return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)
        planes = image.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format, copy=True)
        return planes.sub_(self.mean).div_(self.std)

    def _painted(self, image: Tensor, color: Tensor) -> Tensor:
        # Normalization is folded into the matrix and into the clamp's bounds. Sums of products and no matrix product:
        # autocast and TF32 would round that.
        weights = color / self.std.view(1, -1, 1)
        weights[..., -1] -= (self.mean / self.std).view(1, -1)
        columns = weights[..., None, None].unbind(2)
        channels = image.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format)
        out = torch.empty_like(channels)
        torch.addcmul(columns[-1], channels[:, :1], columns[0], out=out)
        for channel in range(1, channels.shape[1]):
            out.addcmul_(channels[:, channel : channel + 1], columns[channel])
        return torch.clamp(out, -self.mean / self.std, (255 - self.mean) / self.std, out=out)

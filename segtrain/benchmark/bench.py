"""What every topic is given: the settings, the device, and how long and how often to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segtrain.device import amp_dtype, pick_device
from segtrain.overlay import lay_over
from segtrain.settings import Settings


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark.

    Args:
        tree: the config as plain data, not resolved.
        repeats: rounds over all candidates.
        seconds: to be spent on each candidate; None: each topic's own.
        profiles: kinds of files that the data topic writes, where the config names no dataset: voc, cityscapes.
        say: tells what is being measured.
        folder: where files may be written for the time of the run.
    """

    tree: dict[str, Any]
    repeats: int
    seconds: float | None
    profiles: tuple[str, ...]
    say: Callable[[str], None]
    folder: Path

    def settings(self, over: Mapping[str, Any] | None = None, choices: Mapping[str, str] | None = None) -> Settings:
        """The run's settings, with other values and groups laid over them."""
        return Settings(lay_over(self.tree, over or {}, choices or {}))

    def budget(self, seconds: float) -> float:
        """Seconds per candidate: the user's, else these."""
        return self.seconds or seconds

    def device(self) -> torch.device:
        """Where the config wants to run."""
        return pick_device(self.settings().options.device)

    def precision(self) -> torch.dtype | None:
        """The autocast precision of the config; None: float32."""
        return amp_dtype(self.settings().options.amp, self.device())

"""The keys of `trainer/*.yaml`, with their types and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segtrain.errors import ConfigError
from segtrain.types import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Seed


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How a run trains; `configs/trainer/default.yaml` says what each key does."""

    epochs: PositiveInt = 20
    max_steps: PositiveInt | None = None
    device: str = "auto"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    accumulate: PositiveInt = 1
    grad_clip: PositiveFloat | None = None
    ema: Fraction | None = None
    compile: bool = False
    channels_last: Literal["auto"] | bool = "auto"
    sync_bn: bool = True
    deterministic: bool = False
    seed: Seed = 42
    monitor: str | None = None
    early_stop: PositiveInt | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    save_every: NonNegativeInt = 0
    log_every: PositiveInt = 20
    samples: NonNegativeInt = 4
    tensorboard: bool = True
    val_loss: bool = True
    forecast: bool = True
    profile: bool = False
    resume: str | None = None
    resume_allow: list[str] | None = None

    def __post_init__(self) -> None:
        if self.monitor == "loss" and not self.val_loss:
            raise ConfigError(
                "trainer.monitor=loss with trainer.val_loss=false",
                expected="a score that is computed",
                fix="trainer.val_loss=true, or another trainer.monitor",
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return min(self.epochs * steps_per_epoch, self.max_steps or self.epochs * steps_per_epoch)

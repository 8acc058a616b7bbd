"""Nothing non-finite is ever saved: watching losses and gradients without making a GPU wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from segtrain import distributed
from segtrain.errors import NonFiniteError, listed
from segtrain.types import Batch, PositiveInt, Record

MAX_SKIPPED = 20
"""With `skip`: steps in a row that may be left out before the run stops after all."""


MAX_SCALER_SKIPS = 50
"""Updates in a row that an fp16 loss scaler may leave out: from its 65536, halved each time, it is at 1 after 16."""


class Scaler(Protocol):
    """As much of `torch.amp.GradScaler` as is watched."""

    def is_enabled(self) -> bool:
        """Whether it scales at all."""

    def get_scale(self) -> float:
        """The factor now; reading it makes the host wait for the device."""


class ScalerGuard:
    """Stops a run whose fp16 loss scaler leaves out every update, which would train nothing and never end.

    A scaler halves its scale with each update that it leaves out, and raises it again no sooner than after 2000 good
    ones, so that two readings of the scale tell how many were left out between them: nothing is read in the steps
    themselves. Call `check` at log points.

    Args:
        lr: the learning rate now, for the error.
        limit: updates left out in a row that stop the run.
        backoff: the scaler's `backoff_factor`.
    """

    def __init__(
        self, scaler: Scaler, *, lr: Callable[[], float], limit: PositiveInt = MAX_SCALER_SKIPS, backoff: float = 0.5
    ) -> None:
        self.scaler = scaler
        self.lr = lr
        self.limit = limit
        self.backoff = backoff
        self.step = 0
        self.streak = 0
        self.left_out = 0
        self.scale = scaler.get_scale() if scaler.is_enabled() else 1.0

    def restart(self, step: int) -> None:
        """Goes on from a restored scaler, at `step`."""
        self.step = step
        self.streak = 0
        self.scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0

    def check(self, step: int) -> int:
        """Updates left out since the last call, of the steps up to `step`, counted from 1.

        Raises:
            NonFiniteError: `limit` in a row were, or the scale is below 1, where gradients vanish rather than overflow.
        """
        if not self.scaler.is_enabled():
            return 0
        before, self.scale = self.scale, self.scaler.get_scale()
        made, self.step = step - self.step, step
        lost = min(made, round(math.log(before / self.scale) / -math.log(self.backoff))) if self.scale > 0 else made
        lost = max(lost, 0)
        self.left_out += lost
        # Good and bad steps mixed: a streak is only sure to go on where every step was left out.
        self.streak = self.streak + lost if lost == made else lost
        if self.streak >= self.limit or self.scale < 1:
            raise NonFiniteError(
                f"the fp16 loss scaler left out {self.streak} updates in a row up to step {step} and its scale is "
                f"{self.scale:.3g} (lr {self.lr():.3g})",
                expected=f"a scale of at least 1 and fewer than {self.limit} updates left out in a row; the last saved "
                "checkpoint is from before this step",
                fix="use trainer.amp=bf16 or off, or lower optimizer.lr",
            )
        return lost


class FiniteGuard:
    """Judges each step's loss and gradients.

    On the CPU looking costs nothing, and a step that may be skipped must be looked at before the update. On a GPU that
    stops at the first fault, the losses of the last steps are kept on the device and read by `check`, which is called
    at log points and before every save.

    Args:
        on_nonfinite: `stop` at the first bad step, or `skip` its update, at most `MAX_SKIPPED` in a row.
        keep: steps between two calls of `check`.
        say: tells a person about skipped steps.
        lr: the learning rate now, for the error.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        on_nonfinite: Literal["stop", "skip"],
        keep: int,
        say: Callable[[str], None],
        lr: Callable[[], float],
    ) -> None:
        self.device = device
        self.deferred = device.type == "cuda" and on_nonfinite == "stop"
        self.limit = 0 if on_nonfinite == "stop" else MAX_SKIPPED
        self.say = say
        self.lr = lr
        self.buffers: dict[str, Tensor] = {}
        # No batches: on a GPU they would hold the memory of `keep` steps' images.
        self.recent: deque[tuple[int, list[list[Record]], Tensor]] = deque(maxlen=keep)
        self.skipped = 0
        self.ranks = distributed.world_size()

    def remember(self, model: nn.Module) -> None:
        """Before a step that may be skipped: BatchNorm takes in a bad batch during the forward pass already."""
        if self.limit:
            self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def admits(self, model: nn.Module, step: int, batches: list[Batch], loss: Tensor, fault: Tensor | None) -> bool:
        """Whether the update of this step (counted from 1) may be made; if not, the model's buffers are as before.

        Args:
            loss: of the step, a scalar without a graph.
            fault: a scalar, 0 where all gradients are finite; None under an fp16 scaler: an infinite gradient is usual
                there, and the scaler skips that step itself.

        Raises:
            NonFiniteError: it may not, and steps are not to be skipped, or too many were.
        """
        if self.deferred:
            judged = loss if fault is None else torch.where(fault == 0, loss, math.nan)
            self.recent.append((step, [batch.records for batch in batches], judged))
            return True
        bad = not math.isfinite(loss.item()) or bool(fault)
        if not (distributed.any_(bad, self.device) if self.ranks > 1 else bad):
            self.skipped = 0
            return True
        self.skipped += 1
        if self.skipped > self.limit:
            raise self.error(step, [batch.records for batch in batches])
        for name, buffer in model.named_buffers():
            buffer.copy_(self.buffers[name])
        self.say(f"warning: step {step} skipped, its loss or gradient is not finite")
        return False

    def check(self) -> None:
        """Raises `NonFiniteError` if a step that was let through on a GPU was not finite."""
        if not self.recent:
            return
        bad = (~torch.isfinite(torch.stack([loss for _, _, loss in self.recent]))).nonzero()
        if distributed.any_(len(bad) > 0, self.device):
            step, records, _ = self.recent[int(bad[0])] if len(bad) else self.recent[-1]
            raise self.error(step, records)

    def check_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Raises `NonFiniteError` if a number of the model or the optimizer that is about to be saved is not finite.

        Every step's gradients may be finite and their squares, which Adam adds up, not be.
        """
        named = [*model.state_dict().items()]
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            named += [(f"{key} of {names[parameter]}", value) for key, value in state.items() if torch.is_tensor(value)]
        mine = _not_finite(named)
        if distributed.any_(bool(mine), self.device):
            bad = list(dict.fromkeys(name for rank in distributed.gather(mine) for name in rank))
            raise NonFiniteError(
                f"{len(bad)} of the weights, statistics or the optimizer's sums hold NaN or infinity "
                f"(lr {self.lr():.3g})",
                where=listed(bad),
                expected="finite numbers; nothing was saved",
                fix="lower optimizer.lr, set trainer.grad_clip=1.0, or use trainer.amp=bf16 or off",
            )

    def error(self, step: int, records: list[list[Record]]) -> NonFiniteError:
        """The error that names the samples of a step, on whatever rank they were."""
        names = distributed.gather([record.source for batch in records for record in batch])
        return NonFiniteError(
            f"the loss or a gradient became NaN or infinite at step {step} (lr {self.lr():.3g})",
            where=listed((name for rank in names for name in rank), limit=16),
            expected="finite numbers; the last saved checkpoint is from before this step",
            fix="lower optimizer.lr, set trainer.grad_clip=1.0 or scheduler.warmup_steps, use trainer.amp=bf16 or off, "
            "or trainer.on_nonfinite=skip",
        )


def _not_finite(named: list[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; each device is waited for once."""
    numbers = [(name, tensor) for name, tensor in named if tensor.is_floating_point() or tensor.is_complex()]
    found: list[str] = []
    for device in dict.fromkeys(tensor.device for _, tensor in numbers):
        here = [(name, tensor) for name, tensor in numbers if tensor.device == device]
        bad = torch.stack([~torch.isfinite(tensor).all() for _, tensor in here]).cpu().tolist()
        found += [name for (name, _), one in zip(here, bad, strict=True) if one]
    return found

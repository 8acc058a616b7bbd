"""The gradients of one optimizer step, from as many batches, pieces and ranks as it has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segtrain import distributed
from segtrain.tasks.base import Task


class Gradients:
    """Adds them up, clips them, and says whether they are numbers.

    Args:
        network: what is called: the model, or what spreads it over ranks or compiles it.
        task: gives the losses.
        optimizer: of the parameters that learn.
        scaler: of fp16; one that is not enabled changes nothing.
        precision: a new context of the precision that the forward pass runs in.
        grad_clip: what their norm may be; None: anything.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        precision: Callable[[], AbstractContextManager[Any]],
        grad_clip: float | None,
    ) -> None:
        self.network = network
        self.task = task
        self.optimizer = optimizer
        self.scaler = scaler
        self.precision = precision
        self.grad_clip = grad_clip
        self.parameters = list(network.parameters())  # once: walking through a deep network takes milliseconds
        self.ranks = distributed.world_size()
        self.spread = next((part for part in network.modules() if isinstance(part, DistributedDataParallel)), None)
        self.unscaled = torch.ones((), device=next(iter(self.parameters)).device)
        self.zeros: list[Tensor] = []

    def add(self, batches: list[Any], network: nn.Module | None = None) -> dict[str, Tensor]:
        """Adds the gradients of a step's batches, and returns their losses by name, detached.

        Args:
            batches: all of this rank's, on the device, in as many pieces as they are trained in.
            network: another than the one that is trained; then no rank waits for the others.
        """
        counts = self._counts(batches, together=network is None)
        network = self.network if network is None else network
        total: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            with self._exchange(number == len(batches) - 1):
                with self.precision():
                    losses = self.task.losses(network, batch, counts)
                share = losses["loss"]
                if self.ranks > 1:  # DDP averages gradients over ranks; ours are shares of one sum
                    share = share * self.ranks
                self.scaler.scale(share).backward()
            for name, value in losses.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        return total

    def finish(self) -> Tensor | None:
        """Unscales and clips them. A scalar, 0 where all are finite; None: the scaler looks itself.

        It stays on the device: nobody waits here.
        """
        self.scaler.unscale_(self.optimizer)
        norm = None if self.grad_clip is None else nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        if self.scaler.is_enabled():
            return None
        return self._fault() if norm is None else torch.isfinite(norm).logical_not()

    def forget(self) -> None:
        """No gradients, and no memory for them."""
        for parameter in self.parameters:  # what the optimizer's zero_grad does, without its hooks for profilers
            parameter.grad = None

    def _counts(self, batches: list[Any], together: bool) -> Tensor | None:
        """What the losses of a step are divided by; None: it is one batch alone, which counts for itself."""
        if len(batches) == 1 and self.ranks == 1:
            return None
        counts = torch.stack([self.task.counts(batch) for batch in batches]).sum(0)
        return distributed.sum_(counts) if together else counts

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once per step, with the last batch's backward."""
        return nullcontext() if last or self.spread is None else self.spread.no_sync()

    def _fault(self) -> Tensor:
        """0 where every gradient is finite, 1 where one is not.

        What torch's own scaler asks, of the gradients as they are: a third of what their norm costs.
        """
        if not self.zeros:  # many at once: making one takes longer than the check
            self.zeros = list(self.unscaled.new_zeros(100).unbind())
        found = self.zeros.pop()
        gradients = [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self.unscaled)
        return found

"""One evaluation for training and for `evaluate`: every image once, whole, counted in integers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from segtrain import distributed
from segtrain.data.workers import dead_workers_reported
from segtrain.device import any_size
from segtrain.tasks.base import Meter, Task


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    task: Task,
    device: torch.device,
    *,
    precision: Callable[[], AbstractContextManager[Any]],
    meter: Meter | None = None,
    after_batch: Callable[[int], object] = lambda images: None,
) -> dict[str, Any]:
    """Scores of `model` over every image that `loader` yields on any rank.

    No rank waits for another inside the loop, because ranks may have different numbers of images; counts are added
    once at the end. `meter` may look at more than the task's own does. `after_batch(images)` may raise to stop. The
    model's training mode is restored.
    """
    was_training = model.training
    model.eval()
    meter = meter or task.meter()
    started, images = time.monotonic(), 0
    try:
        with torch.inference_mode(), any_size(), dead_workers_reported():
            for batch in loader:
                with precision():
                    meter.update(model, batch.to(device))
                images += len(batch)
                after_batch(len(batch))
    finally:
        model.train(was_training)
    meter.reduce()
    total = int(distributed.sum_(torch.tensor([images], device=device)).item())
    return {
        **meter.scores(),
        "images": total,
        "images_per_second": total / max(1e-9, time.monotonic() - started),
    }

"""`trainer.profile=true`: some steps of a run recorded operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SKIPPED, WARM_UP, RECORDED = 5, 2, 5
"""Steps before the recording, steps that the profiler needs to settle, steps that are recorded."""


class Profiler:
    """Records a few steps once they run evenly; `step()` is called after each.

    Args:
        file: where the trace goes; Perfetto (ui.perfetto.dev), chrome://tracing and TensorBoard's profiler open it.
        device: whose kernels are recorded beside the CPU's operations.
        say: tells a person where the trace is.
    """

    def __init__(self, file: Path, device: torch.device, say: Callable[[str], None]) -> None:
        self.file = file
        self.say = say
        self.steps = 0
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.recording = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=SKIPPED, warmup=WARM_UP, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Profiler:
        self.recording.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.recording.stop()
        if self.steps < SKIPPED + WARM_UP + RECORDED:
            self.say(
                f"note     the run had {self.steps} steps, the profiler takes {SKIPPED + WARM_UP + RECORDED}: "
                f"{'a part is' if self.file.exists() else 'nothing is'} recorded"
            )

    def step(self) -> None:
        """After each step."""
        self.steps += 1
        self.recording.step()

    def _write(self, recording: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        recording.export_chrome_trace(str(self.file))
        self.say(f"profile: {self.file}")


class NoProfiler:
    """`trainer.profile=false`."""

    def __enter__(self) -> NoProfiler:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def step(self) -> None:
        """Nothing to record."""

"""Peak memory of one computation, in a process of its own where the CPU's memory is what counts."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")
"""A 5 written here makes Linux forget the highest memory so far; other systems cannot."""
Job = tuple[Callable[..., Callable[[], object]], tuple[Any, ...]]
"""A module's function that prepares a computation, and its plain arguments."""


def peaks(jobs: dict[str, Job], device: torch.device) -> dict[str, float]:
    """MiB that each computation needs at its peak, beyond what was there before it."""
    if device.type == "cuda":
        return {key: _cuda_peak(*job, device) for key, job in jobs.items()}
    # A fork server imports the heavy packages once. Its children have computed nothing yet: no peak of another's.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__, *sorted({job[0].__module__ for job in jobs.values()})])
    pool = context.Pool(1, maxtasksperchild=1)
    try:
        return dict(zip(jobs, pool.starmap(_cpu_peak, jobs.values(), chunksize=1), strict=True))
    finally:  # a pool's own `with` kills its processes, and what they hold would be reported as leaked
        pool.close()
        pool.join()


def _cpu_peak(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> float:
    torch.set_num_threads(1)  # each thread has buffers of its own
    compute = prepare(*arguments)
    _forget()
    before = _resident()
    compute()
    return max(0.0, _highest() - before)


def _forget() -> None:
    """To make inputs may have taken more than what is measured: what they left goes back, and so does the peak."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:  # glibc keeps freed blocks, and what reuses them would cost nothing
        gc.collect()
        give_back(0)
    if FORGET.exists():
        FORGET.write_text("5", encoding="ascii")


def _cuda_peak(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: torch.device) -> float:
    compute = prepare(*arguments)
    compute()  # workspaces of libraries are made at the first call
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    compute()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _resident() -> float:
    """MiB in memory now; its highest value where the system does not say."""
    return _status("VmRSS") if STATUS.exists() else _highest()


def _highest() -> float:
    """MiB in memory at the peak of this process."""
    if STATUS.exists():
        return _status("VmHWM")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _status(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10

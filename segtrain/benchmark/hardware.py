"""On what and with what a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from segtrain.benchmark.measuring import interleaved, waiting_for

MATRIX_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1536}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, GPU, memory, threads and the load before the run, as plain values."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(_memory() / 2**30, 1),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "gpu_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if device.type == "cuda"
        else None,
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
    }


def machine_line(found: dict[str, Any]) -> str:
    """The same for people."""
    gpu = f", {found['gpu']} {found['gpu_memory_gib']} GiB" if found["gpu"] else ", no GPU used"
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB{gpu}   "
        f"torch threads {found['torch_threads']}   load {found['load']}"
    )


def commit() -> str | None:
    """The git commit of the source tree that this package lies in, `+changes` where files differ from it; else None."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():  # an installed package, in whatever repository its environment lies
        return None
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".", "../configs")
    return head + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed: the same as no commit
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _memory() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def matrix_rate(device: torch.device, dtype: torch.dtype | None, *, seconds: float = 1.0) -> float:
    """FLOP/s of a large square matrix product in `dtype`, None for float32: what the device can do at best.

    On CUDA, float32 products may use TF32, as cuDNN's convolutions do by default.
    """
    side = MATRIX_SIDE[device.type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype or torch.float32) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        times = interleaved({"product": lambda: a @ b}, repeats=5, seconds=seconds, sync=waiting_for(device))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * side**3 / min(times["product"])

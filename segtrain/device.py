"""Which device a run uses, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from segtrain import distributed
from segtrain.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `mps`, `cuda` or `cuda:N` -> a device that exists.

    Raises:
        ConfigError: it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"trainer.device={name}", expected="auto, cpu, mps, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = distributed.local_rank() if device.index is None else device.index
        if 0 < count <= index and device.index is None:
            raise ConfigError(
                f"process {index} on this machine (LOCAL_RANK) has no GPU of its own: it sees {count}",
                expected="as many GPUs as processes",
                fix=f"torchrun --nproc-per-node={count}, or LOCAL_RANK=0 where the launcher lets each process see its "
                "own GPU alone",
            )
        if index >= count:
            raise ConfigError(
                f"trainer.device={name}, but {count} CUDA devices are available",
                expected="a device that exists",
                fix="trainer.device=auto, or check the driver with nvidia-smi",
            )
        if device.index is not None and distributed.world_size() > 1:
            raise ConfigError(
                f"trainer.device={name} in a run of {distributed.world_size()} processes: all would use one GPU",
                expected="a GPU for each",
                fix="trainer.device=cuda; which GPUs they are, CUDA_VISIBLE_DEVICES says",
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("trainer.device=mps, but there is no MPS device", fix="trainer.device=auto")
    elif device.type not in ("cpu", "mps"):
        raise ConfigError(f"trainer.device={name}", expected="auto, cpu, mps, cuda or cuda:N")
    return device


def amp_dtype(amp: Literal["auto", "bf16", "fp16", "off"], device: torch.device) -> torch.dtype | None:
    """The autocast precision, None for float32.

    Raises:
        ConfigError: the device cannot do what was asked.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if amp == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"trainer.amp=fp16 needs a CUDA device, this run is on {device}", fix="trainer.amp=bf16 or auto"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A new context in which operations run in `dtype` where they may; None: as they are around it."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def memory_format(channels_last: Literal["auto"] | bool, device: torch.device) -> torch.memory_format:
    """The layout of weights and images: channels last is faster on CUDA and CPU, and young on MPS."""
    wanted = device.type != "mps" if channels_last == "auto" else channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def be_deterministic(wanted: bool) -> None:
    """Asks for the same bits on every run, or for cuDNN's fastest algorithms."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    if wanted != torch.are_deterministic_algorithms_enabled():  # saying so imports torch's compiler, for a second
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


@contextmanager
def any_size() -> Iterator[None]:
    """While images of many sizes pass: cuDNN does not try out algorithms for each, which takes longer than it saves."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def usable_cores() -> int:
    """Cores that this process and its data workers may use, of those that it shares with the other ranks here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

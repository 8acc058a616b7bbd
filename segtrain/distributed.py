"""Ranks under torchrun; for a single process every function here does nothing and costs nothing."""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

SETTLE = 0.1
"""Seconds that a process of several waits before it ends."""


def rank() -> int:
    """This process's number; 0 is the one that prints and writes."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train or evaluate together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: the GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Joins the other processes that torchrun started."""
    if world_size() > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
        atexit.register(stop)


def stop() -> None:
    """Leaves the group, so that the processes end without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # gloo's threads drop the tensors of the last exchange a little after it is over, for which they need the
        # interpreter: gone by then, it would end the process by SIGABRT (pytorch/pytorch#190489).
        time.sleep(SETTLE)


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Adds `tensor` over the ranks, in place, and returns it; through the rank's GPU where NCCL moves nothing else."""
    if not dist.is_initialized():
        return tensor
    if tensor.device.type == "cpu" and dist.get_backend() == "nccl":
        moved = tensor.to(torch.device("cuda", torch.cuda.current_device()))
        dist.all_reduce(moved)
        return tensor.copy_(moved)
    dist.all_reduce(tensor)
    return tensor


def any_(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank: ranks must stop together or hang apart."""
    if not dist.is_initialized():
        return flag
    return bool(sum_(torch.tensor([float(flag)], device=device)).item())


def from_main(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def copy_buffers(module: torch.nn.Module) -> None:
    """Gives every rank rank 0's buffers: BatchNorm statistics drift apart between ranks while training."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)

"""Which errors say that memory ran out: PyTorch has a class for some of them, and only words for the others."""

from __future__ import annotations

WORDS = (
    "out of memory",  # the allocators of CUDA, HIP and MPS, and the CUDA driver itself
    "can't allocate memory",  # the allocator of the CPU
    "CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN ask the driver for memory of their own
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device or of the machine ran out: the same work in smaller pieces may fit.

    No sign of it is `CUDNN_STATUS_NOT_SUPPORTED`, which old versions of cuDNN gave for lack of memory, too: it mostly
    means what it says, and smaller pieces would hide that.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    )

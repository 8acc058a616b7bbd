"""Which errors say that memory ran out: PyTorch has a class for some of them, and only words for the others."""

from __future__ import annotations

WORDS = (
    "out of memory",  # the driver of CUDA, and the allocators of CUDA, HIP and MPS
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuSOLVER and cuDNN 8 ask the driver for memory of their own
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, and HOST
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device or of the machine ran out: the same work in smaller pieces may fit.

    Only the first line of a text counts: those below it may quote anybody's source, as errors from data workers do.
    No sign of it is `CUDNN_STATUS_NOT_SUPPORTED`, which old versions of cuDNN gave for lack of memory, too: it mostly
    means what it says, and smaller pieces would hide that.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    first = str(error).partition("\n")[0]
    return isinstance(error, RuntimeError) and any(words in first for words in WORDS)

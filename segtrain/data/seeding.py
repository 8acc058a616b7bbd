"""The random numbers of one sample, from its key alone: the same in every process, whatever was drawn before."""

from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np

_LOW = (1 << 128) - 1


class Stream:
    """A NumPy and a Python generator that `start` sets to where a key's numbers begin.

    Made once and set anew for each sample: to make and seed two generators took a tenth of a cached sample's time.
    What they are set to is a hash (BLAKE2b) of the key, so that neighboring keys have nothing in common.
    """

    def __init__(self) -> None:
        self.numpy = np.random.Generator(np.random.PCG64(0))
        self.python = random.Random(0)

    def start(self, key: tuple[int, int, int]) -> None:
        """Both generators at the beginning of `key`, whole numbers of any size and sign."""
        drawn = int.from_bytes(blake2b(b"%d %d %d" % key, digest_size=48).digest(), "little")
        self.numpy.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": drawn & _LOW, "inc": drawn >> 128 & _LOW | 1},  # every odd increment is a stream
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.python.seed(drawn >> 256)


def streams(key: tuple[int, int, int]) -> tuple[np.random.Generator, random.Random]:
    """New generators at the beginning of `key`."""
    stream = Stream()
    stream.start(key)
    return stream.numpy, stream.python

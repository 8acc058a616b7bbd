"""What is said on standard output and standard error, where these may be closed, full, or read no more."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from segtrain.errors import ResourceError


def say(text: str, end: str = "\n") -> None:
    """To standard output.

    Raises:
        ResourceError: it goes to a file that cannot be written, as on a full disk.
    """
    failure = tell(sys.stdout, text + end)
    if failure is not None and not isinstance(failure, BrokenPipeError):
        raise unwritable_output(failure)


def unwritable_output(error: OSError) -> ResourceError:
    """For `> file` on a full disk."""
    return ResourceError(f"standard output cannot be written: {error.strerror}", fix="free some space")


def tell(stream: TextIO, text: str) -> OSError | None:
    """Writes the text now, whatever the stream's encoding lacks; returns why it could not, after which it is mute.

    Nobody may be reading any more, as after `| head -1`: that is no failure of the program.
    """
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        mute(stream)
        return error
    return None


def mute(stream: TextIO) -> None:
    """Sends what the stream still holds, and all that follows, to nowhere: Python's own last flush must not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_missing_streams() -> None:
    """Python has None for a stream that was closed at the start, as by `2>&-`, and the next file would get its number.

    In their order, so that each gets the number that belongs to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end

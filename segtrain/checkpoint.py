"""Checkpoints: plain data and tensors in, the same out, never torn and never silently damaged.

The only module that calls `torch.save` and `torch.load`. A file is written atomically and read back before it takes its
name. A `last.pt` that is replaced stays as `previous.pt`. A digest inside the file covers every tensor byte, because
neither zip nor pickle notices a flipped bit in the data.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segtrain.atomic import write_atomically
from segtrain.errors import CheckpointError

FORMAT = 1
"""Version of the layout below; raised when a reader of the old one could not read the new one."""

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
"""The checkpoints of a run: its newest state, the one saved before that, and that of the best epoch."""


def save(path: Path, state: Mapping[str, Any], *more: Path) -> str:
    """Writes `state` (tensors, numbers, strings, lists, dicts) to `path` and `more` atomically, in this order.

    Each file is read back before it takes its name. A `last.pt` that is replaced stays as `previous.pt`.

    Returns:
        The SHA-256 digest of the state.

    Raises:
        ResourceError: the disk is full, keeps other bytes, or the folder cannot be written; older files are untouched.
    """
    whole: dict[str, Any] = {"format": FORMAT, **state}
    whole["sha256"] = digest(whole)
    buffer = io.BytesIO()  # torch.save hides the cause of a failed write; writing the bytes ourselves keeps the errno
    torch.save(whole, buffer)
    for target in (path, *more):
        keep_as = PREVIOUS if target.name == LAST else None
        write_atomically(target, buffer.getbuffer(), read_back=True, keep_as=keep_as)
    return str(whole["sha256"])


def load(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, complete and unchanged since it was written.

    Raises:
        CheckpointError: missing, damaged, of another program, or of a newer format.
    """
    state = read(path)
    if "format" not in state or "sha256" not in state:
        raise CheckpointError(
            "this file is not a segtrain checkpoint",
            where=path,
            expected="a file written by segtrain (best.pt, last.pt)",
            fix="plain weights are loaded with model.weights=PATH",
        )
    if type(state["format"]) is not int or state["format"] != FORMAT:  # a tensor has no single truth
        raise _other_format(state, path)
    if _digest_of_foreign(state, path) != state["sha256"]:
        raise CheckpointError(
            "checkpoint damaged: its content does not match its SHA-256 digest",
            where=path,
            expected=str(state["sha256"]),
            fix=f"use another checkpoint of the run ({LAST}, {PREVIOUS}, {BEST})",
        )
    return state


def _digest_of_foreign(state: Mapping[str, Any], path: Path) -> str:
    """The digest of what was read from a file, which may hold anything that torch reads.

    Raises:
        CheckpointError: it holds what has no digest and training never writes: bytes, sets, sparse tensors, keys that
            are no text, lists without end.
    """
    try:
        return digest(state)
    except (TypeError, ValueError, RuntimeError) as error:
        if "can't allocate memory" in str(error):  # of a whole file, for want of memory
            raise
        raise CheckpointError(
            f"this file is not a segtrain checkpoint: {_first_line(error)}",
            where=path,
            expected="tensors, numbers, text, lists and dicts by names, as training writes them",
            fix=f"use a checkpoint that segtrain wrote ({LAST}, {PREVIOUS}, {BEST})",
        ) from error


def _other_format(state: Mapping[str, Any], path: Path) -> CheckpointError:
    found, versions = state["format"], state.get("versions")
    writer = versions.get("segtrain") if isinstance(versions, dict) else None
    writer = writer if isinstance(writer, str) else None
    newer = isinstance(found, int) and found > FORMAT
    named = f"segtrain {writer}" if writer else "a segtrain version that it does not name"
    return CheckpointError(
        f"checkpoint format {found!r}, written by {named}, is {'newer than' if newer else 'unknown to'} this version",
        where=path,
        expected=f"format {FORMAT}",
        fix=f"use {named if writer else 'the version that wrote it'}" + (" or a newer one" if newer else ""),
    )


def read(path: Path) -> dict[str, Any]:
    """Any torch file that holds a dict, loaded on the CPU without running code from it.

    Raises:
        CheckpointError: missing, unreadable, or holding more than plain data and tensors.
    """
    try:
        if not path.is_file():
            raise CheckpointError("no such file", where=path, fix="give the path of a .pt or .pth file")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the file cannot be read as plain weights: {_first_line(error)}",
            where=path,
            expected="tensors, numbers, strings, lists and dicts only; objects could run code when loaded",
            fix="save model.state_dict() rather than the model, or fetch the file again if it should be one",
        ) from error
    except PermissionError as error:
        raise CheckpointError(
            f"the file cannot be read: {error.strerror}", where=path, fix="give this user the right to read it"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"file damaged: {path.stat().st_size} bytes that torch cannot read ({_first_line(error)})",
            where=path,
            expected="a complete file written by torch.save",
            fix="copy or download it again, or use another checkpoint",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the file holds a {type(state).__name__}",
            where=path,
            expected="a dict of tensors (a state_dict)",
        )
    return state


# What torch.load raises on a file that was cut, overwritten or never was one.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


def _first_line(error: Exception) -> str:
    """What the error says; its kind where it says nothing, as for an empty file."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes, tensor bytes and the JSON of the rest; the key `sha256` is left out."""
    sha = hashlib.sha256()
    text: list[str] = []
    for key in sorted(state):
        if key != "sha256":
            text.append(f"{key}\n")
            _feed(sha, text, state[key])
    _flush(sha, text)
    return sha.hexdigest()


_PIECES = 4096
"""Texts that may wait for the digest: one call for each would be slow, one for all needs memory."""


def _flush(sha: Any, text: list[str]) -> None:
    sha.update("".join(text).encode())
    text.clear()


def _feed(sha: Any, text: list[str], value: Any) -> None:
    """Adds a value to the digest; text gathers in `text` until a tensor follows it.

    A long run's scores are a hundred thousand numbers, which every checkpoint holds anew.
    """
    if type(value) is float and math.isfinite(value):  # first, and as JSON has it: most values are numbers
        text.append(f"{value!r}\n")
    elif isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        text.append(f"tensor {tensor.dtype} {tuple(tensor.shape)}\n")
        _flush(sha, text)
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict | Mapping):
        text.append(f"dict {len(value)}\n")
        for key in sorted(value, key=repr):
            text.append(f"{key!r}\n")
            _feed(sha, text, value[key])
        if len(text) > _PIECES:
            _flush(sha, text)
    elif isinstance(value, list | tuple):
        text.append(f"list {len(value)}\n")
        for item in value:
            _feed(sha, text, item)
    else:
        text.append(f"{json.dumps(value)}\n")

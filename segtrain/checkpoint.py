"""Checkpoints: plain data and tensors in, the same out, never torn and never silently damaged.

The only module that calls `torch.save` and `torch.load`. A file is written beside its target, flushed to the disk and
renamed, so that whatever instant a run is killed at, the old or the new file is there whole. A digest inside the file
covers every tensor byte, because neither zip nor pickle notices a flipped bit in the data.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segtrain.errors import CheckpointError, ResourceError

FORMAT = 1
"""Version of the layout below; raised when a reader of the old one could not read the new one."""


def save(path: Path, state: Mapping[str, Any]) -> str:
    """Writes `state` (tensors, numbers, strings, lists, dicts) to `path` atomically; returns its SHA-256 digest.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; an older file at `path` is untouched.
    """
    whole: dict[str, Any] = {"format": FORMAT, **state}
    whole["sha256"] = digest(whole)
    buffer = io.BytesIO()  # torch.save hides the cause of a failed write; writing the bytes ourselves keeps the errno
    torch.save(whole, buffer)
    write_atomically(path, buffer.getbuffer())
    return str(whole["sha256"])


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replaces `path` by `content` in one step, or leaves it as it was and raises `ResourceError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:  # a second Ctrl-C too
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, len(content), error) from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Deletes the half-written files of a killed run."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


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
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint format {state['format']} is not known to this version",
            where=path,
            expected=f"format {FORMAT}",
            fix="use the segtrain version that wrote it: its versions are inside the file",
        )
    if digest(state) != state["sha256"]:
        raise CheckpointError(
            "checkpoint damaged: its content does not match its SHA-256 digest",
            where=path,
            expected=str(state["sha256"]),
            fix="use another checkpoint of the run (best.pt, last.pt)",
        )
    return state


def read(path: Path) -> dict[str, Any]:
    """Any torch file that holds a dict, loaded on the CPU without running code from it.

    Raises:
        CheckpointError: missing, unreadable, or holding more than plain data and tensors.
    """
    if not path.is_file():
        raise CheckpointError("no such file", where=path, fix="give the path of a .pt or .pth file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the file cannot be read as plain weights: {_first_line(error)}",
            where=path,
            expected="tensors, numbers, strings, lists and dicts only; objects could run code when loaded",
            fix="save model.state_dict() rather than the model, or fetch the file again if it should be one",
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
    zipfile.BadZipFile,
)


def _first_line(error: Exception) -> str:
    """What the error says; its kind where it says nothing, as for an empty file."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes, tensor bytes and the JSON of the rest; the key `sha256` is left out."""
    sha = hashlib.sha256()
    for key in sorted(state):
        if key != "sha256":
            sha.update(f"{key}\n".encode())
            _feed(sha, state[key])
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        sha.update(f"tensor {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        sha.update(f"dict {len(value)}\n".encode())
        for key in sorted(value, key=repr):
            sha.update(f"{key!r}\n".encode())
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        sha.update(f"list {len(value)}\n".encode())
        for item in value:
            _feed(sha, item)
    else:
        sha.update(f"{json.dumps(value)}\n".encode())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals the rename itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, needed: int, error: OSError) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        return ResourceError(
            f"disk full: the file needs {needed / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free",
            where=path,
            fix="free some space or choose another folder with hydra.run.dir=DIR; older checkpoints are untouched",
        )
    return ResourceError(
        f"the file cannot be written: {error.strerror}",
        where=path,
        fix="choose another folder with hydra.run.dir=DIR",
    )

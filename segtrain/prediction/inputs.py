"""Which files are meant by `input=…`, and the names that their results get."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from segtrain.data.images import IMAGE_SUFFIXES
from segtrain.errors import DataError, listed
from segtrain.prediction.files import KINDS

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


SHORTEST_LIMIT = 255
"""Bytes of a file's name, where the system does not say how long it may be."""


def is_video(file: Path) -> bool:
    """By its ending; whether OpenCV can read it, opening it shows."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(source: str, output: Path | None) -> tuple[dict[str, Path], int]:
    """Images and videos by the name their results get: a file, a folder with its tree, a glob, or `-` for a list.

    What lies in `output`'s own masks/, overlays/ and so on is passed over, and how much it was returned too: a second
    call with one folder for both would else take its own results for photos. A list on standard input has one path per
    line and is taken as it is, so that a missing file is reported like an unreadable one.

    Raises:
        DataError: nothing there, or two files whose results would have one name.
    """
    path = Path(source).expanduser()
    if source == "-":
        return _named([], _listed_files()), 0
    if path.is_file():
        return {path.stem: path}, 0
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_input(file)]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [Path(name) for name in matches if _is_input(Path(name))]
    results = {} if output is None else {kind: (output / kind).resolve() for kind in KINDS}
    files = [file for file in found if not any(file.resolve().is_relative_to(at) for at in results.values())]
    own = len(found) - len(files)
    if not files:
        taken = [kind for kind, at in results.items() if any(file.resolve().is_relative_to(at) for file in found)]
        raise DataError(
            "no images found" + (f" but {own} in {listed(taken)} of {output}, where results go" if own else ""),
            where=source,
            expected=f"a file, a folder or a glob of {listed((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), 20)}",
            fix="another output=DIR, if they are the images" if own else None,
        )
    return _named([path] if path.is_dir() else [], files), own


def _listed_files() -> list[Path]:
    # As bytes: a file name need not be UTF-8.
    lines = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()]
    files = [Path(line).expanduser() for line in lines if line.strip()]
    folder = next((file for file in files if file.is_dir()), None)
    if not files or folder is not None:
        raise DataError(
            "no paths on standard input" if folder is None else "standard input lists a folder",
            where=folder or "input=-",
            expected="one path of an image or video per line, as from: find photos -name '*.jpg'",
            fix="a folder can be given as it is: input=DIR",
        )
    return files


def _named(roots: list[Path], files: list[Path]) -> dict[str, Path]:
    """Files by their path below the root or, without one, below the folder that they share; endings are left out."""
    # Absolute, without '..': `*/../x.png` finds one file twice, and no name may lead out of the output folder.
    whole = {Path(os.path.abspath(file)): file for file in files}  # noqa: PTH100 - Path.absolute keeps '..'
    root = os.path.abspath(roots[0]) if roots else os.path.commonpath([file.parent for file in whole])  # noqa: PTH100
    names = {file.relative_to(root): given for file, given in whole.items()}
    # dog.jpg beside dog.png, or a film beside the folder of its frames: the ending tells their results apart.
    count = Counter(name.with_suffix("") for name in names)
    folders = {folder for name in names for folder in name.parents}
    found: dict[str, Path] = {}
    for name, file in names.items():
        stem = name.with_suffix("")
        alone = count[stem] == 1 and not (is_video(file) and stem in folders)
        result = str(stem if alone else name.with_name(name.name.replace(".", "_")))
        if result in found:
            raise DataError(
                f"two images would have the result '{result}'", where=f"{found[result]}\n{file}", fix="rename one"
            )
        found[result] = file
    return found


def too_long(inputs: Mapping[str, Path], output: Path) -> dict[str, DataError]:
    """Inputs whose results would have longer names than the file system of `output` takes, with what to say of each.

    A photo's own name may be as long as any, and that of its areas is longer: `.json` in place of `.jpg`.
    """
    there = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
    limit = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else SHORTEST_LIMIT
    room = limit - max(len(suffix) for suffix in KINDS.values())
    return {
        name: DataError(
            f"the file's name is too long for those of its results: {len(os.fsencode(Path(name).name))} bytes",
            where=file,
            expected=f"at most {room} bytes without the ending",
            fix="rename it",
        )
        for name, file in inputs.items()
        if len(os.fsencode(Path(name).name)) > room
    }


def _is_input(file: Path) -> bool:
    """Hidden files are passed over: `._dog.jpg`, which macOS leaves beside dog.jpg, is no image."""
    known = file.suffix.lower() in IMAGE_SUFFIXES or is_video(file)
    return known and not file.name.startswith(".") and file.is_file()

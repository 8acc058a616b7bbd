"""Names of files in lists that came with someone's archive: they must not reach other files of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from segtrain.errors import DataError, listed


def refuse_outside(
    names: Iterable[str], where: Path, *, below: str = "data.root", fix: str = "remove the line"
) -> None:
    """Checks the names and relative paths that a list holds, on every system by the rules of all.

    Args:
        where: the list.
        below: what they are to lie in.
        fix: what to do about one that does not.

    Raises:
        DataError: a name begins at a root or a drive, climbs by `..`, names a folder or nothing, or has a zero byte.
    """
    outside = [f"'{name}'".replace("\0", r"\0") for name in names if leads_out(name)]
    if outside:
        raise DataError(
            f"the list names {_files(len(outside))} outside its folder: {listed(outside)}",
            where=where,
            expected=f"names and paths below {below}",
            fix=fix,
        )


def leads_out(name: str) -> bool:
    """Whether a name is no name of a file below the folder that it is joined to; a backslash parts folders too."""
    parts = name.replace("\\", "/").split("/")
    drive = re.match(r"[A-Za-z]:", name)
    return ".." in parts or parts[0] == "" or drive is not None or parts[-1] in ("", ".") or "\0" in name


def _files(count: int) -> str:
    return "a file" if count == 1 else f"{count} files"

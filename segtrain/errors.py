"""Errors are part of the product: what was found, where, what was expected, what to do.

Every error a user can cause is a `SegtrainError`; the door prints its block and exits with its code. Anything else
that escapes is a bug of ours and exits 1 with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SegtrainError(Exception):
    """One error block. `found` is a sentence; the rest are optional lines under it."""

    code = 1
    kind = "error"

    def __init__(
        self,
        found: str,
        *,
        where: object | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(found)
        self.found = found
        self.where = None if where is None else str(where)
        self.expected = expected
        self.fix = fix
        self.of_all_ranks = False
        """Whether every process of torchrun raises this same error, so that one telling is enough."""

    def __reduce__(self) -> tuple[object, ...]:
        # An error raised in a loader worker must arrive whole in the main process.
        return (_rebuild, (type(self), self.found, self.__dict__))

    def __str__(self) -> str:
        lines = [f"error[{self.kind}] {self.found}"]
        for name in ("where", "expected", "fix"):
            value = getattr(self, name)
            if value:
                lines.append(f"  {name:<9} " + value.replace("\n", "\n" + " " * 12))
        return "\n".join(lines)


class ConfigError(SegtrainError):
    """The command line or a YAML file asks for something that does not exist or cannot be."""

    code = 2
    kind = "config"


class DataError(SegtrainError):
    """A dataset, image or mask is not what it should be."""

    code = 3
    kind = "data"


class CheckpointError(SegtrainError):
    """A checkpoint or weights file is missing, damaged or does not fit the model."""

    code = 4
    kind = "checkpoint"


class NonFiniteError(SegtrainError):
    """A loss or gradient became NaN or infinite."""

    code = 5
    kind = "non-finite"


class ResourceError(SegtrainError):
    """Memory or disk space ran out."""

    code = 6
    kind = "resources"


class Interrupted(SegtrainError):
    """A signal asked the run to stop; the state is saved."""

    kind = "interrupted"

    def __init__(self, found: str, *, signal: int, fix: str | None = None) -> None:
        super().__init__(found, fix=fix)
        self.code = 128 + signal


def _rebuild(kind: type[SegtrainError], found: str, parts: dict[str, Any]) -> SegtrainError:
    error = kind.__new__(kind, found)  # not by __init__, which each kind may have its own way
    error.__dict__.update(parts)
    return error


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`, or None where nothing is near.

    A dotted key is compared whole and by its last part, so that `epoch` finds `trainer.epochs`.
    """
    known = list(known)
    leaf_of = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    by_leaf = difflib.get_close_matches(word.rsplit(".", 1)[-1], leaf_of, n=1, cutoff=0.7)
    whole = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if "." in word and whole:
        return whole[0]
    return leaf_of[by_leaf[0]] if by_leaf else (whole[0] if whole else None)


def listed(names: Iterable[object], limit: int = 10) -> str:
    """`a, b, c and 7 more`."""
    items = [str(name) for name in names]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more

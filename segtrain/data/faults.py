"""Many faulty files, one error."""

from __future__ import annotations

from collections.abc import Sequence

from segtrain.errors import DataError
from segtrain.types import Record

_SHOWN = 10


def together(errors: Sequence[tuple[Record, DataError]], total: int, what: str = "masks") -> DataError:
    """One error for those of several records, of `total` looked at; a single one stays as it is."""
    first = errors[0][1]
    if len(errors) == 1:
        return first
    # One line per file: the error's own place starts with the path, and may go on with what was found there.
    lines = [f"{(error.where or record.source).splitlines()[0]}: {error.found}" for record, error in errors[:_SHOWN]]
    more = [f"and {len(errors) - _SHOWN} more"] * (len(errors) > _SHOWN)
    return DataError(
        f"{len(errors)} of {total} {what} cannot be used",
        where="\n".join(lines + more),
        expected=first.expected,
        fix=first.fix and f"for the first: {first.fix}",
    )

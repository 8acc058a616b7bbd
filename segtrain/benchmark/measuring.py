"""The arithmetic of a benchmark: interleaved timing, medians, spreads, ratios, model FLOP utilization.

All candidates of a table run in turns (A, B, C, A, B, C, …), so that a slow minute of a shared machine hits all of
them alike. The ratios are the result; the times belong to the machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from segtrain.errors import listed

Candidate = Callable[[], object]
FEWEST = 3
"""Repeats of a candidate too slow for its budget: a median needs as many."""


@dataclass
class Row:
    """One candidate: `seconds` per item in each repeat, `ratio` times as fast as the table's base.

    `goal` is the lowest ratio wanted, None where there is none. `extra` holds other numbers by name.
    """

    key: str
    name: str
    seconds: list[float]
    ratio: float = math.nan
    goal: float | None = None
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds per item."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The slowest repeat over the fastest: 1 where all are alike."""
        return max(self.seconds) / min(self.seconds)

    def numbers(self) -> dict[str, float]:
        """The row as flat numbers; what is not finite is left out."""
        found = {
            "ms": 1e3 * self.median,
            "per_second": 1 / self.median,
            "spread": self.spread,
            "repeats": float(len(self.seconds)),
            "ratio": self.ratio,
            **({} if self.goal is None else {"goal": self.goal}),
            **self.extra,
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass
class Table:
    """Rows that were measured together; `unit` says what one item is, as `image` or `step`."""

    key: str
    title: str
    unit: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def row(self, key: str) -> Row:
        """The row of this key."""
        return next(row for row in self.rows if row.key == key)


def interleaved(
    candidates: Mapping[str, Candidate],
    *,
    repeats: int,
    seconds: float,
    sync: Candidate | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, one number per repeat.

    Args:
        candidates: by key; each is called once before anything counts.
        repeats: rounds over all candidates. One whose repeats would take four times `seconds` gets fewer, but three.
        seconds: to be spent on each candidate, over all repeats; at least one call is made per repeat.
        sync: waits for the device, before the clock starts and before it stops.
        clock: seconds.
    """
    wait = sync or _nothing
    calls: dict[str, int] = {}
    rounds: dict[str, int] = {}
    for key, call in candidates.items():
        call()
        first = _timed(call, 1, wait, clock)
        calls[key] = max(1, int(seconds / repeats / max(first, 1e-9)))
        slow = first * repeats > 4 * seconds
        rounds[key] = min(repeats, max(FEWEST, int(4 * seconds / max(first, 1e-9)))) if slow else repeats
    times: dict[str, list[float]] = {key: [] for key in candidates}
    for number in range(repeats):
        for key, call in candidates.items():
            if number < rounds[key]:
                times[key].append(_timed(call, calls[key], wait, clock))
    return times


def _nothing() -> None:
    return None


def _timed(call: Candidate, count: int, wait: Candidate, clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(count):
        call()
    wait()
    return max(1e-9, clock() - start) / count


def rows(
    times: Mapping[str, list[float]],
    names: Mapping[str, str],
    *,
    base: str | Mapping[str, str],
    items: float = 1,
    goals: Mapping[str, float] | None = None,
) -> list[Row]:
    """One row per candidate.

    Args:
        times: seconds per call, as `interleaved` gives them.
        names: what each candidate is, for people.
        base: the key that ratios refer to, or one for each candidate.
        items: images, steps, … of one call.
        goals: lowest wanted ratios.
    """
    found = []
    for key, seconds in times.items():
        to = base if isinstance(base, str) else base[key]
        found.append(
            Row(
                key,
                names[key],
                [value / items for value in seconds],
                ratio=ratio(times[to], seconds),
                goal=(goals or {}).get(key),
            )
        )
    return found


def ratio(base: list[float], other: list[float]) -> float:
    """How many times as fast as `base` the other is: the median over repeats, each with its neighbor of that round.

    Compared within a round, a slow minute of the machine drops out; medians of the times alone would keep it.
    """
    return statistics.median(one / two for one, two in zip(base, other, strict=False))


def mfu(forward_flops: float, images_per_second: float, peak_flops: float) -> float:
    """Model FLOP utilization in [0, 1]: useful arithmetic per second over the device's measured matrix rate.

    A training step counts as three forward passes: one forward, two for the gradients of inputs and weights.

    Args:
        forward_flops: of one image, two per multiply-add.
        images_per_second: trained.
        peak_flops: per second.
    """
    return 3 * forward_flops * images_per_second / peak_flops


def require_equal(name: str, found: float, expected: float, tolerance: float = 1e-4) -> float:
    """The relative difference of two values that must be one.

    Raises:
        RuntimeError: they are not: to compare their speed would mean nothing.
    """
    difference = abs(found - expected) / max(abs(expected), 1e-12)
    if not difference <= tolerance:  # NaN too
        raise RuntimeError(f"{name} is {found}, the reference says {expected}: not the same computation")
    return difference


def waiting_for(device: torch.device) -> Candidate | None:
    """What `interleaved` waits with: None on the CPU, where every call is over when it returns."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else None


def lines(table: Table) -> list[str]:
    """The table as people read it, ratios first."""
    columns = list(dict.fromkeys(name for row in table.rows for name in row.extra))
    head = [" ratio", "  goal", f"ms/{table.unit}".rjust(10), f"{table.unit}s/s".rjust(10), "spread"]
    head += [name.rjust(max(8, len(name))) for name in columns]
    found = ["", table.title, "  ".join([*head, "what"])]
    for row in table.rows:
        goal = "" if row.goal is None else f">={row.goal:.3g}"
        cells = [f"{_short(row.ratio):>6}", f"{goal:>6}", f"{1e3 * row.median:>10.3f}", f"{1 / row.median:>10.1f}"]
        cells += [f"{row.spread:>6.2f}"]
        cells += [_short(row.extra.get(name, math.nan)).rjust(max(8, len(name))) for name in columns]
        found.append("  ".join([*cells, row.name]))
    return [*found, *(f"  {note}" for note in table.notes)]


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def flat(tables: list[Table]) -> dict[str, float]:
    """Every number of every table by `table/row/number`.

    Raises:
        ValueError: two rows would share a name.
    """
    found: dict[str, float] = {}
    for table in tables:
        for row in table.rows:
            numbers = {f"{table.key}/{row.key}/{name}": value for name, value in row.numbers().items()}
            if twice := set(numbers) & set(found):
                raise ValueError(f"two rows are named {listed(sorted(twice))}")
            found |= numbers
    return found


def content(table: Table) -> dict[str, Any]:
    """The table for `benchmark.json`, with every repeat."""
    return {
        "title": table.title,
        "unit": table.unit,
        "notes": table.notes,
        "rows": [
            {"key": row.key, "name": row.name, **row.numbers(), "seconds_of_repeats": row.seconds} for row in table.rows
        ],
    }

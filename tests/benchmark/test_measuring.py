"""The arithmetic of the benchmark: what a ratio, a spread and a utilization are, and who is timed when."""

from __future__ import annotations

import math

import pytest

from segtrain.benchmark.measuring import (
    Row,
    Table,
    content,
    flat,
    interleaved,
    lines,
    mfu,
    ratio,
    require_equal,
    rows,
)


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_median_and_spread_of_a_row() -> None:
    row = Row("a", "A", [0.3, 0.1, 0.2], ratio=2.0)
    assert row.median == 0.2
    assert row.spread == pytest.approx(3.0)
    assert row.numbers()["ms"] == pytest.approx(200.0)
    assert row.numbers()["per_second"] == pytest.approx(5.0)
    assert "goal" not in row.numbers()


def test_a_ratio_above_one_is_faster_and_a_slow_round_drops_out() -> None:
    assert ratio([4.0, 4.0, 4.0], [2.0, 2.0, 2.0]) == 2.0
    # A machine ten times slower for some rounds, or for one candidate of one round.
    assert ratio([1.0, 10.0, 10.0], [0.5, 5.0, 5.0]) == 2.0
    assert ratio([1.0, 10.0, 1.0], [0.5, 5.0, 5.0]) == 2.0


def test_rows_are_per_item_and_compared_with_their_own_base() -> None:
    times = {"slow": [8.0], "fast": [2.0], "other": [6.0], "base": [3.0]}
    names = {key: key.upper() for key in times}
    bases = {"slow": "slow", "fast": "slow", "base": "base", "other": "base"}
    found = {row.key: row for row in rows(times, names, base=bases, items=4, goals={"fast": 3.0})}
    assert found["fast"].seconds == [0.5]
    assert (found["fast"].ratio, found["other"].ratio, found["slow"].ratio) == (4.0, 0.5, 1.0)
    assert (found["fast"].goal, found["slow"].goal) == (3.0, None)


def test_a_training_step_is_three_forward_passes() -> None:
    assert mfu(2e9, 100.0, 6e12) == pytest.approx(0.1)


def test_candidates_run_in_turns() -> None:
    clock, calls = Clock(), []

    def candidate(name: str, seconds: float) -> object:
        def call() -> None:
            calls.append(name)
            clock.now += seconds

        return call

    times = interleaved(
        {"a": candidate("a", 1.0), "b": candidate("b", 2.0)},  # type: ignore[dict-item]
        repeats=3,
        seconds=3.0,
        clock=clock,
    )
    assert "".join(calls[4:]) == "ababab"  # after one call to warm up and one to see how long it takes
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_a_quick_candidate_is_called_often_and_a_slow_one_seldom() -> None:
    clock, calls = Clock(), {"quick": 0, "slow": 0}

    def candidate(name: str, seconds: float) -> object:
        def call() -> None:
            calls[name] += 1
            clock.now += seconds

        return call

    pair = {"quick": candidate("quick", 0.01), "slow": candidate("slow", 10.0)}
    times = interleaved(pair, repeats=5, seconds=1.0, clock=clock)  # type: ignore[arg-type]
    assert [len(times[name]) for name in pair] == [5, 3]
    assert calls["slow"] == 2 + 3
    assert 100 <= calls["quick"] - 2 + 5 <= 110  # a second in all, in five parts
    assert times["quick"] == pytest.approx([0.01] * 5)


def test_the_device_is_waited_for_inside_the_clock() -> None:
    clock = Clock()

    def finish() -> None:
        clock.now += 0.5  # work that a call only started

    times = interleaved({"a": lambda: None}, repeats=2, seconds=0.5, sync=finish, clock=clock)
    assert times["a"] == pytest.approx([0.5, 0.5])


def test_values_that_differ_stop_the_run() -> None:
    assert require_equal("dice", 0.5, 0.5) == 0.0
    assert require_equal("dice", 1.00001, 1.0) == pytest.approx(1e-5, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"dice is 0\.6, the reference says 0\.5"):
        require_equal("dice", 0.6, 0.5)
    with pytest.raises(RuntimeError, match="not the same"):
        require_equal("dice", math.nan, 0.5)


def a_table() -> Table:
    base, ours = (
        Row("usual", "the usual", [0.2, 0.2], 1.0),
        Row("ours", "ours", [0.1, 0.1], 2.0, 1.9, {"peak MiB": 3.5}),
    )
    return Table("topic", "a title", "image", [base, ours], ["a note"])


def test_a_table_says_the_ratio_first() -> None:
    said = lines(a_table())
    assert said[1] == "a title"
    assert said[2].split() == ["ratio", "goal", "ms/image", "images/s", "spread", "peak", "MiB", "what"]
    assert said[4].split() == ["2.00", ">=1.9", "100.000", "10.0", "1.00", "3.50", "ours"]
    assert said[5].strip() == "a note"


def test_metrics_are_flat_finite_numbers() -> None:
    table = a_table()
    table.rows.append(Row("alone", "nothing to compare with", [1.0]))
    found = flat([table])
    assert found["topic/ours/ratio"] == 2.0
    assert found["topic/ours/peak MiB"] == 3.5
    assert "topic/alone/ratio" not in found
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    assert content(table)["rows"][1]["seconds_of_repeats"] == [0.1, 0.1]


def test_two_rows_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two rows"):
        flat([a_table(), a_table()])

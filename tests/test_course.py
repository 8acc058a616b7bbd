"""Where a run stands: steps, samples and epochs agree, and the best is told from the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from segtrain.course import Course


def course(**changes: Any) -> Course:
    keys: dict[str, Any] = {"total_steps": 6, "samples_per_step": 4, "monitor": "miou", "higher_is_better": True}
    return Course(**{**keys, **changes})


def epoch(of: Course, score: float, steps: int = 2) -> bool:
    """Some steps and the validation after them; whether it was the best."""
    for _ in range(steps):
        of.stepped()
    val = {"miou": score, "confusion": [[1]]}
    return of.end_epoch({"val": val, "step": of.step, "train_images_per_second": 8.0, "seconds": 0.5})


@pytest.mark.parametrize(
    ("higher", "scores", "better"),
    [
        (True, [0.1, 0.3, 0.3, 0.2, 0.4], [True, True, False, False, True]),
        (False, [0.3, 0.3, 0.1, math.nan, 0.2], [True, False, True, False, False]),
        (True, [math.nan, math.nan, 0.0, math.nan], [True, True, True, False]),
    ],
)
def test_the_best_is_beaten_never_equalled_and_never_by_nan(
    higher: bool, scores: list[float], better: list[bool]
) -> None:
    run = course(higher_is_better=higher, total_steps=99)
    assert [epoch(run, score) for score in scores] == better
    assert run.best is not None
    assert run.best["epoch"] == max(number for number, best in enumerate(better, 1) if best)
    assert run.best["confusion"] == [[1]]
    assert all("confusion" not in record["val"] for record in run.history)


def test_a_run_is_done_when_its_last_step_is_validated_and_not_before() -> None:
    run = course()
    for number in (1, 2, 3):
        assert not run.done()
        assert run.steps_left() == 6 - 2 * (number - 1)
        epoch(run, 0.1 * number)
    assert run.done()
    assert run.steps_left() == 0
    stopped = course()
    for _ in range(6):
        stopped.stepped()
    assert not stopped.done()
    epoch(stopped, 0.5, steps=0)
    assert stopped.done()


def test_early_stopping_counts_epochs_since_the_best() -> None:
    run = course(total_steps=99, early_stop=2)
    ended = []
    for score in (0.1, 0.5, 0.4, 0.5):
        epoch(run, score)
        ended.append(run.done())
    assert ended == [False, False, False, True]


def test_a_restored_course_is_where_it_was_and_goes_on_alike() -> None:
    said: list[str] = []
    run, again = course(total_steps=9), course(total_steps=9)
    epoch(run, 0.4)
    run.stepped()
    again.restore(run.state(), said.append)
    assert again.state() == run.state()
    assert (again.step_in_epoch(), again.validated, said) == (1, False, [])
    for one in (run, again):
        epoch(one, 0.6, steps=1)
    assert again.summary() == run.summary()
    assert again.summary()["miou"] == 0.6


@pytest.mark.parametrize(("now", "step", "inside"), [(2, 6, 2), (8, 2, 0), (4, 3, 1)])
def test_with_other_steps_the_samples_decide_where_it_goes_on(now: int, step: int, inside: int) -> None:
    run = course(total_steps=99)
    epoch(run, 0.4)
    run.stepped()
    said: list[str] = []
    other = course(total_steps=99, samples_per_step=now)
    other.restore(run.state(), said.append)
    assert (other.step, other.step_in_epoch(), other.samples_seen) == (step, inside, 12)
    assert bool(said) == (now != 4)
    assert not said or f"step 3 counts as {step}" in said[0]

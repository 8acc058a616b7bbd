"""What became of a command's jobs, and the table that ends a sweep."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Outcome:
    """What became of one job; a sweep has several."""

    overrides: list[str]
    code: int = 0
    score: float = float("nan")
    message: str = ""
    monitor: str = ""
    higher_is_better: bool = True


def sweep_table(outcomes: list[Outcome]) -> str:
    """All jobs of a sweep by what differs between them, the best first, failures with their cause last."""
    # Scores of several monitors, as in trainer.monitor=miou,loss, have no order.
    comparable = len({outcome.monitor for outcome in outcomes if outcome.code == 0}) == 1

    def rank(number: int) -> tuple[bool, bool, float, int]:
        outcome = outcomes[number]
        known = comparable and math.isfinite(outcome.score)
        worth = (outcome.score if outcome.higher_is_better else -outcome.score) if known else 0.0
        return outcome.code != 0, not known, -worth, number

    order = sorted(range(len(outcomes)), key=rank)
    differing = [
        " ".join(o for o in outcome.overrides if not all(o in other.overrides for other in outcomes))
        for outcome in outcomes
    ]
    width = max(len("overrides"), *(len(text) for text in differing))
    lines = ["", f"job  {'overrides':<{width}}  score   status"]
    for position, number in enumerate(order):
        outcome = outcomes[number]
        best = position == 0 and comparable and math.isfinite(outcome.score)
        score = f"{outcome.score:.4f}" if math.isfinite(outcome.score) else "-"
        status = ("ok" + ("  * best" if best else "")) if outcome.code == 0 else f"failed: {outcome.message}"
        lines.append(f"{number:>3}  {differing[number]:<{width}}  {score:>6}  {status}")
    failed = sum(outcome.code != 0 for outcome in outcomes)
    lines.append(f"{len(outcomes) - failed} ok, {failed} failed")
    return "\n".join(lines)

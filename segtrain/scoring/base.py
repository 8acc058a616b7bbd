"""What an evaluation asks of the scoring of one kind of task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from segtrain.metrics.digest import DataDigest


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What is asked of an evaluation besides the task's scores; `configs/evaluate.yaml` says what each key does."""

    split: str
    scores: Literal["basic", "full"]
    report: bool
    export: Literal["none", "cityscapes", "voc", "coco"]


class Scoring(Protocol):
    """Metrics of single images beside the task's own, and the files and lines that come of them.

    Attributes:
        main: the score that stands for the evaluation.
        digest: the fingerprint of what is scored.
        convention: which classes the mean of scores leaves out, for the protocol card.
        meter: the task's, which shows each image to the other metrics too.
    """

    main: str
    digest: DataDigest
    convention: str
    meter: Any

    def finish(self, scores: dict[str, Any]) -> None:
        """Adds to the scores what is computed of all images together."""

    def summary(self, scores: dict[str, Any]) -> list[str]:
        """Lines under the task's table."""

    def write(self, scores: dict[str, Any], title: str, say: Callable[[str], None]) -> None:
        """Leaves files beside `metrics.json` and names each; `scores` is that file's content."""


REPORT = "report.html"
PER_IMAGE = "per_image.npz"
STALE = (REPORT, PER_IMAGE)
"""Files of an earlier evaluation in the same folder, which must not be taken for this one's."""

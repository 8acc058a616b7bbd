"""What `predict` asks of a kind of task: all that its loop knows of pixels, objects or segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.prediction.journal import Journal
from segtrain.segmenter import Segmenter
from segtrain.types import Fraction

SURE = 0.5
"""The score from which objects are shown, where nobody says another."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The keys of `predict` that say what its results are; each is for some tasks, which refuse the others."""

    opacity: Fraction
    probs: bool = False
    confidence: bool = False
    abstain: Fraction | None = None
    score: Fraction = SURE

    def refuse_wishes_for_pixels(self, task: str, instead: str) -> None:
        """Raises a ConfigError for what is known of pixels alone; `instead` says what the task has."""
        wishes = {"probs": self.probs, "confidence": self.confidence, "abstain": self.abstain is not None}
        for key, wished in wishes.items():
            if wished:
                raise ConfigError(
                    f"{key}={str(getattr(self, key)).lower()} with task={task}, which is sure of objects alone",
                    expected=f"{key} with a checkpoint of task=semantic",
                    fix=f"leave it out: areas/*.json has the score of every object; {instead}",
                )

    def refuse_score(self, task: str, instead: str) -> None:
        """Raises a ConfigError where there are no unsure objects to leave out of the pictures."""
        if self.score != SURE:
            raise ConfigError(
                f"score={self.score:g} with {task}",
                expected="score with a checkpoint of task=instance",
                fix=f"leave it out; there is {instead}",
            )


class Results(Protocol):
    """The results of one kind of task, from the network's answer to the files.

    An answer is what the network says of one image; only the task's own class looks into it. Counts are numbers
    (int64) that can be added over the frames of a video.
    """

    @property
    def kinds(self) -> Mapping[str, str]:
        """What is written for each image -> its suffix, as in `segtrain.prediction.files.KINDS`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a result depends on besides weights and config: other settings do an image again."""

    @property
    def collection(self) -> str | None:
        """The file that `collect` writes into the output folder; None: none."""

    def ask(self, segmenter: Segmenter, batch: Tensor) -> list[Any]:
        """Images (B, H, W, C) on the model's device -> an answer in the main memory for each."""

    def held(self, answer: Any) -> int:
        """What an answer that waits to be written holds, in pixels of an image."""

    def count(self, answer: Any) -> np.ndarray:
        """The answer's counts, and without one (None) as many zeros."""

    def areas(self, counts: np.ndarray) -> np.ndarray:
        """Of the counts: pixels per class, and in the last place those of nobody."""

    def line(self, counts: np.ndarray) -> dict[str, Any]:
        """What the journal says of an image or a video: `areas`, pixels by name, and what else is counted."""

    def described(self, counts: np.ndarray, answer: Any) -> dict[str, Any]:
        """What the file of the areas holds besides them; for a video all that there is are the counts."""

    def overlay(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """The image (H, W, C) with the answer laid over it, (H, W, 3) uint8."""

    def write(self, files: Mapping[str, Path], image: np.ndarray, answer: Any) -> None:
        """Writes the kinds of `files`, of which there may be less than `kinds`, but for the areas."""

    def summary(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Sums over all images by their journal lines, for metrics.json."""

    def collect(self, journal: Journal) -> None:
        """Writes `collection`, of all images that the journal has of these weights and settings."""


def added(lines: Sequence[Mapping[str, Any]], key: str, names: Sequence[str]) -> dict[str, int]:
    """The numbers by name that lines have under a key, added up."""
    return {name: sum(line[key][name] for line in lines) for name in names}

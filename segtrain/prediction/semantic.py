"""Results where each pixel has one class: labels, and on demand confidence and probabilities."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segtrain import pictures
from segtrain.atomic import write_atomically
from segtrain.errors import ConfigError
from segtrain.inference.outputs import LARGEST_WHOLE
from segtrain.prediction.files import ALWAYS, KINDS, Legend, overlay_step, write_labels, write_overlay, write_png
from segtrain.prediction.journal import Journal
from segtrain.prediction.results import Asked, added
from segtrain.segmenter import Segmenter
from segtrain.types import IGNORE_INDEX, Fraction


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    `labels` (H, W) uint8, 255 where it abstains; `confidence` (H, W) uint8, the probability of the likeliest class
    times 255; `probs` (C, H, W) float16. The last two are None where nobody asked for them.
    """

    labels: np.ndarray
    confidence: np.ndarray | None = None
    probs: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of the network besides labels."""

    probs: bool = False
    confidence: bool = False
    abstain: Fraction | None = None


class PixelResults:
    """`masks/`, `overlays/` and `areas/`, and where they are wanted `confidence/` and `probs/`.

    The methods are those of `segtrain.prediction.results.Results`.

    Args:
        legend: what the pictures share.
        wanted: what is asked of the network besides labels.
    """

    def __init__(self, legend: Legend, wanted: Wanted) -> None:
        self.legend = legend
        self.wanted = wanted
        asked = {"confidence": wanted.confidence, "probs": wanted.probs}
        self.kinds = {kind: suffix for kind, suffix in KINDS.items() if kind in ALWAYS or asked.get(kind)}
        self.settings = {"wanted": vars(wanted), "opacity": legend.opacity}
        self.collection: str | None = None

    @classmethod
    def of(cls, segmenter: Segmenter, asked: Asked) -> PixelResults:
        """Raises a ConfigError where something is asked for that only objects have."""
        asked.refuse_score(
            f"task={segmenter.task.name}, which finds no objects",
            f"abstain={asked.score:g} for pixels of less confidence",
        )
        wanted = Wanted(probs=asked.probs, confidence=asked.confidence, abstain=asked.abstain)
        return cls(Legend(segmenter.classes, segmenter.palette, asked.opacity), wanted)

    def ask(self, segmenter: Segmenter, batch: Tensor) -> list[Prediction]:
        """Images (B, H, W, C) -> what is wanted of each.

        Raises:
            ConfigError: probabilities of an image that is too large to hold them.
        """
        if self.wanted == Wanted():
            labels = segmenter.task.predict(segmenter.model, batch).cpu().numpy()
            return [Prediction(one) for one in labels]
        return _judged(segmenter, batch, self.wanted)

    def held(self, answer: Prediction) -> int:
        return answer.labels.size

    def count(self, answer: Prediction | None) -> np.ndarray:
        return self.legend.counts(np.zeros((0, 0), np.uint8) if answer is None else answer.labels)

    def areas(self, counts: np.ndarray) -> np.ndarray:
        return counts

    def line(self, counts: np.ndarray) -> dict[str, Any]:
        areas = {name: int(area) for name, area in zip(self.legend.classes, counts, strict=False)}
        return {"areas": areas, **({} if self.wanted.abstain is None else {"abstained": int(counts[-1])})}

    def described(self, counts: np.ndarray, answer: Prediction | None) -> dict[str, Any]:
        if self.wanted.abstain is None:
            return {}
        nobody = int(counts[-1])
        return {"abstained": {"pixels": nobody, "share": float(nobody / max(1, int(counts.sum())))}}

    def overlay(self, image: np.ndarray, answer: Prediction) -> np.ndarray:
        return self._laid_over(image, answer.labels)

    def write(self, files: Mapping[str, Path], image: np.ndarray, answer: Prediction) -> None:
        write_labels(files["masks"], answer.labels, self.legend.palette)
        if "overlays" in files:
            step = overlay_step(*answer.labels.shape)
            shown = (np.ascontiguousarray(array[::step, ::step]) for array in (image, answer.labels))
            write_overlay(files["overlays"], self._laid_over(*shown))
        if answer.confidence is not None:
            write_png(files["confidence"], Image.fromarray(answer.confidence))
        if answer.probs is not None:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, probs=answer.probs, classes=np.array(self.legend.classes))
            write_atomically(files["probs"], buffer.getbuffer())

    def summary(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {"images": len(lines), "pixels": added(lines, "areas", self.legend.classes)}
        if self.wanted.abstain is not None:
            found["abstained"] = sum(line["abstained"] for line in lines)
        return found

    def collect(self, journal: Journal) -> None:
        """Nothing: what is said of pixels, `results.jsonl` has by image."""

    def _laid_over(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return pictures.overlay(image, labels, self.legend.palette, self.legend.opacity)


def _judged(segmenter: Segmenter, batch: Tensor, wanted: Wanted) -> list[Prediction]:
    size = (batch.shape[0], batch.shape[1], batch.shape[2])
    labels = np.empty(size, np.uint8)
    confidence = np.empty(size, np.uint8) if wanted.confidence else None
    probs = _room(size, len(segmenter.classes)) if wanted.probs else None
    for first, last, logits in segmenter.task.bands(segmenter.model, batch):
        found = logits.float().softmax(1)
        # Of the logits, as without these options: two probabilities may round to one.
        likeliest, most = logits.max(1).indices.to(torch.uint8), found.amax(1)
        if wanted.abstain is not None:
            likeliest[most < wanted.abstain] = IGNORE_INDEX
        labels[:, first:last] = likeliest.cpu().numpy()
        if confidence is not None:
            confidence[:, first:last] = (most * 255).round().to(torch.uint8).cpu().numpy()
        if probs is not None:
            probs[:, :, first:last] = found.half().cpu().numpy()
    return [
        Prediction(one, None if confidence is None else confidence[at], None if probs is None else probs[at])
        for at, one in enumerate(labels)
    ]


def _room(size: tuple[int, int, int], classes: int) -> np.ndarray:
    count, height, width = size
    if count * height * width * classes > LARGEST_WHOLE:
        raise ConfigError(
            f"probs=true with an image of {height}x{width} pixels: {height * width * classes:,} probabilities",
            expected=f"at most {LARGEST_WHOLE:,}",
            fix="probs=false; confidence=true has the probability of the likeliest class in 8 bits",
        )
    return np.empty((count, classes, height, width), np.float16)

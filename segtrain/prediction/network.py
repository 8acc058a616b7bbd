"""From images of one size to labels, confidence and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segtrain.checkpoint import digest
from segtrain.errors import ConfigError
from segtrain.inference.outputs import LARGEST_WHOLE
from segtrain.prediction.files import Prediction
from segtrain.segmenter import Segmenter
from segtrain.types import IGNORE_INDEX, Fraction


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of the network besides labels."""

    probs: bool = False
    confidence: bool = False
    abstain: Fraction | None = None


@torch.inference_mode()
def predict_batch(segmenter: Segmenter, images: list[np.ndarray], wanted: Wanted) -> list[Prediction]:
    """Images (H, W, C) of one shape and type -> what is wanted of each, in their order.

    Raises:
        ConfigError: probabilities of an image that is too large to hold them.
    """
    # One image is not copied where torch can take it as it is: it may have a gigabyte.
    single = len(images) == 1
    stack = np.require(images[0], requirements=["C", "W"])[None] if single else np.stack(images)
    batch = torch.from_numpy(stack).to(segmenter.device)
    with segmenter.precision():
        if wanted == Wanted():
            labels = segmenter.task.predict(segmenter.model, batch).cpu().numpy()
            return [Prediction(one) for one in labels]
        return _judged(segmenter, batch, wanted)


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


def made_by(segmenter: Segmenter, wanted: Wanted, opacity: float) -> str:
    """Digest of all that a result depends on besides its image: weights, and the settings that predict uses."""
    settings = segmenter.settings
    return digest(
        {
            "model": segmenter.model.state_dict(),
            "nodes": {name: settings.node[name] for name in ("model", "inference", "task")},
            "normalize": dict(segmenter.normalize),
            "classes": segmenter.classes,
            "palette": [list(color) for color in segmenter.palette],
            "amp": str(segmenter.amp),
            "wanted": vars(wanted),
            "opacity": opacity,
        }
    )

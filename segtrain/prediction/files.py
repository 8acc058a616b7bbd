"""The files that predict writes for an image or a frame, each whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtrain import pictures
from segtrain.checkpoint import write_atomically
from segtrain.tracking import write_json
from segtrain.types import IGNORE_INDEX

KINDS = {"masks": ".png", "overlays": ".jpg", "areas": ".json", "confidence": ".png", "probs": ".npz"}
"""What can be written for each image, each kind in a folder of its name."""

LARGEST_OVERLAY = 64_000_000
"""Pixels of an overlay; that of a larger image shows every 2nd, 3rd, … pixel. JPEG takes no side beyond 65,500."""
LONGEST_SIDE = 65_500


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    `labels` (H, W) uint8, 255 where it abstains; `confidence` (H, W) uint8, the probability of the likeliest class
    times 255; `probs` (C, H, W) float16. The last two are None where nobody asked for them.
    """

    labels: np.ndarray
    confidence: np.ndarray | None = None
    probs: np.ndarray | None = None


@dataclass(frozen=True)
class Legend:
    """What all pictures of a run share."""

    classes: list[str]
    palette: list[list[int]]
    opacity: float

    def counts(self, labels: np.ndarray) -> np.ndarray:
        """Pixels per class, and in the last place those of nobody."""
        counts = np.zeros(256, np.int64)
        for start in range(0, labels.shape[0], 256):  # bincount makes 8 bytes of each pixel
            counts += np.bincount(labels[start : start + 256].ravel(), minlength=256)
        return np.append(counts[: len(self.classes)], counts[IGNORE_INDEX])

    def overlay(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The image with its classes in color, (H, W, 3) uint8."""
        return pictures.overlay(image, labels, self.palette, self.opacity)


def result_files(output: Path, name: str, kinds: Mapping[str, str]) -> dict[str, Path]:
    """Where the results of an image go; suffixes are added, because a name may hold dots."""
    return {kind: output / kind / f"{name}{suffix}" for kind, suffix in kinds.items()}


def write_areas(path: Path, file: Path, size: tuple[int, int], areas: np.ndarray, legend: Legend, more: Any) -> None:
    """Pixels and share of each class; `more` may hold `abstained` or the number of `frames`.

    Written before the other files: what is there says that those of its name are ours to overwrite.
    """
    total = max(1, int(areas.sum()))
    classes = {
        label: {"pixels": int(area), "share": float(area / total)}
        for label, area in zip(legend.classes, areas, strict=False)
    }
    content = {"image": str(file), "size": list(size), "classes": classes, **more}
    write_json(path, content)


def abstained(areas: np.ndarray) -> dict[str, Any]:
    """The pixels without a class, for the file of the areas."""
    return {"abstained": {"pixels": int(areas[-1]), "share": float(areas[-1] / max(1, int(areas.sum())))}}


def write_pictures(files: Mapping[str, Path], image: np.ndarray, prediction: Prediction, legend: Legend) -> None:
    """The kinds of `files` that are pictures or arrays: index PNG with the palette, overlay, confidence, probs."""
    mask = Image.fromarray(prediction.labels)
    table = np.zeros((256, 3), np.uint8)
    table[: len(legend.palette)] = legend.palette
    table[IGNORE_INDEX] = pictures.VOID
    mask.putpalette(table.tobytes())
    _save(files["masks"], mask, "PNG")
    if "overlays" in files:
        height, width = prediction.labels.shape
        step = math.ceil(max(math.sqrt(height * width / LARGEST_OVERLAY), max(height, width) / LONGEST_SIDE))
        shown = np.ascontiguousarray(image[::step, ::step]), np.ascontiguousarray(prediction.labels[::step, ::step])
        _save(files["overlays"], Image.fromarray(legend.overlay(*shown)), "JPEG", quality=92)
    if prediction.confidence is not None:
        _save(files["confidence"], Image.fromarray(prediction.confidence), "PNG")
    if prediction.probs is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, probs=prediction.probs, classes=np.array(legend.classes))
        write_atomically(files["probs"], buffer.getbuffer())


def _save(path: Path, picture: Image.Image, form: str, **options: Any) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    write_atomically(path, buffer.getbuffer())
